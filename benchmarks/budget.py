"""Speed-ups asked for and achieved: ``python -m benchmarks.budget --model scenes --decode --out runs/budget.json``.

Settings are planned first, each method for each speed-up; then every round runs each of them between two dense
generations, and its ratio is the mean time of these two over its own. A machine whose speed drifts slows all three. The
median over the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import command_line
from benchmarks.subjects import Drawing, add_options, drawing, info
from stepvar.core.report import Report
from stepvar.cost.calibration import calibrate
from stepvar.cost.planner import Budget, fit
from stepvar.errors import UsageError
from stepvar.evaluation.comparison import Spread
from stepvar.methods import Method, make_method
from stepvar.utils.files import write_text

METHODS = ("stepvar", "high-pass", "random", "fastvar", "skip-last", "drop-guidance", "stepvar+drop-guidance")


def plans(of: Drawing, methods: Sequence[str], speedups: Sequence[float], again: bool) -> tuple[list[Any], list[Any]]:
    """A budget for each method and speed-up, and what cannot be had."""
    scope: Any = "image" if of.decode else "scales"
    costs = calibrate(of.whole, of.plan, of.samples, scope, again=again).costs
    budgets: list[tuple[str, Budget]] = []
    refused: list[dict[str, Any]] = []
    for name in methods:
        for asked in speedups:
            try:
                budgets.append((name, fit(asked, make_method(name), costs)))
            except UsageError as error:
                refused.append({"method": name, "asked": asked, "why": str(error)})
    return budgets, refused


def took(report: Report, of: Drawing) -> float:
    """What the speed-up is of: a whole picture where decoding runs, else the loop over scales."""
    return report.seconds if of.decode else report.scale_seconds


def measure(of: Drawing, budgets: Sequence[tuple[str, Budget]], rounds: int) -> list[list[float]]:
    """By round the speed-up of every budget."""
    of.run(Method())  # warm-up
    found = []
    for number in range(rounds):
        order = list(range(len(budgets)))
        ratios = [0.0] * len(budgets)
        before = took(of.run(Method()), of)
        for index in order if number % 2 == 0 else reversed(order):
            own = took(of.run(budgets[index][1].method), of)
            after = took(of.run(Method()), of)
            ratios[index] = statistics.mean((before, after)) / own
            name, budget = budgets[index]
            print(f"round {number}: {name}, {budget.asked:g} asked, {ratios[index]:.2f} achieved", flush=True)
            before = after
        found.append(ratios)
    return found


def rows(budgets: Sequence[tuple[str, Budget]], ratios: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """What was asked of each, and what came."""
    found = []
    for index, (name, budget) in enumerate(budgets):
        achieved = Spread.of([one[index] for one in ratios])
        row = {"method": name} | budget.to_dict() | {"near_only": budget.is_near_only, "achieved": achieved.to_dict()}
        found.append(row | {"deviation": achieved.median / budget.asked - 1})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--speedups", type=float, nargs="*", default=[1.5, 2.0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="calibrate again, whatever was measured before")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    of = drawing(arguments)
    budgets, refused = plans(of, arguments.methods, arguments.speedups, arguments.again)
    ratios = measure(of, budgets, arguments.rounds)
    of_what = "whole pictures" if of.decode else "the loop over scales"
    result = {"rows": rows(budgets, ratios), "refused": refused, "speedup_of": of_what, "rounds": arguments.rounds}
    result["info"] = {"command": command_line(__spec__)} | info(of)
    print(markdown(result))
    if arguments.out:
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")


def settings_text(settings: dict[str, Any]) -> str:
    """What a budget decided, in short."""
    if any(isinstance(value, dict) for value in settings.values()):
        return "; ".join(settings_text(own) for own in settings.values() if isinstance(own, dict))
    told = {name: settings[name] for name in ("keep", "last", "prune", "skip", "count") if name in settings}
    return ", ".join(f"{name} {value}" for name, value in told.items())


def markdown(result: dict[str, Any]) -> str:
    """The result as a table."""
    lines = [
        "| method | asked | planned | achieved (median, range) | off by | settings found |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        achieved, near = row["achieved"], " (nearest)" if row["near_only"] else ""
        lines.append(
            f"| {row['method']} | {row['asked_speedup']:g} | {row['planned_speedup']:.2f}{near} |"
            f" {achieved['median']:.2f}x ({achieved['min']:.2f}-{achieved['max']:.2f}) |"
            f" {100 * row['deviation']:+.0f} % | {settings_text(row['settings'])} |"
        )
    lines.append(f"\nSpeed-up of {result['speedup_of']}, {result['rounds']} rounds.")
    lines += [f"Refused: `{one['why']}`" for one in result["refused"]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
