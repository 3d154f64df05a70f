"""VAREdit as the generation loop sees it: Infinity with a pass over a source image in front of the first scale.

The source tokens attend to each other only. Their keys and values stand in front of the cache of every block but the
first, which shows each scale a copy that is averaged down to the scale's own grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stepvar.core.cache import KVCache
from stepvar.core.plan import Plan, Step
from stepvar.core.stack import NO_HOOKS, AttentionHook, Hooks, RunBlocks
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.errors import UsageError
from stepvar.models.infinity.model import Infinity, InfinityRun, InfinityState, StagedText, TextCondition
from stepvar.models.infinity.schedules import schedule_for
from stepvar.models.infinity.tokenizer import POLICY as TOKENIZER_POLICY
from stepvar.models.infinity.transformer import POLICY
from stepvar.models.layers import Rotary
from stepvar.models.model import Shape
from stepvar.models.precision import parts_policy
from stepvar.models.varedit.rope import rotary_tables
from stepvar.utils.device import to_device_async


@dataclass(frozen=True)
class EditCondition(TextCondition):
    """An instruction and the image that it is to change.

    Attributes:
        source: (B, d, H, W), what the tokenizer's encoder gives for the image, neither normalised nor quantised; None,
            which a model refuses: the instruction alone.
    """

    source: Tensor | None = None


@dataclass(frozen=True)
class StagedEdit(StagedText):
    """Texts and source (B, d, H, W) on the device."""

    source: Tensor


@dataclass
class EditState(InfinityState):
    """A running edit.

    Attributes:
        source: keys and values of the source tokens in the first block, at full size.
        source_rotary: cosines and sines of their positions.
    """

    source: KVCache
    source_rotary: Rotary


class SourceRun(InfinityRun):
    """The blocks over the source tokens, of which only keys and values stay."""

    state: EditState

    def cache(self, layer: int) -> KVCache:
        return self.state.cache if layer else self.state.source

    def table(self, step: Step) -> Rotary:
        return self.state.source_rotary

    def end(self, tokens: TokenMap) -> None:
        """Keeps the keys and values of the last block: nothing reads what else it would give."""
        layer = self.depth - 1
        features = self.entered(tokens, layer).features
        modulation = self.state.condition.modulation[layer][self.rows]
        with self.model.block_on_device(layer):
            block = self.model.block_list[layer]
            block.cache_keys(features, layer, modulation, self.fused_attention(layer, tokens.positions))


class EditRun(InfinityRun):
    """The blocks of one scale of the target."""

    model: VAREdit
    state: EditState

    def attention_hook(self, layer: int) -> AttentionHook | None:
        """None in the first block, where the keys in front are other ones at every scale."""
        return self.hooks.attention if layer else None

    def seen_by(self, step: Step, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """In the first block, of scales that run together each sees the source on its own grid."""
        if layer:
            return keys, values
        front, reference = self.cache(0).front(0), self.model.reference(self.state, step)
        own = (part[:, :, front:] for part in (keys, values))
        keys, values = (torch.cat(pair, dim=2) for pair in zip(reference, own, strict=True))
        return keys, values


class VAREdit(Infinity):
    """A model of the VAREdit family, which edits images (see ``docs/models/varedit.md``)."""

    run = EditRun
    # The published code encodes in float32 in any precision.
    policy = parts_policy(POLICY, ((r"encoder\.", "exact"), *TOKENIZER_POLICY))

    def schedule(self, height_over_width: float, resolution: str | None = None) -> ScaleSchedule:
        """The schedule that the model was trained with, of a square.

        Raises:
            UsageError: for another resolution or another shape.
        """
        own = self.config.resolution
        if resolution not in (None, own):
            raise UsageError(
                f"resolution {resolution!r}: this model knows only {own}, to which its positions belong; leave it out, "
                "or take another variant"
            )
        schedule = schedule_for(own, height_over_width)
        if schedule.ratio != 1.0:
            raise UsageError(
                f"aspect ratio {1 / height_over_width:.3g} (width to height): this model edits squares; "
                "an image of any shape is padded to one and cut back, so leave it out"
            )
        return schedule

    def shapes(self) -> Iterator[Shape]:
        own = self.config.resolution
        yield own, 1.0, schedule_for(own, 1.0).grids[-1]

    def stage(self, condition: TextCondition, plan: Plan, padded: bool = False) -> StagedEdit:
        source = condition.source if isinstance(condition, EditCondition) else None
        if source is None:
            raise UsageError("condition: has no source; this model edits an image, give an EditCondition with one")
        expected = (plan.samples, *self.config.latent_size(plan.schedule.grids[-1]))
        if tuple(source.shape) != expected:
            raise UsageError(f"source of shape {tuple(source.shape)}: schedule {plan.schedule.name!r} needs {expected}")
        text = super().stage(condition, plan, padded)
        return StagedEdit(text.prompts, text.negative, text.mask, to_device_async(source.float(), self.device))

    def begin(self, staged: StagedText, plan: Plan, hooks: Hooks = NO_HOOKS) -> EditState:
        """Prepares a generation, and runs the source through the blocks.

        Args:
            hooks: what is done inside the blocks of the source pass. No method acts there: source tokens are read by
                every scale, and there is no coarser map that pruned ones could be restored from.
        """
        assert isinstance(staged, StagedEdit)
        config, schedule, tokens = self.config, plan.schedule, plan.schedule.grids[-1].size
        tables = self.table(("edit", schedule), lambda: rotary_tables(schedule, config.head_dim, self.device))
        room = max((step.grid.size for step in plan.computed), default=0)
        state = EditState(
            self.condition(staged, plan.guided),
            tables[1:],
            cache=self.new_cache(plan, prefix=[room, *[tokens] * (config.depth - 1)]),
            latent=self.new_latent(plan),
            source=self.room_for(plan, [tokens], config.heads),
            source_rotary=tables[0],
        )
        state.cache.leave_room(0, room)
        if plan.computed:
            run = SourceRun(self, state, source_pass(plan), hooks)
            source = TokenMap.dense(self.code_tokens(staged.source, run.step), run.step.grid)
            run.end(run(source, 0, config.depth - 1))
            for layer in range(1, config.depth):
                state.cache.hold(layer)
        return state

    def blocks(self, state: EditState, step: Step, hooks: Hooks = NO_HOOKS) -> RunBlocks:
        """The blocks of a pass, the first of which sees the source on the grid of the pass."""
        state.cache.put_in_front(0, step.row_slice, *self.reference(state, step))
        return super().blocks(state, step, hooks)

    def reference(self, state: EditState, step: Step) -> tuple[Tensor, Tensor]:
        """Keys and values of the source in the first block, averaged to the grid of a pass."""
        full = step.settings.schedule.grids[-1]
        keys, values = (averaged(part, full, step.grid) for part in state.source.read(0, step.row_slice))
        return keys, values

    def finish(self, state: EditState) -> None:
        super().finish(state)
        state.source.free()


def source_pass(plan: Plan) -> Step:
    """The pass over the source: with the grid and the level of the last scale, the rows of the first, not guided."""
    schedule = plan.schedule
    return replace(
        plan.computed[0], index=len(schedule) - 1, grid=schedule.grids[-1], guidance=1.0, dropped=(), together=()
    )


def averaged(entries: Tensor, full: Grid, grid: Grid) -> Tensor:
    """Keys or values (R, heads, N, head_dim) of a full grid, averaged by area over the cells of a smaller one.

    They are averaged as they are: rotated keys are neither rotated nor normalised again.
    """
    if grid == full:
        return entries
    cells = entries.float().unflatten(2, (full.h, full.w))
    narrow = windows(full.w, grid.w, entries.device) @ cells  # (R, heads, H, w, D)
    small = windows(full.h, grid.h, entries.device) @ narrow.flatten(3)  # (R, heads, h, w D)
    return small.unflatten(3, (grid.w, -1)).flatten(2, 3).to(entries.dtype)


def windows(cells: int, count: int, device: torch.device) -> Tensor:
    """The means over ``count`` windows that cover a row of cells, as a matrix (count, cells).

    Window i reaches from ``floor(i cells / count)`` to ``ceil((i + 1) cells / count)``: those of PyTorch's adaptive
    pooling, which not every device has for sizes that do not divide each other.
    """
    place, index = torch.arange(cells, device=device), torch.arange(count, device=device).unsqueeze(1)
    inside = (place >= index * cells // count) & (place < -(-(index + 1) * cells // count))
    return inside / inside.sum(dim=1, keepdim=True)
