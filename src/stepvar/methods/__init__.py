"""Acceleration methods. A new one is a file in this folder and a row in ``METHODS`` (see ``registry.py``)."""

from __future__ import annotations

from stepvar.methods.base import Method, ModelInfo
from stepvar.methods.baselines import PCA, Dense, HighPass, Random, SkipLast
from stepvar.methods.blend import BlendedPruning
from stepvar.methods.compose import Compose
from stepvar.methods.coverage import Coverage
from stepvar.methods.drop_guidance import DropGuidance
from stepvar.methods.fastvar import FastVAR
from stepvar.methods.latent_delta import LatentDelta
from stepvar.methods.norms import L2Norm, MeanDistance
from stepvar.methods.registry import METHODS, make_method
from stepvar.methods.sparsevar import SparseVAR
from stepvar.methods.stepvar import StepVAR
from stepvar.methods.taper import TaperedPruning

__all__ = [
    "METHODS",
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
    "ModelInfo",
    "Random",
    "SkipLast",
    "SparseVAR",
    "StepVAR",
    "TaperedPruning",
    "make_method",
]
