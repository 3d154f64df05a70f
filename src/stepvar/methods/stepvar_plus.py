"""StepVAR+: StepVAR taken further by measurement. A method of this project, not of the paper.

StepVAR scores structure on the map that enters the blocks, since "tokens that lie far along the first principal
component are those that the blocks change most". Here it is scored on what the blocks do change. With U the update
that the whole stack made at the last dense scale, and X the (N, C) features of a pruned scale in front of the blocks:

1. texture score: as StepVAR's, the energy of a 3x3 high-pass of X;
2. mid-band score: the energy of the difference of a 3x3 and a 7x7 average of X, :func:`midband_score`;
3. structure score: how far the blocks moved a token, the energy of U, resized to the grid; or, nearer to StepVAR, the
   magnitude of the projection of U on its first principal component;
4. their weighted sum, each divided by its mean: :meth:`StepVARPlus.score`;
5. a pruned token adds no codes to the image (``pruned_codes=False``): what is sampled from restored features differs in
   nearly half of its bits from what dense generation samples, so that it takes the image farther away;
6. where more is to be saved, the last scales run without the unconditional branch (:meth:`StepVARPlus.edit`); in its
   place a share of the difference between the branches at the last guided scale, resized, joins the features behind
   the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from stepvar.core.guidance import branches_for
from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.stack import ModelInfo, RunBlocks
from stepvar.core.tokens import Grid, TokenMap
from stepvar.core.values import Range
from stepvar.errors import UsageError
from stepvar.methods.base import Stage
from stepvar.methods.cached_features import CachedFeatures
from stepvar.methods.latent_delta import refuse_first_scale
from stepvar.methods.pruning import FLOOR, LATE, LOWEST, Pruning, PruningState, Taper
from stepvar.methods.registry import register
from stepvar.methods.scores import normalise, squared_norm
from stepvar.methods.stepvar import Iterations, structure_score, texture_score

STAGES = (0.3, FLOOR, FLOOR)
"""The smallest share kept for a speed-up with guidance dropped at no scale, the last one, and the last two."""

Structure = Literal["component", "magnitude"]
Weight = Annotated[float, Range(0, 1e6)]


def midband_score(features: Tensor, grid: Grid) -> Tensor:
    """Energy of what a 3x3 average of each frame has and a 7x7 average has not: ``sum_c (avg3x3(x) - avg7x7(x))^2``.

    At the border the averages run over the cells that exist, so that a constant map scores 0 everywhere.

    Args:
        features: (R, N, C), all tokens of ``grid``.

    Returns:
        (R, N) in float32.
    """
    rows, _, channels = features.shape
    frames = features.float().view(rows * grid.t, grid.h, grid.w, channels).permute(0, 3, 1, 2)
    fine, coarse = (F.avg_pool2d(frames, side, stride=1, padding=side // 2, count_include_pad=False) for side in (3, 7))
    return (fine - coarse).square().sum(dim=1).view(rows, grid.size)


@dataclass
class StepVARPlusState(PruningState):
    """What StepVAR+ keeps during a generation.

    Attributes:
        dense: the passes whose update scores the structure of later ones.
        structure: of the last of these, the structure score (R, N, 1).
        guidance: of the last guided pass, what the conditional branch has more than the other one, (B, N, C).
    """

    dense: frozenset[int] = frozenset()
    structure: CachedFeatures | None = None
    guidance: CachedFeatures | None = None


@register
@dataclass(frozen=True)
class StepVARPlus(Pruning[StepVARPlusState]):
    """Keeps the tokens that matter for texture, or that lie where the blocks change most; drops guidance late.

    Attributes:
        structure: what of the update is scored: its energy (``"magnitude"``), or its first principal ``"component"``.
        structure_weight: weight of the structure score beside the texture score.
        midband_weight: weight of the mid-band score beside the texture score.
        power_iterations: steps of the power iteration that finds the principal component of the update.
        drop_guidance: how many scales, counted from the end of every clip, run without the unconditional branch; 0
            drops nothing. Where a later clip attends to both branches, which saves nothing, guidance stays.
        reuse_guidance: share of the difference between the branches at the last guided scale that is added, times
            the guidance scale less 1, where guidance on the logits was dropped; 0 is the conditional branch as it is.
    """

    name: ClassVar[str] = "stepvar-plus"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "drop-guidance": {"drop_guidance": 1},
        "all-codes": {"pruned_codes": True, "restore": "blend", "propagate": "update"},
        "component": {"structure": "component", "structure_weight": 0.25},
    }
    neutral: ClassVar[Mapping[str, Any] | None] = {"keep": 1.0, "drop_guidance": 0}
    speedup_settings: ClassVar[tuple[str, ...]] = ("keep", "last", "drop_guidance")

    taper: Taper = 1.0
    pruned_codes: bool = False
    structure: Structure = "magnitude"
    structure_weight: Weight = 1.0
    midband_weight: Weight = 0.25
    power_iterations: Iterations = 8
    drop_guidance: Annotated[int, Range(0, 1000)] = 0
    reuse_guidance: Annotated[float, Range(0, 2)] = 0.3

    # What runs.

    def edit(self, settings: Settings) -> Settings:
        scales = min(settings.schedule.scale_counts)
        if self.drop_guidance >= scales:
            raise UsageError(
                f"drop_guidance={self.drop_guidance}: the schedule has {scales} scales; drop guidance at fewer"
            )
        if not settings.guided or not self.drop_guidance:
            return settings
        asked = settings.guidance
        late = [
            settings.schedule.scales_from_end(index) <= self.drop_guidance and len(branches_for(scale)) == 2
            for index, scale in enumerate(asked)
        ]
        dropped = replace(settings, guidance=tuple(1.0 if a else b for a, b in zip(late, asked, strict=True)))
        both = [len(dropped.branches.get(index, ())) == 2 for index in range(len(asked))]
        guidance = tuple(a if stays else b for a, b, stays in zip(asked, dropped.guidance, both, strict=True))
        return replace(settings, guidance=guidance, asked_guidance=settings.asked_guidance or asked)

    def check(self, plan: Plan, info: ModelInfo) -> None:
        super().check(plan, info)
        refuse_first_scale(self, plan)

    def start(self, plan: Plan) -> StepVARPlusState:
        return StepVARPlusState(sources=self.sources(plan), dense=self.last_dense(plan))

    # What happens at a pass.

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: StepVARPlusState) -> TokenMap:
        after = super().run_stack(run, tokens, step, state)
        if step.index in state.dense and self.structure_weight:
            scores = self._structure(after.features - tokens.features)
            state.structure = CachedFeatures.of(after.with_features(scores.unsqueeze(-1)), step)
        return self._guided(after, step, state)

    def _structure(self, update: Tensor) -> Tensor:
        """The structure score (R, N) of an update (R, N, C)."""
        return squared_norm(update) if self.structure == "magnitude" else structure_score(update, self.power_iterations)

    def _guided(self, after: TokenMap, step: Step, state: StepVARPlusState) -> TokenMap:
        """Notes the difference between the branches, or adds the one that was noted where guidance was dropped."""
        settings, features, samples = step.settings, after.features, step.samples
        if not self.drop_guidance or not self.reuse_guidance or 0 not in settings.cfg_layers:
            return after
        if step.applies_cfg:
            both = step.every_row(features)
            if len(both) == 2 * samples:  # a text that runs as the first scale may come without the other branch
                state.guidance = CachedFeatures(both[:samples] - both[samples:], after.grid)
            return after
        asked = (settings.asked_guidance or settings.guidance)[step.index]
        if state.guidance is None or asked == step.guidance:
            return after
        weight = self.reuse_guidance * (asked - 1)
        return after.with_features(features + weight * state.guidance.at(step, samples, "trilinear"))

    def score(self, tokens: TokenMap, step: Step, state: StepVARPlusState) -> Tensor:
        """``S = S_txt + w_mid * S_mid + w_str * S_str``, each divided by its mean."""
        features, grid = tokens.features, tokens.grid
        scores = normalise(texture_score(features, grid), "mean")
        if self.midband_weight:
            scores = scores + self.midband_weight * normalise(midband_score(features, grid), "mean")
        if self.structure_weight:
            assert state.structure is not None  # a plan that has none is refused
            structure = state.structure.at(step, len(features), "trilinear").squeeze(-1)
            scores = scores + self.structure_weight * normalise(structure, "mean")
        return scores

    def speedup_schedule(self, settings: Settings) -> Sequence[Stage]:
        """With guidance everywhere, then dropped once, then twice; each down to a share of tokens; then more scales."""
        most = min(settings.schedule.scale_counts) - 1  # one stays dense, with guidance
        if most < 1:
            return ()
        fewest, widest = (min(settings.late_scales(share), most) for share in (0.5, LATE))
        lows = STAGES if settings.guided else STAGES[-1:]
        drops = [min(count and count + settings.skipped, most) for count in range(len(lows))]

        def stage(drop: int, last: int, high: float, low: float) -> Stage:
            return lambda share: replace(
                self, keep=round(high - share * (high - low), 4), last=last, drop_guidance=drop
            )

        gentle = [stage(drop, fewest, 1.0, low) for drop, low in zip(drops, lows, strict=True)]
        wider = [stage(drops[-1], last, 1.0, FLOOR) for last in range(fewest + 1, widest + 1)]
        return [*gentle, *wider, stage(drops[-1], widest, FLOOR, LOWEST)]
