"""How much memory a generation takes, before it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from stepvar.core.plan import Plan
from stepvar.errors import UsageError
from stepvar.methods.base import Method
from stepvar.models.precision import Precision
from stepvar.models.registry import family_of_config

TEXT_TOKENS = 128
"""Tokens of a long prompt."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of each kind; weights, cache and latent are exact, the others are of formulas.

    Attributes:
        weights: of the transformer and the tokenizer, without a text encoder.
        cache: keys and values of all layers.
        latent: the latent picture.
        activations: of the scale that needs most, in the blocks or in sampling.
        decode: of the tokenizer's decoder, with the picture.
    """

    weights: int
    cache: int
    latent: int
    activations: int
    decode: int

    @property
    def total(self) -> int:
        """The peak: what stays, and the larger of what scales and decoding need in turn."""
        return self.weights + self.cache + self.latent + max(self.activations, self.decode)

    def check(self, available: int, where: str) -> None:
        """Raises a UsageError with advice if there is less memory than that.

        Args:
            available: bytes.
            where: they are.
        """
        if self.total <= available:
            return
        parts = {"weights": self.weights, "cache": self.cache, "scales": self.activations, "decoding": self.decode}
        largest = max(parts, key=lambda name: parts[name])
        raise UsageError(
            f"memory: needs about {_gib(self.total)} ({_gib(parts[largest])} for {largest}), "
            f"and {where} has {_gib(available)}; {_ADVICE[largest]}"
        )


_ADVICE = {
    "weights": "use dtype bfloat16, a smaller variant, or a larger device",
    "cache": "draw fewer at once, use dtype bfloat16, or a method that keeps fewer tokens",
    "scales": "use dtype bfloat16, a smaller resolution, fewer seconds, or a method that keeps fewer tokens",
    "decoding": "decode by tiles (enable_tiled_decode, --tile), or draw fewer at once",
}


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def estimate_memory(
    config: Any,
    plan: Plan,
    method: Method,
    batch: int,
    dtype: torch.dtype | Precision = torch.float32,
    tile: int | None = None,
    text: int = TEXT_TOKENS,
) -> MemoryEstimate:
    """What a generation of ``batch`` pictures or videos allocates.

    Args:
        config: of a model of any family.
        plan: as given to the generation, before the method edits it.
        dtype: a number format as for ``model.set_precision``.
        tile: side of the tiles of decoding in latent cells; None: in one piece.
        text: tokens of the longest prompt, for families that remember them like tokens of a picture.

    Raises:
        UsageError: for a configuration of no family, a number format that models cannot run in, or a method that does
            not fit the plan.
    """
    precision = dtype if isinstance(dtype, Precision) else Precision.of(dtype)
    footprint = family_of_config(config).footprint(config, method.edit(plan), batch, method, precision, tile, text)
    return MemoryEstimate(
        weights=_weights(config, precision),
        cache=footprint.cache(),
        latent=footprint.latent(),
        activations=footprint.activations(),
        decode=footprint.decode(),
    )


@lru_cache(maxsize=16)
def _weights(config: Any, precision: Precision) -> int:
    """Counted on a model that is never allocated."""
    with torch.device("meta"):
        model = family_of_config(config).build(config)
    model.set_precision(precision)
    return sum(weight.nbytes for weight in (*model.parameters(), *model.buffers()))


def memory_of(device: torch.device) -> int | None:
    """Bytes that a device has in all; None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
