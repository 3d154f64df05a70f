"""Guidance branches of one image on two devices: the processes that ``torchrun`` starts, and what they exchange."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from stepvar.core.values import device_of, shown
from stepvar.errors import StepvarError, UsageError

Parallel = Literal["guidance"]

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Of a function, which has another in every process."""

START = "start them with 'torchrun --nproc-per-node 2 script.py'"


class GuidanceProcesses:
    """Two processes that generate images together: the first runs the conditional branch, the second the other one.

    Tensors go through NCCL between CUDA devices and through gloo on the CPU, as bytes, so that they arrive to the bit
    whatever their format. A process group that the caller has made is used, and else one is made.

    Attributes:
        branch: which branch this process runs, 0 the conditional one.
        device: where it runs it; of ``"cuda"`` the GPU of this process.

    What waits for the other process raises a StepvarError if that is gone: both have to be started again. Between CUDA
    devices that is so between two calls. In the middle of one the wait is on the device, where nothing can be raised:
    ``torchrun`` ends the process that is left, and else NCCL's watchdog does, after its timeout.

    Raises:
        UsageError: if there are not two processes, or the device is neither CUDA nor the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type not in ("cuda", "cpu"):
            raise UsageError(f"parallel='guidance': needs CUDA devices or CPUs, and the model goes to {device.type}")
        if not dist.is_available():
            raise UsageError("parallel='guidance': this PyTorch was built without torch.distributed; install another")
        self._owns_group = not dist.is_initialized()
        count = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
        if count != 2:
            found = "this is the only one" if count == 1 else f"there are {count}"
            raise UsageError(
                f"parallel='guidance': needs two processes, one for each guidance branch, and {found}; {START}"
            )
        if device.type == "cuda" and device.index is None:
            device = device_of("device", f"cuda:{_local_rank()}")
        self.device = device
        backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            # Captured collectives would register their buffers with the other process, which may run eagerly meanwhile.
            os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
        if self._owns_group:
            dist.init_process_group(backend)
        self.branch = dist.get_rank()
        self._group = dist.new_group(backend=backend)
        self._host = dist.new_group(backend="gloo")

    def __repr__(self) -> str:
        return f"GuidanceProcesses({self.branch}, {self.device})"

    @property
    def returns(self) -> bool:
        """Whether this process returns the images."""
        return self.branch == 0

    def gather(self, values: Tensor) -> tuple[Tensor, Tensor]:
        own = _as_bytes(values)
        both = [torch.empty_like(own) for _ in range(2)]
        with _needing_both():
            dist.all_gather(both, own, group=self._group)
        conditional, unconditional = (part.view(values.dtype).view(values.shape) for part in both)
        return conditional, unconditional

    def broadcast(self, values: Tensor, branch: int) -> Tensor:
        own = _as_bytes(values)
        if branch != self.branch:
            own = torch.empty_like(own)
        with _needing_both():
            dist.broadcast(own, src=branch, group=self._group)
        return own.view(values.dtype).view(values.shape)

    def agree(self, seeds: Sequence[int], asked: object) -> tuple[int, ...]:
        """The seeds of the first process, if both ask for the same; waits for the other process.

        Args:
            asked: what both say of it in the same words.

        Raises:
            UsageError: if they do not.
            StepvarError: if the other process is gone.
        """
        digest = hashlib.sha256(_ADDRESS.sub("", repr(asked)).encode()).digest()
        own = torch.tensor([*digest, len(seeds), *seeds], dtype=torch.int64)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(2)]
        with _needing_both():
            dist.all_gather(sizes, torch.tensor([len(own)]), group=self._host)
        first, second = (torch.empty(int(size), dtype=torch.int64) for size in sizes)
        if len(first) == len(second):
            with _needing_both():
                dist.all_gather([first, second], own, group=self._host)
        if len(first) != len(second) or not torch.equal(first[: len(digest)], second[: len(digest)]):
            raise UsageError(
                "parallel='guidance': the two processes ask for different images; call the pipeline in both with the "
                "same arguments"
            )
        return tuple(first[len(digest) + 1 :].tolist())

    def wait(self) -> None:
        """Waits until both processes are here."""
        with _needing_both():
            dist.barrier(group=self._host)

    def close(self) -> None:
        """Leaves the process group, if it was made here; captured generations must have been dropped before."""
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()


def start_parallel(name: Parallel | None, device: torch.device) -> GuidanceProcesses | None:
    """The processes that a name of ``parallel`` asks for; None: this one alone.

    Raises:
        UsageError: for another name, and as :class:`GuidanceProcesses` does.
    """
    if name is None:
        return None
    if name not in get_args(Parallel):
        raise UsageError(f"parallel={shown(name)}: must be {', '.join(get_args(Parallel))}, or None for one process")
    return GuidanceProcesses(device)


@contextmanager
def _needing_both() -> Iterator[None]:
    """Within it the two processes talk, and nothing else can fail.

    Raises:
        StepvarError: where PyTorch has many lines on sockets.
    """
    try:
        yield
    except torch.OutOfMemoryError:  # NCCL gathers into a buffer that is made for it
        raise
    except RuntimeError as error:
        # NCCL can also fail for a reason of its own, such as two processes on one GPU. Its last line says why.
        lines = str(error).strip().splitlines() if isinstance(error, dist.DistBackendError) else []
        failed = f", or the exchange failed: {lines[-1]}" if lines else ""
        raise StepvarError(
            "parallel='guidance': the other process is gone (killed, or ended by an error of its own, which it shows)"
            f"{failed}; both must begin again, {START}"
        ) from error


def _as_bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(-1).view(torch.uint8)


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", dist.get_rank() if dist.is_initialized() else 0))
