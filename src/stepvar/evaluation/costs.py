"""What methods cost: operations counted from shapes, settings of equal cost, and measured time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from stepvar.core.plan import Plan
from stepvar.errors import UsageError
from stepvar.methods import Method
from stepvar.models.base import CountedModel
from stepvar.models.blocks import planned_works

SEARCH_STEPS = 40


def counted_flops(model: CountedModel, plan: Plan, method: Method, text: int, samples: int = 1) -> int:
    """Operations of the loop over scales, from shapes alone: what the report of a generation will count.

    Args:
        plan: as given to the generation, before the method edits it.
        text: tokens of the condition.
    """
    return sum(work.flops for _, work in planned_works(model, method.edit(plan), method, samples, text))


@dataclass(frozen=True)
class Matched:
    """A setting of a method that costs what was asked for, as nearly as it can.

    Attributes:
        method: with the setting.
        knob: the setting's value.
        speedup: the dense operations over the method's.
    """

    method: Method
    knob: float
    speedup: float


def match_cost(
    build: Callable[[float], Method],
    speedup_of: Callable[[Method], float],
    target: float,
    lowest: float = 0.02,
    highest: float = 1.0,
) -> Matched:
    """Finds the knob with which a method is ``target`` times as cheap as dense, by bisection.

    Args:
        build: the method of a knob; a higher knob costs more (a share of tokens kept).
        speedup_of: counts a method.
        target: dense cost over the method's, above 1.
        lowest, highest: where the knob may lie; if the target lies outside, the nearer end is taken.

    Raises:
        UsageError: for a target that is not above 1.
    """
    if not target > 1:
        raise UsageError(f"speed-up {target}: must be above 1")
    low, high = lowest, highest
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        if speedup_of(build(middle)) > target:
            low = middle
        else:
            high = middle
    nearest = min((low, high), key=lambda knob: abs(speedup_of(build(knob)) - target))
    method = build(nearest)
    return Matched(method, nearest, speedup_of(method))


@dataclass
class Clock:
    """Marks in time on a device; on CUDA they are events, so that nothing waits until they are read.

    Attributes:
        device: whose work is timed.
    """

    device: torch.device
    marks: list[float | torch.cuda.Event] = field(default_factory=list)

    def mark(self) -> None:
        """Sets a mark behind all work that was started so far."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
            return
        if self.device.type == "mps":
            torch.mps.synchronize()
        self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds between consecutive marks; waits for the last of them."""
        pairs: list[float] = []
        last = self.marks[-1]
        if isinstance(last, torch.cuda.Event):
            last.synchronize()
        for first, second in zip(self.marks, self.marks[1:], strict=False):
            if isinstance(first, torch.cuda.Event) and isinstance(second, torch.cuda.Event):
                pairs.append(first.elapsed_time(second) / 1e3)
            elif isinstance(first, float) and isinstance(second, float):
                pairs.append(second - first)
        return pairs


def turns(count: int, number: int) -> Sequence[int]:
    """The order of ``count`` candidates in round ``number``: forwards and backwards in turn, each time begun elsewhere.

    A machine whose speed drifts then slows none of them more than the others.
    """
    order = list(range(count))
    shift = (number // 2 * 7) % max(count, 1)
    order = order[shift:] + order[:shift]
    return order if number % 2 == 0 else order[::-1]
