"""Copies from the CPU to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device_async(value: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without making the caller wait for the device's queued work."""
    if device.type != "cuda":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)
