"""Which methods an evaluation compares: those asked for, dense, and the baselines that they must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from stepvar.errors import UsageError
from stepvar.evaluation.folder import check_labels
from stepvar.methods import Compose, Dense, DropGuidance, Method, Random, SkipLast
from stepvar.methods.pruning import Pruning

FLOORS = (1, 2)
"""Numbers of last scales that are sampled again for the noise floor."""

BASELINES: tuple[Method, ...] = (SkipLast(), DropGuidance())
"""Methods beside random pruning that every table has."""


@dataclass(frozen=True)
class Candidate:
    """One row of a comparison.

    Attributes:
        label: its name in tables.
        method: what generates.
        resampled: how many of the last scales take other random numbers: with dense generation, the noise floor.
    """

    label: str
    method: Method
    resampled: int = 0


DENSE = Candidate("dense", Dense())


def noise_floor(last: int) -> Candidate:
    """Dense generation with the last scales sampled again and nothing pruned."""
    return Candidate(f"floor-{last}", Dense(), resampled=last)


def with_baselines(methods: Sequence[tuple[str, Method]], floors: Sequence[int] = FLOORS) -> list[Candidate]:
    """Dense first, then the methods asked for, then baselines that are not among them, then the noise floor.

    Random pruning takes the settings of each pruning method asked for, so that it costs the same.

    Args:
        methods: (label, method), labels unique.

    Raises:
        UsageError: for two methods of one label, or whose labels are one folder.
    """
    labels = [label for label, _ in methods]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"methods: {label!r} is given {labels.count(label)} times; give each once")
    found = [DENSE, *(Candidate(label, method) for label, method in methods if label != DENSE.label)]
    for baseline in [equal for _, method in methods for equal in _random(method)] or [Random()]:
        if all(baseline != other.method for other in found):
            found.append(Candidate(_label(baseline), baseline))
    for baseline in BASELINES:
        if not any(isinstance(candidate.method, type(baseline)) for candidate in found):
            found.append(Candidate(baseline.name, baseline))
    found += [noise_floor(last) for last in floors]
    check_labels([candidate.label for candidate in found])
    return found


def _random(method: Method) -> list[Method]:
    """Random pruning with the settings of a pruning method, or of the one in a composition."""
    if isinstance(method, Compose):
        return [
            Compose(*(baseline if part is own else part for part in method.parts))
            for own in method.parts
            for baseline in _random(own)
        ]
    if not isinstance(method, Pruning) or isinstance(method, Random):
        return []
    return [Random(**{field.name: getattr(method, field.name) for field in fields(Pruning)})]


def _label(method: Method) -> str:
    """A label that says the settings that are not the defaults."""
    if isinstance(method, Compose):
        return "+".join(_label(part) for part in method.parts)
    changed = [
        f"{field.name}={_word(getattr(method, field.name))}"
        for field in fields(method)
        if getattr(method, field.name) != field.default
    ]
    return " ".join([method.name, *changed])


def _word(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
