"""Does this installation compute what the original implementations compute?"""

from stepvar.conformance.results import GoldenResult, all_passed, results_table, skipped_lines, verdict
from stepvar.conformance.run import verify

__all__ = ["GoldenResult", "all_passed", "results_table", "skipped_lines", "verdict", "verify"]
