"""The VAR family: class-conditional models with a codebook."""

from stepvar.models.var.classes import class_index, class_names
from stepvar.models.var.config import CONFIGS, VARConfig, VQConfig
from stepvar.models.var.model import VAR, ClassCondition

__all__ = [
    "CONFIGS",
    "VAR",
    "ClassCondition",
    "VARConfig",
    "VQConfig",
    "class_index",
    "class_names",
]
