"""FastSTAR: updates of videos where the last one changed them, as a public reproduction does it for InfinityStar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.stack import ModelInfo, PassResult, RunBlocks
from stepvar.core.tokens import TokenMap, scatter_tokens
from stepvar.core.values import Range
from stepvar.errors import UsageError
from stepvar.methods.base import Method, MethodState, Stage
from stepvar.methods.pruning import Selected
from stepvar.methods.registry import register
from stepvar.methods.scores import top_tokens

MOST_PRUNED = 0.9
"""For a speed-up no scale is pruned by more."""


@dataclass
class FastSTARState(MethodState):
    """What FastSTAR keeps during a generation.

    Attributes:
        latents: the sum of codes behind the two passes before, the earlier first; None where there was no pass.
        kept: the tokens (B, K) that are kept at this pass; None: all.
    """

    latents: tuple[Tensor | None, Tensor | None] = (None, None)
    kept: Tensor | None = None


@register
@dataclass(frozen=True)
class FastSTAR(Method[FastSTARState]):
    """Keeps the tokens where the last update changed the latent most, and where frames differ; the others add nothing.

    No official code was released; this is the rule of a public reproduction for InfinityStar. The score of a latent
    cell is the norm (of the order ``power``) of two distances, each one minus the cosine over channels: between the
    latent in front of the last update and behind it, and between a frame and the frame before (the first frame of a
    clip: the last of the clip before; 0 where there is none, so that of an image the first distance alone counts). Only
    the tokens that are kept run through the blocks; the others leave them as zeros, and their codes are not added.
    Where a scale is repeated, its last repetition runs in full. The preset ``masked-update`` is the first version of
    the reproduction, which computes all tokens and saves nothing.

    Not said by the source, our reading: the score is averaged over what a token covers, and the counts are rounded as
    FastVAR rounds them. Context clips are pruned like any.

    Attributes:
        prune: share of tokens dropped at each of the last scales; the last entry is the last scale.
        gather: whether only the tokens that are kept are computed; otherwise only their codes are left out.
        power: order of the norm over the two distances.
        selection: videos only: rank the tokens of all frames of a pass together (``"clip"``), or keep the best of each
            frame, equally many (``"frame"``).
    """

    name: ClassVar[str] = "faststar"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "infinity-star": {"prune": (0.2, 0.3, 0.4, 0.7)},
        "masked-update": {"prune": (0.2, 0.3, 0.4, 0.7), "gather": False},
    }
    neutral: ClassVar[Mapping[str, Any] | None] = {"prune": (0.0,)}
    speedup_settings: ClassVar[tuple[str, ...]] = ("prune",)

    prune: Annotated[Sequence[float], Range(least=0, below=1)] = (0.2, 0.3, 0.4, 0.7)
    gather: bool = True
    power: Annotated[float, Range(above=0, most=100)] = 2.0
    selection: Selected = "clip"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prune:
            raise UsageError("prune=(): give one share per pruned scale, or use 'dense'")

    def edit(self, settings: Settings) -> Settings:
        scales, needed = min(settings.schedule.scale_counts), len(self.prune) + 1
        if scales < needed and max(self.prune) > 0:
            raise UsageError(f"prune: needs {needed} scales, one of them unpruned; the schedule has {scales}")
        return settings

    def check(self, plan: Plan, info: ModelInfo) -> None:
        skipped = plan.settings.skipped
        if len(self.prune) <= skipped and max(self.prune) > 0:
            raise UsageError(f"prune: reaches back {len(self.prune)} scales, of which the last {skipped} are not run")

    def speedup_schedule(self, settings: Settings) -> Sequence[Stage]:
        """From no pruning to the given shares; then to as much as is pruned at most."""

        def pruned(shares: Sequence[float]) -> FastSTAR:
            return replace(self, prune=tuple(round(share, 4) for share in shares))

        given = [min(own, MOST_PRUNED) for own in self.prune]
        return [
            lambda share: pruned([share * own for own in given]),
            lambda share: pruned([own + share * (MOST_PRUNED - own) for own in given]),
        ]

    # How many tokens run.

    def count_at(self, step: Step) -> int:
        """Tokens kept at a pass."""
        grid, place = step.grid, len(self.prune) - step.scales_from_end
        if place < 0 or is_last_repetition(step):
            return grid.size
        frames = grid.t if self.selection == "frame" else 1
        size = grid.size // frames
        return frames * (size - int(size * self.prune[place]))

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        return self.count_at(step) if self.gather else step.grid.size

    # What happens at a pass.

    def start(self, plan: Plan) -> FastSTARState:
        return FastSTARState()

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: FastSTARState) -> TokenMap:
        count = self.count_at(step)
        state.kept = None
        if count == step.grid.size:
            return run(tokens)
        state.kept = self.choose(self.score(step, state), count, step)
        state.record(step, state.kept)
        if not self.gather:
            return run(tokens)
        kept = state.kept.repeat(step.branches, 1)
        features = run(tokens.take(kept)).features
        return tokens.with_features(scatter_tokens(torch.zeros_like(tokens.features), kept, features))

    def score(self, step: Step, state: FastSTARState) -> Tensor:
        """How much each token of a pass matters: (B, N) in float32."""
        before, after = state.latents
        assert before is not None and after is not None  # a clip's first scale is not pruned
        clip = step.settings.schedule.clip_slices[step.clip]
        if after.ndim == 4:  # an image
            before, after = before.unsqueeze(2), after.unsqueeze(2)
        changed = cosine_distance(before[:, :, clip], after[:, :, clip])
        moved = torch.zeros_like(changed)
        first = max(clip.start, 1)  # the first frame of all has none before it
        moved[:, first - clip.start :] = cosine_distance(
            after[:, :, first - 1 : clip.stop - 1], after[:, :, first : clip.stop]
        )
        score = (changed**self.power + moved**self.power) ** (1 / self.power)
        return F.adaptive_avg_pool3d(score, step.grid.shape).flatten(1)

    def choose(self, scores: Tensor, count: int, step: Step) -> Tensor:
        """Ascending indices (B, count) of the highest scores (B, N), of all or of each frame."""
        if self.selection == "clip":
            return top_tokens(scores, count)
        frames = step.grid.t
        kept = top_tokens(scores.unflatten(1, (frames, -1)).flatten(0, 1), count // frames).unflatten(0, (-1, frames))
        starts = torch.arange(frames, device=kept.device) * (step.grid.h * step.grid.w)
        return (kept + starts[:, None]).flatten(1)

    def code_mask(self, step: Step, state: FastSTARState) -> Tensor | None:
        if state.kept is None:
            return None
        mask = torch.zeros(len(state.kept), step.grid.size, dtype=torch.bool, device=state.kept.device)
        return mask.scatter(1, state.kept, True)

    def after_pass(self, result: PassResult, step: Step, state: FastSTARState) -> None:
        before = state.latents[1]
        if before is None:
            before = torch.zeros_like(result.latent)
        state.kept, state.latents = None, (before, result.latent.clone())


def cosine_distance(one: Tensor, other: Tensor) -> Tensor:
    """One minus the cosine over channels of (B, d, t, h, w): (B, t, h, w) in float32, at least 0."""
    return (1 - F.cosine_similarity(one.float(), other.float(), dim=1)).clamp(min=0)


def is_last_repetition(step: Step) -> bool:
    """Whether a pass is the last of several at its scale."""
    schedule = step.settings.schedule
    place = (schedule.clip(step.index), schedule.scale(step.index))
    same = [index for index in step.settings.passes if (schedule.clip(index), schedule.scale(index)) == place]
    return len(same) > 1 and step.index == same[-1]
