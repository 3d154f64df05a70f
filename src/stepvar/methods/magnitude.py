"""Selection by the size of a token's features, on their own or around their mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.tokens import TokenMap
from stepvar.methods.pruning import Pruning, PruningState
from stepvar.methods.registry import register
from stepvar.methods.scores import distance_to_mean, squared_norm


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
