"""Selections by the size of a token's features, on their own or around their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.tokens import TokenMap
from stepvar.methods.pruning import Pruning
from stepvar.methods.scores import distance_to_mean, squared_norm


@dataclass(frozen=True)
class L2Norm(Pruning):
    """Keeps the tokens with the largest L2 norm: a selection that StepVAR's paper compares itself with."""

    name: ClassVar[str] = "l2-norm"

    def score(self, tokens: TokenMap, step: Step) -> Tensor:
        return squared_norm(tokens.features)


@dataclass(frozen=True)
class MeanDistance(Pruning):
    """Keeps the tokens farthest from the mean of their map: FastVAR's selection, with any restoring.

    With ``scope="sublayer"``, ``propagate="update"``, ``restore="cached"`` and ``branches="separate"`` it prunes as
    FastVAR does (arXiv 2503.23367, section 3); with the defaults it has StepVAR's nearest-neighbour propagation.
    """

    name: ClassVar[str] = "mean-distance"

    def score(self, tokens: TokenMap, step: Step) -> Tensor:
        return distance_to_mean(tokens.features)
