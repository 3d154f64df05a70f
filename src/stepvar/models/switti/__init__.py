"""The Switti family: text-to-image models with a codebook, most of which keep no cache between scales."""

from stepvar.models.switti.config import CONFIGS, SwittiConfig
from stepvar.models.switti.model import PooledCondition, Switti

__all__ = ["CONFIGS", "PooledCondition", "Switti", "SwittiConfig"]
