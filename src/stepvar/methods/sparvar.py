"""SparVAR: sparse attention at the last scales (CVPR 2026; arXiv 2602.04361)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.core.stack import Attention, AttentionInputs, ModelInfo, SublayerRef
from stepvar.core.tokens import Grid
from stepvar.core.values import Range
from stepvar.errors import UsageError
from stepvar.kernels.sparse_attention import KeyLists, attend_to_lists, attend_with_mass
from stepvar.methods.base import Method, MethodState
from stepvar.methods.registry import register
from stepvar.methods.scores import top_tokens

CPU = torch.device("cpu")


class ChosenKeys(NamedTuple):
    """What a layer hands on from one sparse scale to the next.

    Attributes:
        places: (R, H, G, K) int32, of the keys of each group of queries.
        rest: (R, H, D, h, w), what dense attention gave beyond that to these keys, at the first sparse scale.
        first_row: which row of a state that holds both branches is the first of these.
    """

    places: Tensor
    rest: Tensor
    first_row: int


@dataclass
class SparVARState(MethodState):
    """What SparVAR keeps during a generation.

    Attributes:
        complete: (pass, layer) where every token of all passes so far runs.
        chosen: by layer, the keys chosen so far.
        blocks: by pass, the blocks of keys that each block of queries sees.
    """

    complete: frozenset[tuple[int, int]] = frozenset()
    chosen: dict[int, ChosenKeys] = field(default_factory=dict)
    blocks: dict[int, KeyLists] = field(default_factory=dict)


@register
@dataclass(frozen=True)
class SparVAR(Method[SparVARState]):
    """At the last scales each token attends to few keys; every token is computed.

    The first of these scales is the decision scale. In the first layers (CS4A) its attention is dense, and for each
    group of neighbouring queries the keys with the largest sums of probabilities are chosen; at later scales a group
    attends to the keys of the group at the same relative place, and to its own neighbourhood in a contiguous run of the
    scale's own keys. What dense attention gave beyond the chosen keys is resized and added. In the other layers (CSLA)
    a token sees the first scales and a window around its own place in later ones, in blocks of the matrix of all pairs.

    Attention is the model's own where another method prunes tokens. Not for videos, whose passes do not see earlier
    scales of their clip. Dropping guidance at the last scales, and skipping some, goes with it as in the authors' code:
    ``sparvar+drop-guidance``, ``sparvar+skip-last``. Settings are those of Infinity at 1024x1024; the authors use 11
    layers of CS4A for 2B and 8B (preset ``infinity``).

    Attributes:
        sparse_scales: how many scales from the end have sparse attention; scales that are not run count too.
        cs4a_layers: the first layers, in which keys are chosen; None: a third of them.
        group: neighbouring queries, in the order of the raster, that share the chosen keys.
        key_share: share of the keys at the decision scale that are chosen, rounded to a multiple.
        multiple: numbers of chosen keys, and of the run of own keys, are multiples of it.
        local_windows: sides of the neighbourhoods in CS4A at the scales behind the decision scale; the last entry is
            the last scale, and scales in front of those listed have the first entry.
        sink: scales from the start that CSLA always sees.
        windows: sides of the windows of CSLA, by the scale of the keys; the last entry is the last scale. -1: not seen,
            as are scales in front of those listed that are no sink.
        block: queries and keys of a block in CSLA: it is seen whole if any pair in it is.
    """

    name: ClassVar[str] = "sparvar"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"infinity": {"cs4a_layers": 11}}

    sparse_scales: Annotated[int, Range(1, 1000)] = 3
    cs4a_layers: Annotated[int | None, Range(0, 1000, none="for a third of the layers")] = None
    group: Annotated[int, Range(1, 10**6)] = 192
    key_share: Annotated[float, Range(above=0, most=1)] = 0.2
    multiple: Annotated[int, Range(1, 10**6)] = 112
    local_windows: Annotated[Sequence[int], Range(1, 1000)] = (7, 9)
    sink: Annotated[int, Range(0, 1000)] = 5
    windows: Annotated[Sequence[int], Range(-1, 1000, note="-1 sees nothing")] = (1, 1, 3, 5, 7)
    block: Annotated[int, Range(1, 10**6)] = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.local_windows or not self.windows:
            raise UsageError("local_windows and windows: give at least one side each, counted from the last scale")
        own = self.windows[-self.sparse_scales :]
        if self.sink == 0 and (len(own) < self.sparse_scales or min(own) < 0):
            raise UsageError(
                f"sink=0: a scale without a window of its own sees nothing; give the last {self.sparse_scales} scales "
                "windows of at least 0, or a sink"
            )

    # Whether a plan can be served, and what it takes.

    def check(self, plan: Plan, info: ModelInfo) -> None:
        settings, named = plan.settings, f"method {str(self)!r}"
        schedule, last = settings.schedule, self.sparse_scales
        if schedule.kv_scope != "all" or any(grid.t > 1 for grid in schedule):
            raise UsageError(
                f"{named}: chooses among the keys of earlier scales of an image; this schedule, {schedule.name!r}, is "
                "of clips that do not see them; use a method that prunes tokens, such as stepvar"
            )
        if last <= settings.skipped:
            raise UsageError(
                f"sparse_scales={last}: the last {settings.skipped} scales are not run, so no attention is left to be "
                f"sparse; give at least {settings.skipped + 1}"
            )
        if last >= len(schedule):
            raise UsageError(f"sparse_scales={last}: the schedule has {len(schedule)} scales; the first stays dense")
        if any(any(step.dropped) for step in plan.computed):
            raise UsageError(f"{named}: chooses among all keys, and another method drops some; use one of them")
        if not any(plan.step(index).scales_from_end <= last for index, _ in self._complete(plan)):
            raise UsageError(
                f"{named}: another method prunes tokens at each of the last {last} scales, which leaves their "
                "attention as it is; prune fewer scales, or use one of them"
            )

    @staticmethod
    def _complete(plan: Plan) -> frozenset[tuple[int, int]]:
        """(pass, layer) where every token of all passes so far runs."""
        return frozenset(
            (step.index, layer)
            for step in plan.computed
            for layer, keys in enumerate(plan.attended(step))
            if keys == _tokens_so_far(step)
        )

    def _is_sparse(self, step: Step) -> bool:
        return step.scales_from_end <= self.sparse_scales

    def _chooses_keys(self, layer: int, depth: int) -> bool:
        return layer < (round(depth / 3) if self.cs4a_layers is None else self.cs4a_layers)

    def keys_per_query(self, step: Step, layer: int, depth: int, keys: int) -> int:
        if not self._is_sparse(step) or keys != _tokens_so_far(step):
            return keys
        if not self._chooses_keys(layer, depth):
            return self._seen_per_query(step)
        decision = next((one for one in _passes_so_far(step) if _from_end(step, one) == self.sparse_scales), None)
        if decision is None or step.scales_from_end == self.sparse_scales:
            return keys
        schedule, later = step.settings.schedule, (one for one in _passes_so_far(step) if one > decision)
        chosen = self._count(sum(schedule[one].size for one in _passes_so_far(step) if one <= decision))
        return chosen + sum(self._run_length(schedule[one], _from_end(step, one)) for one in later)

    # What happens at a pass.

    def start(self, plan: Plan) -> SparVARState:
        return SparVARState(complete=self._complete(plan))

    def run_attention(
        self, attend: Attention, inputs: AttentionInputs, ref: SublayerRef, step: Step, state: SparVARState
    ) -> Tensor:
        if not self._is_sparse(step) or (step.index, ref.layer) not in state.complete:
            return attend(inputs)
        q = inputs.queries
        k, v = (_for_each_head(part, q.shape[1]) for part in (inputs.keys, inputs.values))
        if not self._chooses_keys(ref.layer, ref.depth):
            if step.index not in state.blocks:
                state.blocks[step.index] = self._visible_blocks(step, k)
            return attend_to_lists(q, k, v, state.blocks[step.index])
        if step.scales_from_end == self.sparse_scales:
            used = any(index > step.index and layer == ref.layer for index, layer in state.complete)
            return self._choose(q, k, v, ref.layer, step, state) if used else attend(inputs)
        return self._reuse(q, k, v, ref.layer, step, state) if ref.layer in state.chosen else attend(inputs)

    # CS4A: keys are chosen at one scale and used at later ones.

    def _choose(self, q: Tensor, k: Tensor, v: Tensor, layer: int, step: Step, state: SparVARState) -> Tensor:
        """Dense attention; notes the keys that each group of queries attends to most."""
        attended, mass = attend_with_mass(q, k, v, self.group)
        count = self._count(k.shape[2])
        index = top_tokens(mass.flatten(0, 2), count).unflatten(0, mass.shape[:3]).int()
        rest = attended - attend_to_lists(q, k, v, KeyLists(index, self.group, None, count))
        cells = rest.transpose(2, 3).unflatten(3, (step.grid.h, step.grid.w))
        state.chosen[layer] = ChosenKeys(index, cells, step.first_row)
        return attended

    def _count(self, keys: int) -> int:
        """How many of so many keys are chosen; at least one multiple, where there are so many."""
        return min(keys, max(1, round(self.key_share * keys / self.multiple)) * self.multiple)

    def _reuse(self, q: Tensor, k: Tensor, v: Tensor, layer: int, step: Step, state: SparVARState) -> Tensor:
        """Attention to the keys of the scale before and a run of this scale's own, and the resized rest."""
        chosen = state.chosen[layer]
        rows = slice(step.first_row - chosen.first_row, step.first_row - chosen.first_row + len(q))
        runs = self._own_runs(step, k.shape[2], k.device)
        parents = _groups_before(len(runs), chosen.places.shape[2], k.device)
        before = chosen.places[rows, :, parents]
        index = torch.cat([before, runs.expand(*before.shape[:2], -1, -1)], dim=-1)
        rest = chosen.rest[rows]
        state.chosen[layer] = ChosenKeys(index, rest, step.first_row)
        sparse = attend_to_lists(q, k, v, KeyLists(index, self.group, None, index.shape[-1]))
        size = (step.grid.h, step.grid.w)
        resized = F.interpolate(rest.flatten(0, 1), size, mode="bilinear", align_corners=False)
        return sparse + resized.unflatten(0, rest.shape[:2]).flatten(3).transpose(2, 3)

    def _own_runs(self, step: Step, keys: int, device: torch.device) -> Tensor:
        """A contiguous run of the scale's own keys for each group of queries: (G, length) int32.

        It begins at the first cell of the neighbourhoods of the group's queries.
        """
        grid = step.grid
        window, length = self._local_window(step.scales_from_end), self._run_length(grid, step.scales_from_end)
        first = _neighbourhoods(grid, window, device)[:, 0]
        groups = F.pad(first, (0, -len(first) % self.group), value=grid.size).unflatten(0, (-1, self.group))
        starts = (keys - grid.size + groups.amin(dim=1)).clamp(max=keys - length)
        return (starts.unsqueeze(1) + torch.arange(length, device=device)).int()

    def _local_window(self, scales_from_end: int) -> int:
        return self.local_windows[-min(scales_from_end, len(self.local_windows))]

    def _run_length(self, grid: Grid, scales_from_end: int) -> int:
        cells = _most_cells(grid, self._local_window(scales_from_end), self.group)
        return min(grid.size, -(-cells // self.multiple) * self.multiple)

    # CSLA: keys are seen by their places.

    def _visible_blocks(self, step: Step, k: Tensor) -> KeyLists:
        """The keys of all blocks that each block of queries sees, without waiting for the device."""
        total = k.shape[2]
        prefix = total - _tokens_so_far(step)  # a text in front, which is always seen
        seen = self.block_map(step, k.device, prefix)
        blocks = (~seen).byte().sort(dim=-1, stable=True).indices  # those that are seen first, ascending
        within = torch.arange(self.block, device=k.device)
        index = (blocks.unsqueeze(-1) * self.block + within).flatten(1)
        sizes = (total - torch.arange(seen.shape[1], device=k.device) * self.block).clamp(max=self.block)
        counts = (seen * sizes).sum(dim=-1)
        average = self._seen_per_query(step, prefix) if k.is_meta else 0
        return KeyLists(index.int()[None, None], self.block, counts.int(), average)

    def _seen_per_query(self, step: Step, prefix: int = 0) -> int:
        layout = Layout.of(step, prefix)
        return _seen_per_query(layout, self.sink, self.windows, self.block)

    def block_map(self, step: Step, device: torch.device, prefix: int = 0) -> Tensor:
        """Which blocks of keys each block of queries sees: (query blocks, key blocks) bool."""
        return _block_map(Layout.of(step, prefix), self.sink, self.windows, self.block, device)


class Layout(NamedTuple):
    """The keys of a pass, by the passes that they are of.

    Attributes:
        grid: of the queries.
        scales: of the keys: their grids, which scale that is from the start, from 0, and from the end, from 1.
        prefix: keys of a text in front.
    """

    grid: Grid
    scales: tuple[tuple[Grid, int, int], ...]
    prefix: int

    @classmethod
    def of(cls, step: Step, prefix: int) -> Layout:
        schedule = step.settings.schedule
        scales = ((schedule[one], schedule.scale(one), _from_end(step, one)) for one in _passes_so_far(step))
        return cls(step.grid, tuple(scales), prefix)


def _block_map(layout: Layout, sink: int, windows: Sequence[int], block: int, device: torch.device) -> Tensor:
    size = layout.grid.size
    parts = [torch.ones(size, layout.prefix, dtype=torch.bool, device=device)]
    for grid, scale, from_end in layout.scales:
        window = windows[-from_end] if from_end <= len(windows) else -1
        if scale < sink or window < 0:
            parts.append(torch.full((size, grid.size), scale < sink, device=device))
            continue
        rows = _near(layout.grid.h, grid.h, window, device)[:, None, :, None]
        columns = _near(layout.grid.w, grid.w, window, device)[None, :, None, :]
        parts.append((rows & columns).reshape(size, grid.size))
    pairs = torch.cat(parts, dim=1)
    padded = F.pad(pairs, (0, -pairs.shape[1] % block, 0, -size % block))
    return padded.unflatten(1, (-1, block)).any(dim=2).unflatten(0, (-1, block)).any(dim=1)


def _near(length: int, keys: int, window: int, device: torch.device) -> Tensor:
    """Whether a row (or column) of one grid is near that of another: (length, keys) bool."""
    centre = torch.round(torch.arange(length, device=device, dtype=torch.float32) / length * keys)
    return (centre.unsqueeze(1) - torch.arange(keys, device=device)).abs() <= window // 2


@lru_cache(maxsize=256)
def _seen_per_query(layout: Layout, sink: int, windows: Sequence[int], block: int) -> int:
    """How many keys a query sees on average, rounded up."""
    seen = _block_map(layout, sink, windows, block, CPU)
    keys = layout.prefix + sum(grid.size for grid, _, _ in layout.scales)
    high, wide = (
        (total - torch.arange(count) * block).clamp(max=block)
        for total, count in zip((layout.grid.size, keys), seen.shape, strict=True)
    )
    return -(-int((high.unsqueeze(1) * seen * wide).sum()) // layout.grid.size)


def _neighbourhoods(grid: Grid, window: int, device: torch.device) -> Tensor:
    """The cells around each cell, at the border those that are there: (N, window^2), the first the lowest."""
    offsets = torch.arange(window, device=device) - (window - 1) // 2
    rows, columns = (
        (torch.arange(length, device=device).unsqueeze(1) + offsets).clamp(0, length - 1) for length in (grid.h, grid.w)
    )
    cells = rows[:, None, :, None] * grid.w + columns[None, :, None, :]
    return cells.flatten(2).flatten(0, 1)


@lru_cache(maxsize=256)
def _most_cells(grid: Grid, window: int, group: int) -> int:
    """Most cells that the neighbourhoods of a group of queries hold together."""
    near = _neighbourhoods(grid, window, CPU)
    groups = (torch.arange(grid.size) // group).unsqueeze(1).expand_as(near)
    held = torch.zeros(-(-grid.size // group), grid.size, dtype=torch.bool)
    held[groups, near] = True
    return int(held.sum(dim=1).max())


def _groups_before(count: int, before: int, device: torch.device) -> Tensor:
    """The group at the same relative place among ``before`` groups, of each of ``count``."""
    places = (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count * before - 0.5
    return places.round().long().clamp(0, before - 1)


def _passes_so_far(step: Step) -> tuple[int, ...]:
    return tuple(index for index in step.settings.computed if index <= step.index)


def _tokens_so_far(step: Step) -> int:
    """Of the grids of all passes up to this one."""
    return sum(step.settings.schedule[index].size for index in _passes_so_far(step))


def _from_end(step: Step, index: int) -> int:
    return step.settings.schedule.scales_from_end(index)


def _for_each_head(part: Tensor, heads: int) -> Tensor:
    """Keys or values (R, kv_heads, M, D), repeated where several heads share one."""
    return part if part.shape[1] == heads else part.repeat_interleave(heads // part.shape[1], dim=1)
