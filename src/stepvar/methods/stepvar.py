"""StepVAR: structure-texture guided pruning (Liu, Wang, Zhou, Li; arXiv 2603.01757).

At the late scales of the pyramid, with X the (N, C) features of one scale in front of the blocks:

1. texture score: the energy of a 3x3 high-pass, :func:`texture_score`;
2. structure score: the magnitude of the projection on the first principal component, :func:`structure_score`;
3. their weighted sum, ``S = w_str * S_str + S_txt``: :meth:`StepVAR.score`;
4. the top-k tokens of S alone run through the blocks: inherited, :meth:`~stepvar.methods.pruning.Pruning.select`;
5. behind the blocks a pruned token takes the feature of the kept token that is nearest on the grid: inherited,
   ``restore="nearest"``, :class:`~stepvar.methods.restoration.Nearest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.tokens import Grid, TokenMap
from stepvar.core.values import Range
from stepvar.kernels import ops
from stepvar.methods.pruning import Pruning, PruningState
from stepvar.methods.registry import register
from stepvar.methods.scores import TINY, Normalisation, normalise

Iterations = Annotated[int, Range(1, 1000)]
"""Steps of a power iteration; far fewer are enough."""


def texture_score(features: Tensor, grid: Grid) -> Tensor:
    """Energy of a 3x3 high-pass over each frame: ``sum_c (x - avgpool3x3(x))^2``.

    At the border the average runs over the cells that exist, so that a constant map scores 0 everywhere.

    Args:
        features: (R, N, C), all tokens of ``grid``.

    Returns:
        (R, N) in float32.
    """
    if ops.use_triton(features):  # the same in one pass over the map
        return ops.texture_energy(features, *grid.shape)
    rows, _, channels = features.shape
    frames = features.float().view(rows * grid.t, grid.h, grid.w, channels).permute(0, 3, 1, 2)
    low = F.avg_pool2d(frames, 3, stride=1, padding=1, count_include_pad=False)
    return (frames - low).square().sum(dim=1).view(rows, grid.size)


def structure_score(features: Tensor, iterations: int) -> Tensor:
    """Magnitude of the projection on the first principal component: ``|x_c . v|`` with ``x_c = x - mean x``.

    Tokens that lie far along it are those that the blocks change most. One NaN among the features of an image
    spreads to all of its scores, since they share a mean.

    Args:
        features: (R, N, C).
        iterations: steps of the power iteration.

    Returns:
        (R, N) in float32.
    """
    centred = features.float()
    centred = centred - centred.mean(dim=1, keepdim=True)
    direction = principal_direction(centred, iterations)
    return torch.bmm(centred, direction.unsqueeze(-1)).squeeze(-1).abs()


def principal_direction(centred: Tensor, iterations: int) -> Tensor:
    """First principal component of centred features (R, N, C) by power iteration: unit vectors (R, C).

    Each step is ``v <- X_c^T (X_c v) / ||X_c^T (X_c v)||``, in place of an SVD, which is too slow. The start is the
    token farthest from the mean: deterministic, and never orthogonal to the component that it dominates. Constant
    features have no direction and give zeros.
    """
    farthest = centred.square().sum(dim=-1).argmax(dim=1)
    direction = centred[torch.arange(len(centred), device=centred.device), farthest]
    direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=TINY)
    for _ in range(iterations):
        projection = torch.bmm(centred, direction.unsqueeze(-1))
        direction = torch.bmm(centred.transpose(1, 2), projection).squeeze(-1)
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=TINY)
    return direction


@register
@dataclass(frozen=True)
class StepVAR(Pruning):
    """Keeps the tokens that matter for texture or structure; restores the others from their nearest kept neighbours.

    The paper does not state the weight, the normalisation or the number of iterations; the defaults here were
    chosen by measurement on the embedded model (see the documentation, "How StepVAR works"). It does not state its
    ratios either: the preset ``hart`` keeps as many tokens as FastVAR's (50 % at 48x48 and 25 % at 64x64), with which
    the paper compares at equal speed-up. The presets ``blend`` and ``taper`` are variants of this project: a pruned
    token takes a blend of the nearest few kept ones (the paper reports that interpolation is worse than the nearest),
    and larger scales keep a smaller share.

    Attributes:
        structure_weight: weight w_str of the structure score; 0 is texture alone.
        normalisation: how each score is scaled per image before they are added: ``"mean"``, ``"max"``,
            ``"zscore"`` or ``"none"``. Texture is quadratic in the features and structure linear, so with
            ``"none"`` the weight means something else in every model.
        power_iterations: steps of the power iteration that finds the principal component.
    """

    name: ClassVar[str] = "stepvar"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "hart": {"keep": (0.5, 0.25)},
        "blend": {"restore": "blend"},
        "taper": {"taper": 0.5},
    }

    structure_weight: Annotated[float, Range(0, 1e6)] = 0.25
    normalisation: Normalisation = "mean"
    power_iterations: Iterations = 8

    def score(self, tokens: TokenMap, step: Step, state: PruningState) -> Tensor:
        """``S = w_str * S_str + S_txt``, each normalised."""
        texture = normalise(texture_score(tokens.features, tokens.grid), self.normalisation)
        if self.structure_weight == 0:
            return texture
        structure = normalise(structure_score(tokens.features, self.power_iterations), self.normalisation)
        return self.structure_weight * structure + texture
