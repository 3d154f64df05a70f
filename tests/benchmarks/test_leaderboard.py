"""Who takes part in the leaderboard, and what its tables say."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.leaderboard import costs, figures
from benchmarks.leaderboard.entrants import NEAR, Entrant, at_budget, entrants
from stepvar.core.tokens import ScaleSchedule
from stepvar.methods import METHODS, Dense, Method, SkipLast, StepVAR
from tests.helpers import make_settings
from tests.methods.helpers import plan_of, work

SCHEDULE = ScaleSchedule.of([(side, side) for side in (1, 2, 3, 4, 6, 8, 12, 16)])


def speedup_of(method: Method) -> float:
    """By tokens and pairs of them, in place of counted operations."""
    return work(plan_of(Dense(), SCHEDULE)) / work(plan_of(method, SCHEDULE))


@pytest.fixture(scope="module")
def taking_part() -> list[Entrant]:
    return entrants(speedup_of, make_settings(SCHEDULE, 3.0), budgets=(1.6,))


def test_every_method_takes_part(taking_part: list[Entrant]) -> None:
    names = {part.partition(":")[0] for entrant in taking_part for part in str(entrant.method).split("+")}
    assert set(METHODS) <= names | {"dense"}
    assert len({entrant.label for entrant in taking_part}) == len(taking_part)


def test_those_with_a_budget_meet_it(taking_part: list[Entrant]) -> None:
    tuned = [entrant for entrant in taking_part if entrant.budget is not None]
    assert {"stepvar@1.6", "stepvar-plus@1.6"} <= {entrant.label for entrant in tuned}
    assert all(abs(speedup_of(entrant.method) / 1.6 - 1) <= NEAR for entrant in tuned)


def test_what_cannot_reach_a_budget_is_left_out() -> None:
    settings = make_settings(SCHEDULE, 3.0)
    assert at_budget("far", StepVAR(), 1000.0, speedup_of, settings) is None
    assert at_budget("between two steps", SkipLast(), 1.3, speedup_of, settings) is None


def test_the_first_leads_by_pairs() -> None:
    def entry(label: str, psnr: float, budget: float | None, speedup: float) -> dict:
        mean = {"mean": psnr, "low": psnr - 1, "high": psnr + 1, "count": 3}
        own = {"label": label, "budget": budget, "speedup": speedup, "psnr": mean, "ssim": mean}
        return own | {"accuracy": {}, "cache": 50}

    entries = [entry("b@1.6", 30.0, 1.6, 1.6), entry("a@1.6", 33.0, 1.6, 1.6), entry("skip", 31.0, None, 1.65)]
    entries.append(entry("far", 20.0, None, 4.0))
    rows: dict[str, Any] = {
        "a@1.6": {("x", 0): {"psnr": 34.0}, ("y", 0): {"psnr": 32.0}},
        "b@1.6": {("x", 0): {"psnr": 31.0}, ("y", 0): {"psnr": 29.0}},
        "skip": {("x", 0): {"psnr": 36.0}, ("y", 0): {"psnr": 26.0}},
    }
    leader = figures.leader_of(entries, rows, 1.6)
    assert leader["label"] == "a@1.6" and leader["leads"]["b@1.6"]["mean"] == 3.0
    assert leader["leads"]["skip"]["low"] < 0 < leader["leads"]["skip"]["high"]
    result = {"settings": {"budgets": [1.6], "cache": 200, "dtype": "float32"}, "leaders": {"1.6": leader}}
    text = figures.markdown(result | {"entries": entries, "images": 3, "dense_accuracy": 0.914})
    table, rest = text.split("### At a cost of their own")
    assert table.index("`a`") < table.index("`skip`") < table.index("`b`") and "| first |" in table
    assert "**3.00 (3.00 to 3.00)**" in table and "`far`" in rest
    assert "| `b` | 1.60x | 25 % | 30.0 |" in table
    assert "3 images of each method, float32. Dense answers 91.4 % of the questions right." in rest


def test_costs_are_over_those_of_dense() -> None:
    rows = [
        {"model": "2b", "method": "dense", "flops": 10, "cache": 2**30, "peak": 0, "passes": 13},
        {"model": "2b", "method": "fastvar:hart", "flops": 5, "cache": 2**29, "peak": 0, "passes": 11},
        {"model": "2b", "method": "lazyvar", "refused": "videos"},
    ]
    text = costs.markdown({"rows": rows})
    assert "| `fastvar` | 2.00x, 0.50, 11 |" in text and "| `lazyvar` | refused |" in text
