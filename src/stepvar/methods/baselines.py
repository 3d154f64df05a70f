"""The baselines: what any other method has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from stepvar.core.plan import Settings, Step
from stepvar.core.tokens import TokenMap
from stepvar.core.values import Range
from stepvar.errors import UsageError
from stepvar.methods.base import Method, Stage
from stepvar.methods.pruning import Pruning, PruningState
from stepvar.methods.registry import register
from stepvar.methods.scores import distance_to_mean, squared_norm
from stepvar.methods.stepvar import Iterations, structure_score, texture_score
from stepvar.utils.device import to_device_async


@register
@dataclass(frozen=True)
class Dense(Method):
    """Every token of every scale."""

    name: ClassVar[str] = "dense"
    neutral: ClassVar[Mapping[str, Any] | None] = {}


@register
@dataclass(frozen=True)
class Random(Pruning):
    """Keeps tokens at random: the same ones for every image, so that batches repeat.

    Attributes:
        seed: of the random choice.
    """

    name: ClassVar[str] = "random"

    seed: Annotated[int, Range(0, 2**48)] = 0

    def score(self, tokens: TokenMap, step: Step, state: PruningState) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1009 + step.index)
        scores = torch.rand(step.grid.size, generator=generator)
        return to_device_async(scores, tokens.features.device).expand(len(tokens.features), -1)


@register
@dataclass(frozen=True)
class HighPass(Pruning):
    """Keeps the tokens with the highest 3x3 high-pass energy: StepVAR's texture score alone."""

    name: ClassVar[str] = "high-pass"

    def score(self, tokens: TokenMap, step: Step, state: PruningState) -> Tensor:
        return texture_score(tokens.features, tokens.grid)


@register
@dataclass(frozen=True)
class PCA(Pruning):
    """Keeps the tokens farthest along the first principal component: StepVAR's structure score alone.

    Attributes:
        power_iterations: steps of the power iteration.
    """

    name: ClassVar[str] = "pca"

    power_iterations: Iterations = 8

    def score(self, tokens: TokenMap, step: Step, state: PruningState) -> Tensor:
        return structure_score(tokens.features, self.power_iterations)


@register
@dataclass(frozen=True)
class Magnitude(Pruning):
    """Keeps the tokens with the largest features.

    The preset ``l2-norm``, the default, ranks by the L2 norm, a selection that StepVAR's paper compares itself with.
    The preset ``mean-distance`` ranks by the distance to the mean of the map, FastVAR's selection (arXiv 2503.23367,
    section 3), with any restoration: it prunes as FastVAR does with ``scope="sublayer"``, ``propagate="update"``,
    ``restore="cached"`` and ``branches="separate"``.

    Attributes:
        centred: measure from the mean of the map, rather than from zero.
    """

    name: ClassVar[str] = "magnitude"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "l2-norm": {"centred": False},
        "mean-distance": {"centred": True},
    }

    centred: bool = False

    def score(self, tokens: TokenMap, step: Step, state: PruningState) -> Tensor:
        return distance_to_mean(tokens.features) if self.centred else squared_norm(tokens.features)


@register
@dataclass(frozen=True)
class SkipLast(Method):
    """Does not run the last scales of any clip; the image is decoded from the sum of the earlier ones.

    Attributes:
        count: how many scales are skipped.
    """

    name: ClassVar[str] = "skip-last"
    speedup_settings: ClassVar[tuple[str, ...]] = ("count",)

    count: Annotated[int, Range(1, 1000, note="use 'dense' to skip nothing")] = 1

    def speedup_schedule(self, settings: Settings) -> Sequence[Stage]:
        """One scale to all but the first; nothing lies between."""
        return [lambda share: replace(self, count=1 + round(share * max(0, settings.scales - 2)))]

    def edit(self, settings: Settings) -> Settings:
        if self.count >= settings.scales:
            raise UsageError(f"count={self.count}: the schedule runs {settings.scales} scales; skip fewer")
        return settings.without_last(settings.skipped + self.count)
