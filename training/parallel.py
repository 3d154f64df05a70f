"""Several GPUs of one host: each process has batches of its own, gradients are averaged, one clock rules all.

Started by ``torchrun --nproc-per-node N -m training.transformer ...``; without torchrun there is one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """The processes of a training.

    Attributes:
        rank: number of this process; 0 writes checkpoints and speaks.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Group:
        """The group that torchrun started, or this process alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend)
        return cls(dist.get_rank(), size)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """This process's own GPU, where the processes run on GPUs."""
        if device.type != "cuda" or self.size == 1:
            return device
        own = torch.device("cuda", self.rank)
        torch.cuda.set_device(own)
        return own

    def from_leader(self, value: float) -> float:
        """The value of process 0, through the CPU, so that nothing waits for a GPU."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return float(shared)

    def same_start(self, module: nn.Module) -> None:
        """Gives every process the weights of process 0."""
        if self.size > 1:
            with torch.no_grad():
                for value in (*module.parameters(), *module.buffers()):
                    dist.broadcast(value, src=0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its mean over the processes, in one message."""
        if self.size == 1:
            return
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])

    def leave(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()
