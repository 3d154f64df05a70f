"""Classifier-free guidance: its scale over the passes, and how the branches are combined.

A guidance scale means the same in every family: ``scale * conditional + (1 - scale) * unconditional``. At 1 guidance is
off and the conditional branch runs alone; at 0 the unconditional branch runs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from stepvar.errors import UsageError

Combine = Callable[[Tensor, float], Tensor]
"""From values (2B, ...) of both branches, conditional first, and the guidance scale to the guided ones (B, ...)."""

Value = TypeVar("Value")
Other = TypeVar("Other")

TINY = 1e-12

CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"
BOTH = frozenset((CONDITIONAL, UNCONDITIONAL))
SINGLE_BRANCH = {1.0: frozenset((CONDITIONAL,)), 0.0: frozenset((UNCONDITIONAL,))}
"""The guidance scales at which one branch is enough."""


def branches_for(scale: float) -> frozenset[str]:
    """The branches that a guidance scale needs."""
    return SINGLE_BRANCH.get(scale, BOTH)


# How the branches are combined.


def classifier_free_guidance(values: Tensor, scale: float) -> Tensor:
    """(2B, ...) conditional then unconditional -> (B, ...): ``scale * conditional + (1 - scale) * unconditional``."""
    conditional, unconditional = values.chunk(2)
    return scale * conditional + (1 - scale) * unconditional


@dataclass(frozen=True)
class AdaptiveProjectedGuidance:
    """Adaptive projected guidance (Sadat, Hilliges, Weber; arXiv 2410.02416), in the form that InfinityStar uses.

    Guides by the part of the difference between the branches that is orthogonal to the conditional branch.

    All logits of a sample are one vector. Their difference is first shortened to ``threshold`` (as the root of the
    mean square of its entries), so that a large guidance scale does not saturate what the model is sure of.

    Attributes:
        threshold: largest norm of the difference; 0 does not shorten it.
        parallel: share of the component along the conditional branch that is kept (eta).
    """

    threshold: float = 0.05
    parallel: float = 0.0

    def __call__(self, values: Tensor, scale: float) -> Tensor:
        """(2B, ...) conditional then unconditional -> (B, ...)."""
        conditional, unconditional = values.chunk(2)
        flat = conditional.flatten(1)
        difference = flat - unconditional.flatten(1)
        if self.threshold > 0:
            size = difference.square().mean(dim=1, keepdim=True).sqrt()
            difference = difference * (self.threshold / size).clamp(max=1.0)
        # In double precision: what is left after the projection is a small difference of large sums.
        direction = flat.double()
        direction = direction / direction.norm(dim=1, keepdim=True).clamp(min=TINY)
        along = (difference.double() * direction).sum(dim=1, keepdim=True) * direction
        update = difference.double() - along + self.parallel * along
        return conditional + (scale - 1) * update.to(values.dtype).view_as(conditional)


GUIDANCE_TYPES: dict[str, Combine] = {"cfg": classifier_free_guidance, "apg": AdaptiveProjectedGuidance()}
"""How the logits of the branches can be combined, by name."""


# How one number becomes a scale per pass.


def relative_scales(count: int) -> tuple[float, ...]:
    """The place of each of ``count`` scales in its schedule: from 0 for the first to 1 for the last."""
    return tuple(index / max(count - 1, 1) for index in range(count))


def hold_last(values: Sequence[float]) -> tuple[float, ...]:
    """The last value replaced by the one before it."""
    return (*values[:-1], values[-2]) if len(values) > 1 else tuple(values)


def constant(scale: float, count: int) -> tuple[float, ...]:
    """The same scale at every pass (Infinity, InfinityStar)."""
    return (scale,) * count


def linear(scale: float, count: int) -> tuple[float, ...]:
    """From 1 at the first scale to ``scale`` at the last (VAR; its ``cfg`` is ``scale - 1``)."""
    return tuple(1 + (scale - 1) * place for place in relative_scales(count))


def linear_hold(scale: float, count: int) -> tuple[float, ...]:
    """As :func:`linear`, but the last scale is guided like the one before it (HART)."""
    return hold_last(linear(scale, count))


def linear_window(scale: float, count: int, first: int = 0) -> tuple[float, ...]:
    """As :func:`linear`, but off at the last fifth of the scales (Switti at 1024x1024) and before the scale ``first``.

    The last scales hold most tokens, and one branch alone runs there.
    """
    return within(linear(scale, count), first, unguided_from(count), outside=1.0)


def linear_late_window(scale: float, count: int) -> tuple[float, ...]:
    """As :func:`linear_window`, and off at the first two scales: more varied layouts (Switti at 512x512)."""
    return linear_window(scale, count, first=2)


def unguided_from(count: int) -> int:
    """The first scale of the last fifth of ``count`` scales: 8 of 10, 11 of 14."""
    return count - round(count / 5)


def within(values: Sequence[Value], first: int, end: int, outside: Other) -> tuple[Value | Other, ...]:
    """The values of the scales from ``first`` to ``end`` (exclusive), and another value at the others."""
    return tuple(value if first <= index < end else outside for index, value in enumerate(values))


GUIDANCE_SCHEDULES: dict[str, Callable[[float, int], tuple[float, ...]]] = {
    "constant": constant,
    "linear": linear,
    "linear-hold": linear_hold,
    "linear-window": linear_window,
    "linear-late-window": linear_late_window,
}
"""How one guidance scale is spread over the scales of a schedule, by name."""


def guidance_per_pass(scale: float | Sequence[float], schedule: str | None, default: str, count: int) -> list[float]:
    """One guidance scale per pass.

    Args:
        scale: one number, which a named schedule spreads over the passes, or one number per pass, taken as they are.
        schedule: a name of :data:`GUIDANCE_SCHEDULES`; None: ``default``.

    Raises:
        UsageError: for an unknown schedule, or a schedule beside one number per pass.
    """
    if schedule is not None and schedule not in GUIDANCE_SCHEDULES:
        names = ", ".join(GUIDANCE_SCHEDULES)
        raise UsageError(f"guidance_schedule={schedule!r}: must be one of {names}")
    if isinstance(scale, (int, float)):
        return list(GUIDANCE_SCHEDULES[schedule or default](float(scale), count))
    if schedule is not None:
        raise UsageError("guidance_schedule: guidance_scale already gives one number per scale; give one of the two")
    return list(scale)
