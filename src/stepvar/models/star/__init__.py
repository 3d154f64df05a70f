"""The STAR family: text-to-image models with a codebook, whose late scales may be sampled in several steps."""

from stepvar.models.star.config import CONFIGS, STARConfig
from stepvar.models.star.model import STAR, PooledText

__all__ = ["CONFIGS", "STAR", "PooledText", "STARConfig"]
