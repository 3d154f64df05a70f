"""Who takes part: every registered method at each budget by its own speed-up schedule, compositions, and presets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.study.match import TOLERANCE, SpeedupOf, match_cost
from stepvar.core.plan import Settings
from stepvar.errors import UsageError
from stepvar.evaluation.candidates import Candidate, noise_floor
from stepvar.methods import METHODS, Compose, Method, make_method

BUDGETS = (1.3, 1.6, 2.0)
"""Speed-ups of the loop over scales, counted in operations."""

NEAR = 0.03
"""How far from a budget a method may be, as a share of it, to stand in its table."""

COMPOSITIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("stepvar+drop-guidance", {"drop-guidance.last": 1}),
    ("stepvar+drop-guidance", {"drop-guidance.last": 2}),
    ("stepvar:blend+drop-guidance", {"drop-guidance.last": 2}),
    ("fastvar+drop-guidance", {"drop-guidance.last": 2, "skip": 0}),
    ("random+drop-guidance", {"drop-guidance.last": 2}),
    ("scalekv+stepvar", {}),
    ("sparvar+stepvar", {}),
    ("sparvar+drop-guidance", {"drop-guidance.last": 2}),
)
"""Compositions that can be set to a budget, and the settings that the budget does not decide."""

BASELINES: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("skip-last", {"count": count}) for count in (1, 2)),
    *(("drop-guidance", {"last": last}) for last in (1, 2, 3)),
    ("drop-guidance+skip-last", {"drop-guidance.last": 2, "count": 1}),
)
"""What any method has to beat; they cost what they cost."""


def _label(name: str, settings: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())])


FIXED = {_label(name, settings): (name, settings) for name, settings in BASELINES}
"""The baselines by their label."""


@dataclass(frozen=True)
class Entrant:
    """One row.

    Attributes:
        label: unique.
        method: what generates.
        budget: the speed-up that it was set to; None: it costs what it costs.
        speedup: the dense cost over its own: operations, or time where the times are to be equal.
        resampled: of the noise floor, how many of the last scales are sampled again.
        setting: the stage of its speed-up schedule that meets the budget, and the share that is left there.
        more: what else is known of it: operations, cache, measured times.
    """

    label: str
    method: Method
    budget: float | None = None
    speedup: float = 1.0
    resampled: int = 0
    setting: tuple[int, float] | None = None
    more: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.label, self.method, self.resampled)

    def to_dict(self) -> dict[str, Any]:
        own = {"label": self.label, "method": str(self.method), "settings": repr(self.method)}
        return own | {"budget": self.budget, "speedup": self.speedup, **self.more}


def entrants(
    speedup_of: SpeedupOf,
    settings: Settings,
    budgets: Sequence[float] = BUDGETS,
    names: Sequence[str] = (),
    without: Sequence[str] = (),
    shard: tuple[int, int] = (0, 1),
    tolerance: float = TOLERANCE,
) -> list[Entrant]:
    """All that take part, or those whose label begins with one of ``names`` and with none of ``without``.

    Args:
        speedup_of: counts a method, or measures it.
        settings: of the generation, before a method edits them.
        shard: (i, n): only every n-th method, from the i-th on.
        tolerance: costs that differ by less than this share are equal.
    """
    found = list(floors()) if not names and shard[0] == 0 else []
    for label, method in taking_part(names, without, shard).items():
        found += rows(label, method, speedup_of, settings, budgets, tolerance)
    return distinct(found)


def taking_part(
    names: Sequence[str] = (), without: Sequence[str] = (), shard: tuple[int, int] = (0, 1)
) -> dict[str, Method]:
    """By label in front of a budget, what :func:`entrants` sets to budgets."""
    wanted = [(label, method) for label, method in labelled().items() if _wanted(label, names, without)]
    return dict(wanted[shard[0] :: shard[1]])


def floors() -> Iterator[Entrant]:
    """Dense with other random numbers at the last scales."""
    for floor in map(noise_floor, (1, 2)):
        yield Entrant(floor.label, floor.method, resampled=floor.resampled)


def distinct(given: Sequence[Entrant]) -> list[Entrant]:
    """In the order of :func:`labelled`, without those that would generate what an earlier one generates."""
    found: list[Entrant] = []
    places = {label: place for place, label in enumerate(labelled())}
    for own in sorted(given, key=lambda own: places.get(own.label.partition("@")[0], len(places))):
        if all(own.method != other.method or own.resampled != other.resampled for other in found):
            found.append(own)
    return found


def labelled() -> dict[str, Method]:
    """By label in front of a budget, the methods; those of :data:`FIXED` cost what they cost."""
    return {label: make_method(name, **settings) for label, (name, settings) in FIXED.items()} | dict(_named())


def _wanted(label: str, names: Sequence[str], without: Sequence[str] = ()) -> bool:
    return (not names or label.startswith(tuple(names))) and not label.startswith(tuple(without))


def _named() -> Iterator[tuple[str, Method]]:
    for name, method in METHODS.items():
        if name in ("dense", "skip-last", "drop-guidance"):
            continue
        yield name, make_method(name)
        for preset in method.presets:
            yield f"{name}:{preset}", make_method(f"{name}:{preset}")
    for name, settings in COMPOSITIONS:
        if all(part.partition(":")[0] in METHODS for part in name.split("+")):
            yield _label(name, settings), make_method(name, **settings)


def named_settings() -> dict[str, tuple[str, dict[str, Any]]]:
    """By label in front of the budget: the name of a method that a speed-up can be asked of, and what is set beside."""
    found: dict[str, tuple[str, dict[str, Any]]] = {label: (label, {}) for label, _ in _named()}
    found |= {_label(name, settings): (name, settings) for name, settings in COMPOSITIONS}
    # How many scales run without guidance is what a speed-up decides.
    return found | {_label(name, settings): (name, {}) for name, settings in BASELINES if name == "drop-guidance"}


def rows(
    label: str,
    method: Method,
    speedup_of: SpeedupOf,
    settings: Settings,
    budgets: Sequence[float],
    tolerance: float = TOLERANCE,
) -> Iterator[Entrant]:
    """A method at each budget that it reaches; else as it is by default, unless that is slower than dense.

    What costs what it costs (:data:`FIXED`) is there once, whatever that is.
    """
    speedup = _speedup(method, speedup_of)
    if label in FIXED:
        if speedup:
            yield Entrant(label, method, None, speedup)
        return
    tuned = False
    for budget in budgets:
        own = at_budget(f"{label}@{budget:g}", method, budget, speedup_of, settings, tolerance)
        if own is not None:
            tuned = True
            yield own
    if speedup >= 1 and not tuned:
        yield Entrant(label, method, None, speedup)


def _speedup(method: Method, speedup_of: SpeedupOf) -> float:
    """0 where the method does not serve: a preset of another model, a schedule that is too short, no guidance."""
    try:
        return speedup_of(method)
    except UsageError:
        return 0.0


def at_budget(
    label: str,
    method: Method,
    budget: float,
    speedup_of: SpeedupOf,
    settings: Settings,
    tolerance: float = TOLERANCE,
) -> Entrant | None:
    """A method set to a budget by the gentlest stage of its schedule that reaches it; None if none does."""
    try:
        stages = method.speedup_schedule(settings)
    except UsageError:
        return None
    for number, stage in enumerate(stages):
        try:
            found = match_cost(lambda left, stage=stage: stage(1 - left), speedup_of, budget, 0.0, 1.0, tolerance)  # type: ignore[misc]
        except UsageError:
            continue
        if isinstance(method, Compose) and found.knob == 1.0:
            continue  # its part prunes nothing there: it is the rest alone
        if abs(found.speedup / budget - 1) <= NEAR:
            return Entrant(label, found.method, budget, found.speedup, setting=(number, found.knob))
    return None
