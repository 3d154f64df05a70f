"""A variant beside StepVAR: pruned tokens are blends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stepvar.methods.restoration import Restoration, RestorationName
from stepvar.methods.structure_texture import StructureTexture


@dataclass(frozen=True)
class BlendedPruning(StructureTexture):
    """StepVAR's selection, but a pruned token takes a blend of the nearest few kept ones, by inverse squared distance.

    A variant of this project, not of the paper, which reports that interpolation between kept tokens is worse than
    the nearest one.
    """

    name: ClassVar[str] = "blend"

    restore: RestorationName | Restoration = "blend"
