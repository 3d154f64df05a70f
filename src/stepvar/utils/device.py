"""Copies from the CPU to a device, and what a device is called."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor


def to_device_async(value: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without making the caller wait for the device's queued work."""
    if device.type != "cuda":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def device_name(device: torch.device) -> str:
    """The model of a GPU, else of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def processor_name() -> str:
    """The model of the CPU where the system says it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
