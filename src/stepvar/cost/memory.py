"""Whether a generation fits on a device, found out before it starts."""

from __future__ import annotations

import os
from typing import Any

import torch

from stepvar.core.plan import Plan
from stepvar.core.split import held_rows
from stepvar.cost.dry_run import DryRun
from stepvar.errors import UsageError

TEXT_TOKENS = 128
"""Tokens of a long prompt."""

EASILY = 20
"""A device that is so many times as large as weights and cache holds whatever else a generation needs.

The released models need at most a third as many times that, in pieces of their largest image (``tests/cost``).
"""


def fits_easily(model: Any, plan: Plan, available: int) -> bool:
    """Whether a device is so large that no dry run is needed to see that a generation fits.

    Args:
        available: bytes.
    """
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    held = held_rows(plan)
    cache = 2 * (held.stop - held.start) * sum(plan.cache_tokens) * model.config.width * model.precision.blocks.itemsize
    return bool(EASILY * (weights + cache) <= available)


def check_fits(taken: DryRun, available: int, where: str) -> None:
    """Refuses a generation that needs more memory than there is, with advice.

    Args:
        available: bytes.
        where: they are.

    Raises:
        UsageError: if it does not fit.
    """
    if taken.peak <= available:
        return
    if taken.decoder_weights + taken.decoding == taken.peak:
        parts = {"weights": taken.decoder_weights, "decoding": taken.decoding}
    else:
        parts = {"weights": taken.weights, "cache": taken.cache, "scales": taken.scales}
    largest = max(parts, key=lambda name: parts[name])
    raise UsageError(
        f"memory: needs about {_gib(taken.peak)} ({_gib(parts[largest])} for {largest}), "
        f"and {where} has {_gib(available)}; {_ADVICE[largest]}"
    )


_ADVICE = {
    "weights": "use dtype bfloat16, quantization int8, offload weights (enable_sequential_cpu_offload, --offload), "
    "or a smaller variant",
    "cache": "generate fewer at once, use dtype bfloat16, cache_dtype int8, or a method that keeps fewer tokens",
    "scales": "use dtype bfloat16, a smaller resolution, fewer seconds, or a method that keeps fewer tokens",
    "decoding": "decode by tiles (enable_vae_tiling, --tile), or one by one (enable_vae_slicing)",
}


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


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
