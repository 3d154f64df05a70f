"""ScaleKV: few keys and values of most layers stay in the cache (Li et al., NeurIPS 2025; arXiv 2505.19602)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.stack import AttentionInputs, ModelInfo, SublayerRef
from stepvar.core.tokens import Grid
from stepvar.core.values import Range, check_fields
from stepvar.errors import UsageError
from stepvar.methods.base import Method, MethodState
from stepvar.methods.registry import register
from stepvar.methods.scores import top_tokens

CapacityName = Literal["shares", "2b", "8b"]

DRAFTERS = 1 / 16
"""Share of the layers that keep everything: 2 of 32 in the published table of Infinity-2B, 3 of 40 in that of 8B."""

MOST_FOR_DRAFTERS = 0.75
"""Share of the capacity of all layers that these may take: 0.72 in the published table of 8B."""


@dataclass(frozen=True)
class Capacities:
    """How many keys each layer keeps, scale by scale.

    Attributes:
        rows: one per scale, the last for the last scale of the schedule, each with a number for every layer: what
            stays in front of that scale. Behind the last one its row holds once more, which changes no image.
        scales: of the schedules that the numbers are meant for; None: of any.
    """

    rows: Sequence[Sequence[int]]
    scales: Annotated[int | None, Range(1, 1000)] = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.rows or not self.rows[0] or len({len(row) for row in self.rows}) > 1:
            raise UsageError(f"capacities: {len(self.rows)} rows; give at least one, each with a number per layer")
        if any(count < 1 for row in self.rows for count in row):
            raise UsageError("capacities: a layer keeps 0 keys; give at least 1")

    @classmethod
    def published(cls, depth: int, *rows: tuple[Sequence[int], int, int]) -> Capacities:
        """Rows of (drafter layers, what each of them keeps, what each of the others keeps)."""
        return cls(
            tuple(tuple(high if layer in layers else low for layer in range(depth)) for layers, high, low in rows),
            scales=13,
        )

    def at(self, step: Step, layer: int, depth: int) -> int | None:
        """What a layer keeps behind a pass; None: everything.

        Raises:
            UsageError: if they are meant for other models or schedules.
        """
        scales = len(step.settings.schedule)
        if len(self.rows[0]) != depth or self.scales not in (None, scales):
            meant = f"{len(self.rows[0])} layers" + ("" if self.scales is None else f" and {self.scales} scales")
            raise UsageError(
                f"capacities: are those of {meant}; this model has {depth} layers and the schedule {scales} scales; "
                "use capacities 'shares'"
            )
        following = max(1, step.scales_from_end - 1)
        return self.rows[-following][layer] if following <= len(self.rows) else None


PUBLISHED: dict[str, Capacities] = {
    "2b": Capacities.published(
        32, ((0, 23), 920, 632), ((0, 23), 1490, 594), ((0, 23), 2510, 526), ((0, 23), 4100, 420), ((0,), 6385, 465)
    ),
    "8b": Capacities.published(
        40,
        ((0, 1, 2), 909, 629),
        ((0, 1, 2), 1464, 584),
        ((0, 1, 2), 2463, 503),
        ((0, 1, 2), 4054, 374),
        ((0, 1, 2), 6200, 200),
    ),
}
"""The tables of the authors' code, by model: at each scale they add up to 650 for each layer."""


@register
@dataclass(frozen=True)
class ScaleKV(Method):
    """Keeps few keys and values of most layers: a cache of a tenth.

    Behind the attention of a pass each layer keeps as many keys as its capacity: those of the pass's observation window
    (one token in the middle of each of a few cells), and those that the window's queries score highest, each row and
    head its own. The first layers ("drafters") keep everything, the others ("refiners") share what is left, and less
    the larger the scales become. The pass itself still attends to everything that is there. Keys of a text that some
    families put in front always stay. Not for videos, whose clips keep one pass of the clip before at most.

    The presets ``2b`` and ``8b`` are the published tables of Infinity at 1024x1024. The default follows them by shares,
    on any model and schedule.

    Attributes:
        budget: for ``capacities="shares"``: how many keys a layer keeps on average, as a share of all that the last
            scale would see of the others. 1 keeps every key.
        capacities: ``"shares"``, the table of ``"2b"`` or ``"8b"``, or :class:`Capacities`.
        base: no layer drops keys as long as the passes so far had no more tokens; None: as many as a layer keeps on
            average.
        window: tokens of the observation window, a square number. Where a grid has fewer rows or columns than the
            window, its last tokens stand in; where another method prunes tokens, some at even distances.
        kernel: over how many neighbouring keys the largest score holds, an odd number.
    """

    name: ClassVar[str] = "scalekv"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {name: {"capacities": name, "base": 650} for name in PUBLISHED}
    neutral: ClassVar[Mapping[str, Any] | None] = {"budget": 1.0}

    budget: Annotated[float, Range(above=0, most=1, note="1 keeps every key")] = 0.1
    capacities: CapacityName | Capacities = "shares"
    base: Annotated[int | None, Range(1, 10**9, none="for what a layer keeps on average")] = None
    window: Annotated[int, Range(1, 4096)] = 16
    kernel: Annotated[int, Range(1, 4095)] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.isqrt(self.window) ** 2 != self.window:
            raise UsageError(f"window={self.window}: must be a square number, such as 16 or 25")
        if self.kernel % 2 == 0:
            raise UsageError(f"kernel={self.kernel}: must be odd, so that it has a middle; try {self.kernel + 1}")

    # How many keys stay: known before the generation.

    def cached_tokens(self, step: Step, layer: int, depth: int, keys: int) -> int:
        capacity = self.capacity(step, layer, depth)
        return keys if capacity is None else min(keys, capacity)

    def capacity(self, step: Step, layer: int, depth: int) -> int | None:
        """What a layer keeps behind a pass at most; None: everything."""
        if self.capacities == "shares":
            capacity = self._by_shares(step, layer, depth)
        else:
            table = self.capacities if isinstance(self.capacities, Capacities) else PUBLISHED[self.capacities]
            capacity = table.at(step, layer, depth)
        base = self._mean_capacity(step.settings) if self.base is None else self.base
        if capacity is None or _tokens_so_far(step) <= base:
            return None
        return max(capacity, min(self.window, step.grid.size))

    def _mean_capacity(self, settings: Settings) -> int:
        """The share of the tokens of all passes but the last."""
        sizes = [settings.schedule[index].size for index in settings.computed]
        return round(self.budget * sum(sizes[:-1]))

    def _by_shares(self, step: Step, layer: int, depth: int) -> int | None:
        """As the published tables: the same for all layers together at each scale, of which the drafters take theirs.

        Fewer drafters are left as the keys become more, so that they never take almost all.
        """
        if self.budget == 1:
            return None
        together, tokens = depth * self._mean_capacity(step.settings), _tokens_so_far(step)
        beside_windows = max(0, together - depth * self.window) // max(1, tokens - self.window)
        held = min(int(MOST_FOR_DRAFTERS * together / tokens), beside_windows)
        drafters = min(max(1, round(DRAFTERS * depth)), held)
        if layer < drafters:
            return None if step.is_read else tokens - step.grid.size  # what was there before: nothing follows
        return max(1, (together - drafters * tokens) // (depth - drafters))

    def check(self, plan: Plan, info: ModelInfo) -> None:
        if self.capacities == "shares" and self.budget == 1:
            return
        if not any(any(step.dropped) for step in plan.computed if step.is_read):
            raise UsageError(
                f"method {str(self)!r}: no layer would drop a key at this schedule; "
                "keep a smaller share, or use capacities 'shares'"
            )

    # Which keys stay.

    def select_cached(
        self, inputs: AttentionInputs, count: int, ref: SublayerRef, step: Step, state: MethodState
    ) -> Tensor:
        keys, own = inputs.keys, inputs.queries.shape[2]
        window = self.window_of(step.grid, own, keys.device)
        scores = self._scores(inputs, window)  # (R, kv_heads, M)
        total = keys.shape[2]
        capacity = self.capacity(step, ref.layer, ref.depth)
        prefix = 0 if capacity is None else max(0, count - capacity)  # a text in front, which no plan counts
        always = torch.cat([torch.arange(prefix, device=keys.device), total - own + window])
        pooled = F.max_pool1d(
            scores.index_fill(-1, always, -torch.inf), self.kernel, stride=1, padding=self.kernel // 2
        )
        pooled = pooled.index_fill(-1, always, torch.inf)
        return top_tokens(pooled.flatten(0, 1), count).unflatten(0, pooled.shape[:2])

    def _scores(self, inputs: AttentionInputs, window: Tensor) -> Tensor:
        """What the queries of the window give to each key, added up: (R, kv_heads, M).

        The queries are the projected ones, without bias, norm, scale or rotation, as in the authors' code. The sum over
        the window, and over the heads that share a head of the keys, is taken in front of the product.
        """
        queries, keys = inputs.projection.without_bias(window).float(), inputs.keys
        summed = queries.sum(dim=2).unflatten(1, (keys.shape[1], -1)).sum(dim=2) / math.sqrt(keys.shape[-1])
        return (keys @ summed.to(keys.dtype).unsqueeze(-1)).squeeze(-1)

    def window_of(self, grid: Grid, own: int, device: torch.device) -> Tensor:
        """Which of the ``own`` tokens of a pass make up its observation window, ascending."""
        side = math.isqrt(self.window)
        if own != grid.size:  # pruned: places are not known, but the order is
            count = min(self.window, own)
            return (2 * torch.arange(count, device=device) + 1) * own // (2 * count)
        if min(grid.h, grid.w) < side:
            return torch.arange(max(0, own - self.window), own, device=device)
        rows, columns = (
            torch.arange(side, device=device) * (length // side) + (length // side - 1) // 2
            for length in (grid.h, grid.w)
        )
        return (rows.unsqueeze(1) * grid.w + columns).flatten()


def _tokens_so_far(step: Step) -> int:
    """Of the grids of all passes up to this one."""
    schedule = step.settings.schedule
    return sum(schedule[index].size for index in step.settings.computed if index <= step.index)
