"""Which methods an evaluation compares: those asked for, dense, and the null methods that they must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from stepvar.errors import UsageError
from stepvar.evaluation.drawing import DENSE, Candidate, noise_floor
from stepvar.methods import METHODS, Compose, Method, Random, make_method
from stepvar.methods.pruning import Pruning

FLOORS = (1, 2)
"""Numbers of last scales whose draws are made anew for the noise floor."""

NULLS = ("skip-last", "drop-guidance")
"""Methods beside random pruning that every table has, with their default settings."""


def with_nulls(methods: Sequence[tuple[str, Method]], floors: Sequence[int] = FLOORS) -> list[Candidate]:
    """Dense first, then the methods asked for, then null methods that are not among them, then the noise floor.

    Random pruning takes the settings of each pruning method asked for, so that it costs the same.

    Args:
        methods: (label, method), labels unique.

    Raises:
        UsageError: for two methods of one label.
    """
    labels = [label for label, _ in methods]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"methods: {label!r} is given {labels.count(label)} times; give each once")
    found = [DENSE, *(Candidate(label, method) for label, method in methods if label != DENSE.label)]
    for null in [null for _, method in methods for null in _random(method)] or [Random()]:
        _add(found, Candidate(_label(null), null))
    for name in NULLS:
        if not any(isinstance(candidate.method, METHODS[name]) for candidate in found):
            _add(found, Candidate(name, make_method(name)))
    return found + [noise_floor(last) for last in floors]


def _add(found: list[Candidate], candidate: Candidate) -> None:
    if all(candidate.method != other.method for other in found):
        found.append(candidate)


def _random(method: Method) -> list[Method]:
    """Random pruning with the settings of a pruning method, or of the one in a composition."""
    if isinstance(method, Compose):
        return [
            Compose(*(null if part is own else part for part in method.parts))
            for own in method.parts
            for null in _random(own)
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
