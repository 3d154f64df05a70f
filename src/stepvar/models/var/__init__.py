"""The VAR family: class-conditional models with a codebook."""

from stepvar.models.var.classes import class_index, class_names
from stepvar.models.var.config import CONFIGS, VARConfig, VQConfig
from stepvar.models.var.model import VAR, ClassCondition
from stepvar.models.var.tokenizer import IGNORABLE as TOKENIZER_IGNORABLE
from stepvar.models.var.transformer import IGNORABLE as TRANSFORMER_IGNORABLE

__all__ = [
    "CONFIGS",
    "TOKENIZER_IGNORABLE",
    "TRANSFORMER_IGNORABLE",
    "VAR",
    "ClassCondition",
    "VARConfig",
    "VQConfig",
    "class_index",
    "class_names",
]
