"""What is compared: StepVAR+ and its rivals at three costs, and the variants of its settings at one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.study.candidates import fastvar, kept
from benchmarks.study.match import SpeedupOf, match_cost
from stepvar.core.plan import Settings
from stepvar.methods import Compose, DropGuidance, Method, SkipLast, StepVARPlus, make_method

BUDGETS = (1.3, 1.6, 2.0)
"""Speed-ups of the loop over scales, counted in operations."""

CHOSEN_AT = 1.6
"""The budget at which settings are chosen."""

STAGES = 3
"""The stages of the speed-up schedule that act on the last two scales only, as all that is compared here does."""


@dataclass(frozen=True)
class Entry:
    """One candidate.

    Attributes:
        label: its name in tables.
        budget: the speed-up that it is compared at; None: at the nearest one.
        method: with the settings that cost as much.
        speedup: what it costs, as the dense operations over its own.
    """

    label: str
    budget: float
    method: Method
    speedup: float

    @property
    def key(self) -> str:
        return f"{self.label}@{self.budget:g}"


RIVALS: dict[str, tuple[Callable[[float], Method], float]] = {
    "stepvar": (kept("stepvar"), 1.0),
    "stepvar:blend": (kept("stepvar:blend"), 1.0),
    "stepvar+drop-guidance": (kept("stepvar+drop-guidance", **{"stepvar.last": 2, "drop-guidance.last": 1}), 1.4),
    "fastvar": (fastvar, 1.0),
}
"""By label: the method of a share kept, and the least that it saves."""

FIXED: dict[str, tuple[Method, float]] = {
    "drop-guidance, last scale": (DropGuidance(1), 1.3),
    "drop-guidance, last 2 scales": (DropGuidance(2), 1.6),
    "skip-last": (SkipLast(1), 2.0),
    "skip-last+drop-guidance": (Compose(SkipLast(1), DropGuidance(2)), 2.0),
}
"""Methods that cost what they cost, with the budget that they are nearest to."""


NULL = (1.6, kept("random", pruned_codes=False))
"""Tokens chosen at random, which add no codes where they are pruned: what that alone is worth, at one budget."""


def plus_at(budget: float, speedup_of: SpeedupOf, settings: Settings, method: StepVARPlus | None = None) -> Entry:
    """StepVAR+ as ``--speedup`` sets it, at a speed-up counted in operations."""
    own = method or StepVARPlus()
    for stage in own.speedup_schedule(settings)[:STAGES]:
        if speedup_of(stage(1.0)) >= budget:
            found = match_cost(lambda share, stage=stage: stage(1 - share), speedup_of, budget, 0.0)  # type: ignore[misc]
            return Entry("stepvar-plus", budget, found.method, found.speedup)
    raise ValueError(f"budget {budget}: beyond the first {STAGES} stages of the method")


def rivals_at(budget: float, speedup_of: SpeedupOf) -> list[Entry]:
    """The other methods at a speed-up, counted in operations, and those that cost about as much."""
    found = []
    for label, (build, least) in RIVALS.items():
        if budget > least:
            matched = match_cost(build, speedup_of, budget)
            found.append(Entry(label, budget, matched.method, matched.speedup))
    if budget == NULL[0]:
        matched = match_cost(NULL[1], speedup_of, budget)
        found.append(Entry("random, no codes of pruned tokens", budget, matched.method, matched.speedup))
    for label, (method, nearest) in FIXED.items():
        if nearest == budget:
            found.append(Entry(label, budget, method, speedup_of(method)))
    return found


VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "structure: first component, weight 0.25": {"structure": "component", "structure_weight": 0.25},
    "without structure": {"structure_weight": 0.0},
    "structure 0.5": {"structure_weight": 0.5},
    "without mid-band": {"midband_weight": 0.0},
    "pruned tokens add their codes": {"pruned_codes": True},
    "the same, restored by blend": {"pruned_codes": True, "restore": "blend", "propagate": "update"},
    "the same share at both scales": {"taper": 0.0},
    "guidance dropped at the last scale": {"drop_guidance": 1},
    "the same, the conditional branch as it is": {"drop_guidance": 1, "reuse_guidance": 0.0},
}
"""One setting changed at a time."""


def variants_at(budget: float, speedup_of: SpeedupOf) -> list[Entry]:
    """Settings of StepVAR+ at a speed-up, and StepVAR."""

    def at(label: str, build: Callable[[float], Method]) -> Entry:
        found = match_cost(build, speedup_of, budget)
        return Entry(label, budget, found.method, found.speedup)

    def plus(given: dict[str, Any]) -> Callable[[float], Method]:
        return lambda share: StepVARPlus(keep=share, last=2, **given)

    found = [at(label, plus(given)) for label, given in VARIANTS.items()]
    return [*found, at("stepvar", kept("stepvar"))]


def pruned_at_half() -> list[Entry]:
    """StepVAR at half of the tokens: what its restored features are worth."""
    return [
        Entry(f"stepvar, restore {name}", 1.0, make_method("stepvar", keep=0.5, last=2, restore=name), 1.0)
        for name in ("nearest", "blend")
    ]
