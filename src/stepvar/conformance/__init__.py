"""Does this installation compute what the original implementations compute?"""

from stepvar.conformance.goldens import default_goldens
from stepvar.conformance.results import GoldenResult, all_passed, results_table
from stepvar.conformance.run import verify

__all__ = ["GoldenResult", "all_passed", "default_goldens", "results_table", "verify"]
