"""InfinityStar as the generation loop sees it: transformer, tokenizer, and the state of a generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.core.split import held_rows
from stepvar.core.stack import AttentionInputs, Projection
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.errors import UsageError
from stepvar.models.base import Staged
from stepvar.models.blocks import BlockRun, GenerationState, ResidualStream
from stepvar.models.infinity.model import StagedText, TextCondition, stage_text
from stepvar.models.infinity_star.codes import codes_of, enlarge_codes, quantise, shrink
from stepvar.models.infinity_star.config import InfinityStarConfig
from stepvar.models.infinity_star.rope import RotaryTable, text_coordinates, token_coordinates
from stepvar.models.infinity_star.schedules import code_passes, latents_of, schedule_for, shapes
from stepvar.models.infinity_star.tokenizer import POLICY as TOKENIZER_POLICY
from stepvar.models.infinity_star.tokenizer import VideoTokenizer
from stepvar.models.infinity_star.transformer import POLICY, BlockContext, InfinityStarTransformer
from stepvar.models.layers import Rotary, grouped_attention
from stepvar.models.model import Shape, VARModel
from stepvar.models.precision import parts_policy


@dataclass(frozen=True)
class Segment:
    """Latent frames that every pass sees beside the text; they see only themselves.

    Attributes:
        latent: (B, d, t, h, w).
        frames: coordinate of each frame in time.
        scale: coordinate on the axis of the passes, counted from that of the first pass.
    """

    latent: Tensor
    frames: tuple[int, ...]
    scale: int


@dataclass(frozen=True)
class VideoCondition(TextCondition):
    """What a video is to show.

    Attributes:
        segments: earlier frames that the video goes on from, for models that go on clip by clip.
        before: (B, d, t, h, w), latent frames before the video, for the decoder only.
    """

    segments: tuple[Segment, ...] = ()
    before: Tensor | None = None


@dataclass(frozen=True)
class StagedVideo(Staged):
    """What a video is to show, on the device; see :class:`VideoCondition`."""

    text: StagedText
    segments: tuple[Segment, ...]
    before: Tensor | None


@dataclass
class StarState(GenerationState):
    """A running generation; the cache holds text and segments, and after them the last pass of the clip before.

    Attributes:
        rotary: positions on all axes.
        prefix: how many tokens text and segments have.
        text_mask: (R, 1, 1, prefix), which of them are there; None: all.
        clips: where each clip lies in the accumulated latent.
        before: latent frames before it, which its first frames are decoded from, too.
        decoded: latent frames of the clips that have begun.
    """

    rotary: RotaryTable
    prefix: int
    text_mask: Tensor | None
    clips: tuple[slice, ...]
    before: Tensor | None = None
    decoded: int = 0
    decoded_from: ClassVar[tuple[str, ...]] = ("latent", "before", "decoded")

    def clip(self, step: Step) -> Tensor:
        """The sum of codes of the clip of a step (B, d, t, H, W), a view."""
        return self.latent[:, :, self.clips[step.clip]]


class StarRun(BlockRun["InfinityStar", StarState]):
    """The blocks of one pass."""

    def run_block(self, tokens: TokenMap, layer: int) -> TokenMap:
        context = BlockContext(self.rotary_at, self.attend, self.hook)
        return self.model.block_list[layer](tokens, layer, context)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, projection: Projection) -> Tensor:
        """Attention over the text, the end of the clip before, and this pass, which is cached only if it is read."""
        new_keys, new_values, attend = self._join(layer, k.shape[2])
        new_keys.copy_(k)
        new_values.copy_(v)
        return attend(q, projection)

    def run_fused_block(self, stream: ResidualStream, positions: Tensor, layer: int) -> None:
        self.model.block_list[layer].fused(stream, layer, self.rotary_at(positions), self._join)

    def _join(self, layer: int, count: int) -> tuple[Tensor, Tensor, Callable[[Tensor, Projection], Tensor]]:
        cache, rows = self.state.cache, self.rows
        old = cache.read(layer, rows)
        start, end = old[0].shape[2], old[0].shape[2] + count
        keys, values = (part.new_empty(*part.shape[:2], end, part.shape[3]) for part in old)
        keys[:, :, :start], values[:, :, :start] = old
        new_keys, new_values = keys[:, :, start:], values[:, :, start:]

        def attend(q: Tensor, projection: Projection) -> Tensor:
            result = self.attend_cached(layer, AttentionInputs(q, keys, values, projection, self._mask(end)))
            if self.step.is_read:
                cache.forget(layer, self.state.prefix)
                cache.append(layer, new_keys, new_values, rows)
            return result

        return new_keys, new_values, attend

    def plain_attention(self, inputs: AttentionInputs) -> Tensor:
        return grouped_attention(inputs.queries, inputs.keys, inputs.values, inputs.mask)

    def _mask(self, seen: int) -> Tensor | None:
        if self.state.text_mask is None:
            return None
        return _extend(self.state.text_mask[self.rows], seen)

    def rotary(self, positions: Tensor, step: Step) -> Rotary:
        state = self.state
        frame = step.settings.schedule.frame or step.grid
        first = state.clips[step.clip].start
        scale = self.model.config.text_maxlen + step.index
        frames = range(first, first + step.grid.t)
        return state.rotary.at(token_coordinates(positions, step.grid, frame, scale, frames))


class InfinityStar(VARModel):
    """A text-to-video model of the InfinityStar family (see ``docs/models/infinitystar.md``)."""

    policy = parts_policy(POLICY, TOKENIZER_POLICY)
    sublayers = ("self", "ffn")
    run = StarRun
    config: InfinityStarConfig
    transformer: InfinityStarTransformer
    tokenizer: VideoTokenizer

    def __init__(self, config: InfinityStarConfig) -> None:
        super().__init__(config, InfinityStarTransformer(config), VideoTokenizer(config.tokenizer))
        self.block_list = self.transformer.block_list  # a plain list: the blocks are registered once

    def schedule(
        self, height_over_width: float, resolution: str | None = None, seconds: float | None = None
    ) -> ScaleSchedule:
        """The published schedule nearest to an image shape.

        Args:
            seconds: length of the video; 0: a still image; None: the model's usual length.

        Raises:
            UsageError: for a resolution or a length that the model does not know.
        """
        config = self.config
        latents = config.usual_latents if seconds is None else latents_of(config, seconds)
        return schedule_for(config, height_over_width, latents, resolution)

    def shapes(self) -> Iterator[Shape]:
        most = min(len(self.config.image_repetitions), len(self.config.video_repetitions))
        for name, ratios in shapes(self.config).items():
            for ratio, sides in ratios.items():
                if len(sides) <= most:
                    yield name, ratio, Grid(1, *sides[-1])

    def stage(self, condition: VideoCondition, plan: Plan, padded: bool = False) -> StagedVideo:
        if plan.settings.smooth:
            raise UsageError("smooth: InfinityStar's codes are bits, which have no codebook to blend; leave it off")
        if plan.schedule.kv_scope != "clip":
            raise UsageError(f"schedule {plan.schedule.name!r}: needs the clips of a schedule of this model")
        longest = self.config.text_maxlen
        segments = tuple(replace(one, latent=one.latent.to(self.device)) for one in condition.segments)
        # Padding needs a mask at every attention, which costs a fifth of a long video's time: `padded` is passed over.
        staged = stage_text(condition, plan.guided, False, longest, self.device, self.precision.residual)
        return StagedVideo(staged, segments, condition.before)

    def begin(self, staged: StagedVideo, plan: Plan) -> StarState:
        """Allocates the caches, and runs text and segments through the blocks."""
        config, batch = self.config, plan.samples
        text, mask = self.text(staged.text, plan.guided), staged.text.mask
        prefix = text.shape[1] + sum(segment.latent[0, 0].numel() for segment in staged.segments)
        clips = plan.schedule.clip_slices
        full = plan.schedule.grids[-1]
        coordinates = [config.text_maxlen + len(plan.schedule), clips[-1].stop, *full.shape]
        length = max(*coordinates, *(config.text_maxlen + segment.scale + 1 for segment in staged.segments))
        state = StarState(
            rotary=self.table(("rotary", length), lambda: RotaryTable(config.head_dim, length, self.device)),
            cache=self.new_cache(plan, config.kv_heads, prefix),
            prefix=prefix,
            text_mask=None if mask is None else _extend(mask, prefix),
            latent=torch.zeros(batch, config.token_channels, clips[-1].stop, full.h, full.w, device=self.device),
            clips=clips,
            before=staged.before,
        )
        own = held_rows(plan)
        own_mask = None if mask is None else mask[own]
        self._cache_context(state, text[own], text_coordinates(text.shape[1], self.device), own_mask)
        for segment in staged.segments:
            self._cache_segment(state, segment, plan.schedule.frame or full)
        return state

    def text(self, staged: StagedText, guided: bool) -> Tensor:
        """Text tokens (R, L, C): conditional rows, and after them unconditional ones if guided."""
        return self.transformer.text_tokens(staged.rows(guided, self.transformer.null_text))

    def segment_tokens(self, segment: Segment) -> Tensor:
        """Tokens (B, t h w, C) of the latent frames of a segment."""
        return self.transformer.cell_tokens(as_cells(segment.latent))

    def _cache_segment(self, state: StarState, segment: Segment, frame: Grid) -> None:
        grid = Grid(*segment.latent.shape[2:])
        positions = torch.arange(grid.size, device=self.device).unsqueeze(0)
        scale = self.config.text_maxlen + segment.scale
        self._cache_context(
            state, self.segment_tokens(segment), token_coordinates(positions, grid, frame, scale, segment.frames)
        )

    def _cache_context(self, state: StarState, tokens: Tensor, coordinates: Tensor, mask: Tensor | None = None) -> None:
        """Runs tokens that see only themselves through the blocks, and keeps their keys and values.

        Tokens of fewer rows than the cache holds are the same for both branches.
        """
        times = state.cache.rows // len(tokens)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, _: Projection) -> Tensor:
            state.cache.append(layer, k.repeat(times, 1, 1, 1), v.repeat(times, 1, 1, 1))
            return grouped_attention(q, k, v, mask)

        self.transformer.run_blocks(tokens, state.rotary.at(coordinates), attend)

    def embed(self, state: StarState, step: Step) -> TokenMap:
        return TokenMap.dense(self.code_tokens(state.latent, step), step.grid)

    def next_tokens(self, latent: Tensor, step: Step) -> Tensor:
        """What a pass starts from: its clip so far, averaged down to its grid (B, N, d); zeros where a clip begins."""
        clip = latent[:, :, step.settings.schedule.clip_slices[step.clip]]
        return as_cells(shrink(clip, step.grid))

    def row_logits(self, state: StarState, features: Tensor, step: Step) -> Tensor:
        return self.transformer.logits(features, step.scale)

    def accumulate(
        self, state: StarState, indices: Tensor, step: Step, weights: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        clip = state.clip(step)
        codes = codes_of(self.latent_bits(indices, step))
        if mask is not None:
            codes = codes * mask.unflatten(1, step.grid.shape).unsqueeze(1)
        clip += enlarge_codes(codes, clip.shape[1], (clip.shape[3], clip.shape[4]))
        state.decoded = state.clips[step.clip].stop

    def latent_bits(self, indices: Tensor, step: Step) -> Tensor:
        """Bits by token (B, N, bits) -> by cell (B, bits, t, h, w)."""
        return indices.transpose(1, 2).unflatten(2, step.grid.shape)

    def codes(self, images: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
        features = self.tokenizer.encode(images.unsqueeze(2), mean=True)
        bits, _ = quantise(features, code_passes(self.config, schedule))
        return [bit.flatten(2).transpose(1, 2).long() for bit in bits]

    def pixels(self, state: StarState, samples: slice, tile: int | None) -> Tensor:
        """The videos so far: (B, 3, F, H, W) in [-1, 1], in float32; an image has one frame."""
        latent = state.latent[samples, :, : max(1, state.decoded)]
        if state.before is None:
            return self.tokenizer.decode(latent, tile).clamp(-1, 1)
        frames = self.config.tokenizer.frame_stride * latent.shape[2]
        latent = torch.cat([state.before[samples], latent], dim=2)
        return self.tokenizer.decode(latent, tile)[:, :, -frames:].clamp(-1, 1)


def as_cells(latent: Tensor) -> Tensor:
    """Latent frames (B, d, t, h, w) -> (B, t h w, d)."""
    return latent.flatten(2).transpose(1, 2)


def _extend(mask: Tensor, total: int) -> Tensor:
    """A mask (R, 1, 1, L) with more tokens after, all of which are there: (R, 1, 1, total)."""
    return torch.cat([mask, mask.new_ones(*mask.shape[:3], total - mask.shape[3])], dim=3)
