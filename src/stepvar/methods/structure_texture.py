"""StepVAR's selection, which the variants beside it share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError
from stepvar.methods.pruning import Pruning
from stepvar.methods.scores import (
    NORMALISATIONS,
    Normalisation,
    normalise,
    structure_magnitude,
    texture_energy,
)


@dataclass(frozen=True)
class StructureTexture(Pruning):
    """Keeps the tokens that matter for texture or structure: ``S = structure_weight * S_str + S_txt``.

    Texture is the energy of a 3x3 high-pass, structure the magnitude of the projection on the first principal
    component (StepVAR, arXiv 2603.01757).

    Attributes:
        structure_weight: weight of the structure score; 0 is texture alone.
        normalisation: how each score is scaled per image before they are added: ``"mean"``, ``"max"``,
            ``"zscore"`` or ``"none"``. Texture is quadratic in the features and structure linear, so with
            ``"none"`` the weight means something else in every model.
        power_iterations: steps of the power iteration that finds the principal component.
    """

    structure_weight: float = 0.25
    normalisation: Normalisation = "mean"
    power_iterations: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.structure_weight >= 0:
            raise UsageError(f"structure_weight={self.structure_weight}: must be 0 or more")
        if self.power_iterations < 1:
            raise UsageError(f"power_iterations={self.power_iterations}: must be at least 1")
        if self.normalisation not in NORMALISATIONS:
            raise UsageError(f"normalisation={self.normalisation!r}: must be one of {', '.join(NORMALISATIONS)}")

    def score(self, tokens: TokenMap, step: Step) -> Tensor:
        texture = normalise(texture_energy(tokens.features, tokens.grid), self.normalisation)
        if self.structure_weight == 0:
            return texture
        structure = structure_magnitude(tokens.features, self.power_iterations)
        return texture + self.structure_weight * normalise(structure, self.normalisation)
