"""StepVAR: structure-texture guided pruning (Liu, Wang, Zhou, Li; arXiv 2603.01757)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stepvar.methods.structure_texture import StructureTexture


@dataclass(frozen=True)
class StepVAR(StructureTexture):
    """Keeps the tokens that matter for texture or structure; rebuilds the others from their nearest kept neighbours.

    The paper does not state the weight, the normalisation or the number of iterations; the defaults here were
    chosen by measurement on the embedded model (see the documentation, "How StepVAR works").
    """

    name: ClassVar[str] = "stepvar"
