"""The HART family: text-to-image models with a codebook and a residual diffusion head."""

from stepvar.models.hart.config import RELEASED, HARTConfig, published_tokenizer
from stepvar.models.hart.model import HART

__all__ = ["HART", "RELEASED", "HARTConfig", "published_tokenizer"]
