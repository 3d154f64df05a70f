"""Fast inference for visual autoregressive (next-scale prediction) models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepvar.media.video import Video
    from stepvar.methods import (
        PCA,
        BlendedPruning,
        Compose,
        Coverage,
        Dense,
        DropGuidance,
        FastVAR,
        HighPass,
        L2Norm,
        LatentDelta,
        MeanDistance,
        Method,
        Random,
        SkipLast,
        SparseVAR,
        StepVAR,
        TaperedPruning,
    )
    from stepvar.output import Output
    from stepvar.pipeline import Pipeline
    from stepvar.utils.determinism import deterministic

__version__ = "0.1.0"

__all__ = [
    "PCA",
    "BlendedPruning",
    "Compose",
    "Coverage",
    "Dense",
    "DropGuidance",
    "FastVAR",
    "HighPass",
    "L2Norm",
    "LatentDelta",
    "MeanDistance",
    "Method",
    "Output",
    "Pipeline",
    "Random",
    "SkipLast",
    "SparseVAR",
    "StepVAR",
    "TaperedPruning",
    "Video",
    "__version__",
    "deterministic",
]


def __getattr__(name: str) -> Any:
    # PyTorch takes a second or two to import: only when a name that needs it is asked for.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = {"Output": "output", "Pipeline": "pipeline", "Video": "video", "deterministic": "determinism"}
    return getattr(import_module(f"stepvar.{homes.get(name, 'methods')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
