"""Acceleration methods. A new one is a file in this folder and a row in ``METHODS`` (see ``registry.py``)."""

from __future__ import annotations

from stepvar.methods.base import Method, ModelFacts
from stepvar.methods.baselines import PCA, Dense, HighPass, Random, SkipLast
from stepvar.methods.compose import Compose
from stepvar.methods.fastvar import FastVAR
from stepvar.methods.guidance import DropGuidance
from stepvar.methods.registry import METHODS, make_method
from stepvar.methods.stepvar import StepVAR

__all__ = [
    "METHODS",
    "PCA",
    "Compose",
    "Dense",
    "DropGuidance",
    "FastVAR",
    "HighPass",
    "Method",
    "ModelFacts",
    "Random",
    "SkipLast",
    "StepVAR",
    "make_method",
]
