"""Does this installation compute what the original implementations compute?"""

from stepvar.verify.goldens import default_goldens
from stepvar.verify.results import GoldenResult, all_passed, results_table
from stepvar.verify.run import verify

__all__ = ["GoldenResult", "all_passed", "default_goldens", "results_table", "verify"]
