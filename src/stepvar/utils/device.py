"""Devices: which to use, copies that do not wait, runs that repeat bit by bit, float32 that is float32, names."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepvar.errors import UsageError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def to_device_async(value: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to a device without making the caller wait for the device's queued work.

    Only memory of the host can be pinned; a tensor that lies on a device is copied from there, or not at all.
    """
    if device.type != "cuda" or value.device.type != "cpu":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def execution_device(current: torch.device) -> torch.device:
    """Where a model that rests on the CPU is to work: where it is, or from the CPU the first GPU.

    Raises:
        UsageError: if there is none.
    """
    if current.type != "cpu":
        return current
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    raise UsageError("offload: this machine has no GPU that PyTorch can use; leave it out, or name a device")


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


@contextmanager
def full_precision() -> Iterator[None]:
    """Switches TensorFloat-32 off, which CUDA convolutions use by default and which rounds to 10 bits."""
    with ExitStack() as stack:
        try:
            _without_tf32(stack)
        except RuntimeError:  # set by the names of PyTorch 2.9, which then refuses to read what the older ones say
            stack.close()
            _with_ieee_products(stack)
        yield


def _without_tf32(stack: ExitStack) -> None:
    matmul, cudnn, mkldnn = torch.get_float32_matmul_precision(), torch.backends.cudnn, torch.backends.mkldnn
    if cudnn.allow_tf32:
        stack.callback(setattr, cudnn, "allow_tf32", True)
        cudnn.allow_tf32 = False
    if matmul != "highest":
        on_cpu = getattr(mkldnn, "matmul", None)  # set along with it, and given back apart
        if on_cpu is not None:
            stack.callback(setattr, on_cpu, "fp32_precision", on_cpu.fp32_precision)
        stack.callback(torch.set_float32_matmul_precision, matmul)
        torch.set_float32_matmul_precision("highest")


def _with_ieee_products(stack: ExitStack) -> None:
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    for operation in (backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv):
        stack.callback(setattr, operation, "fp32_precision", operation.fp32_precision)
        operation.fp32_precision = "ieee"


@contextmanager
def deterministic(strict: bool = True) -> Iterator[None]:
    """Within it PyTorch takes deterministic algorithms only, without TensorFloat-32; the former state comes back.

    The same seed, settings, device, PyTorch and number of threads then give the same bits. Other devices and other
    batch sizes do not: sums are taken in another order there.

    cuBLAS reads its workspace setting once, when a process first uses CUDA. Within this block the setting is made
    where it is missing, which is too late if CUDA was used before: a warning says so. Set
    ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` in the environment to be independent of the order.

    Args:
        strict: an operation without a deterministic form is an error; otherwise a warning.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    missing = WORKSPACE not in os.environ
    if missing and torch.cuda.is_initialized():
        warnings.warn(f"CUDA is in use already: set {WORKSPACE}=:4096:8 before the process starts", stacklevel=3)
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    cudnn = torch.backends.cudnn
    chosen = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        with full_precision():
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = chosen
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        if missing:
            os.environ.pop(WORKSPACE, None)
