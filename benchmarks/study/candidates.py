"""Who takes part: the methods at each budget, and the variants of StepVAR's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.study.match import SpeedupOf, match_cost
from stepvar.evaluation.candidates import Candidate, noise_floor
from stepvar.methods import Method, make_method
from stepvar.methods.restoration import Blend
from stepvar.methods.scores import NORMALISATIONS

BUDGETS = (1.3, 1.6, 2.0)
"""Speed-ups of the loop over scales that tunable methods are set to, counted in operations."""

ABLATED = 1.6
"""The budget that settings are varied at."""

LAST = 2
"""Scales that are pruned: those that hold more than half of the tokens."""


@dataclass(frozen=True)
class Entry:
    """One candidate of the study.

    Attributes:
        group: the question that it belongs to.
        label: unique in its group and budget.
        method: what generates.
        budget: the speed-up that it was set to; None: it costs what it costs.
        knob: the setting that was found for the budget.
        speedup: the dense operations over its own.
        resampled: of the noise floor, how many of the last scales are sampled again.
    """

    group: str
    label: str
    method: Method
    budget: float | None = None
    knob: float | None = None
    speedup: float = 1.0
    resampled: int = 0

    @property
    def key(self) -> str:
        """Unique in the study."""
        return f"{self.group}/{self.label}" + (f"@{self.budget}" if self.budget else "")

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.key, self.method, self.resampled)

    def to_dict(self) -> dict[str, Any]:
        names = ("group", "label", "budget", "knob", "speedup")
        own = {name: getattr(self, name) for name in names}
        return own | {"method": str(self.method), "settings": repr(self.method)}


Build = Callable[[float], Method]


def kept(name: str, **settings: Any) -> Build:
    """A method as a function of the share of tokens that it keeps at the last scales."""
    own = settings if "stepvar.last" in settings else {"last": LAST, **settings}
    return lambda share: make_method(name, keep=share, **own)


def fastvar(share: float) -> Method:
    """FastVAR's rule at the same two scales, none skipped, all blocks but the first and the last pruned."""
    prune = min(1 - share, 0.98)
    return make_method("fastvar", prune=(prune, prune), skip=0, blocks_before=1, blocks_after=1)


TUNABLE: dict[str, Build] = {
    "stepvar": kept("stepvar"),
    "stepvar, weight 1": kept("stepvar", structure_weight=1.0),
    "high-pass": kept("high-pass"),
    "pca": kept("pca"),
    "l2-norm": kept("magnitude:l2-norm"),
    "mean-distance": kept("magnitude:mean-distance"),
    "latent-delta": kept("latent-delta"),
    "random": kept("random"),
    "sparsevar": kept("sparsevar"),
    "fastvar": fastvar,
    "coverage": kept("coverage"),
    "blend": kept("stepvar:blend"),
    "taper": kept("stepvar:taper"),
}
"""Methods that can be set to any budget."""

COMPOSED: dict[str, Build] = {
    "stepvar+drop-guidance": kept("stepvar+drop-guidance", **{"stepvar.last": LAST, "drop-guidance.last": 1}),
}
"""Those that begin at a speed-up of about 1.35, so that the first budget is not theirs."""

FIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "skip-last 1": ("skip-last", {"count": 1}),
    "skip-last 2": ("skip-last", {"count": 2}),
    "drop-guidance 1": ("drop-guidance", {"last": 1}),
    "drop-guidance 2": ("drop-guidance", {"last": 2}),
    "drop-guidance 3": ("drop-guidance", {"last": 3}),
    "drop-guidance 1, unconditional": ("drop-guidance", {"last": 1, "branch": "unconditional"}),
    "fastvar, one scale skipped": ("fastvar", {"prune": (0.5,), "skip": 1, "blocks_before": 1, "blocks_after": 1}),
}
"""Methods that cost what they cost."""


def entries(speedup_of: SpeedupOf, groups: Sequence[str] = (), budgets: Sequence[float] = BUDGETS) -> list[Entry]:
    """The candidates of some groups, or of all, but dense; the important ones first."""
    found: list[Entry] = []
    if _takes_part("floor", groups):
        floors = [noise_floor(last) for last in (1, 2, 3)]
        found += [Entry("floor", floor.label, floor.method, resampled=floor.resampled) for floor in floors]
    if _takes_part("methods", groups):
        for budget in budgets:
            for label, build in (TUNABLE | (COMPOSED if budget > BUDGETS[0] else {})).items():
                found.append(at_budget("methods", label, build, budget, speedup_of))
        for label, (name, settings) in FIXED.items():
            method = make_method(name, **settings)
            found.append(Entry("methods", label, method, speedup=speedup_of(method)))
    chosen = [row for row in variants() if _takes_part(row[0], groups)]
    return found + [at_budget(group, label, build, ABLATED, speedup_of) for group, label, build in chosen]


def _takes_part(group: str, groups: Sequence[str]) -> bool:
    return not groups or group in groups


def at_budget(group: str, label: str, build: Build, budget: float, speedup_of: SpeedupOf) -> Entry:
    """A tunable method at a budget, or as near as it can come."""
    found = match_cost(build, speedup_of, budget)
    return Entry(group, label, found.method, budget, round(found.knob, 4), found.speedup)


def variants() -> Iterator[tuple[str, str, Build]]:
    """(group, label, method of a knob): each question varies one thing, everything else as in the default."""
    for normalisation in NORMALISATIONS:
        for weight in (0.1, 0.25, 0.5, 1.0, 2.0, 4.0):
            settings: dict[str, Any] = {"structure_weight": weight, "normalisation": normalisation}
            yield "weight", f"{normalisation}, weight {weight:g}", kept("stepvar", **settings)
    for iterations in (1, 2, 4, 8, 16):
        yield "iterations", f"{iterations}", kept("stepvar", power_iterations=iterations, structure_weight=1.0)
    for before, after in ((0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (0, 2), (1, 1), (2, 1)):
        settings = {"blocks_before": before, "blocks_after": after}
        yield "span", f"first {before}, last {after} dense", kept("stepvar", **settings)
    for scope in ("stack", "block", "sublayer"):
        for what in ("state", "update"):
            for name in ("stepvar", "random"):
                yield "shape", f"{name}, {scope}, {what}", kept(name, scope=scope, propagate=what)
    scores = {"stepvar": "stepvar", "mean-distance": "magnitude:mean-distance", "random": "random"}
    for label, name in scores.items():
        for restore in ("nearest", "blend", "anchors", "cached"):
            for what in ("state", "update"):
                yield "restore", f"{label}, {restore}, {what}", kept(name, restore=restore, propagate=what)
    for label in ("stepvar", "mean-distance"):
        for restore in ("nearest", "cached"):
            settings = {"restore": restore, "propagate": "update", "scope": "sublayer"}
            yield "restore", f"{label}, {restore}, update, each sub-layer", kept(scores[label], **settings)
    for branches in ("shared", "separate"):
        yield "branches", branches, kept("stepvar", branches=branches)
    for last in (1, 2, 3, 4):
        yield "scales", f"last {last}", kept("stepvar", last=last)
    for cover in (0.25, 0.5, 1.0):
        yield "variants", f"coverage, cover {cover:g}", kept("coverage", cover=cover)
    for neighbours in (2, 4, 8):
        yield "variants", f"blend of {neighbours}", kept("stepvar", restore=Blend(neighbours))
    for taper in (0.0, 0.25, 0.5, 1.0):
        yield "variants", f"taper {taper:g}", kept("stepvar", taper=taper)
