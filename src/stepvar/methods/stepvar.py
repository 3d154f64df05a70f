"""StepVAR: structure-texture guided pruning (Liu, Wang, Zhou, Li; arXiv 2603.01757)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from stepvar.methods.structure_texture import StructureTexture


@dataclass(frozen=True)
class StepVAR(StructureTexture):
    """Keeps the tokens that matter for texture or structure; rebuilds the others from their nearest kept neighbours.

    The paper does not state the weight, the normalisation or the number of iterations; the defaults here were
    chosen by measurement on the embedded model (see the documentation, "How StepVAR works"). It does not state its
    ratios either: the preset ``hart`` keeps as many tokens as FastVAR's (50 % at 48x48 and 25 % at 64x64), with which
    the paper compares at equal speed-up.
    """

    name: ClassVar[str] = "stepvar"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"hart": {"keep": (0.5, 0.25)}}
