"""Two processes train as one: the same weights, averaged gradients, one clock."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
from torch import nn
from torch.multiprocessing.spawn import spawn

from training.parallel import Group


def _work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group = Group.join()
    torch.manual_seed(rank)
    layer = nn.Linear(3, 2)
    group.same_start(layer)
    layer.weight.sum().backward() if rank == 0 else (5 * layer.weight.sum()).backward()
    group.average_gradients(layer.parameters())
    clock = torch.tensor(group.from_leader(0.25 if rank == 0 else 0.75))
    torch.save([layer.weight.detach(), layer.weight.grad, clock], Path(folder) / f"{rank}.pt")
    group.leave()


def test_two_processes_share_start_gradients_and_clock(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_work, args=(port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first[0], second[0])
    for _, gradient, clock in (first, second):
        assert torch.equal(gradient, torch.full((2, 3), 3.0))  # the mean of 1 and 5
        assert clock == 0.25


def test_one_process_is_left_alone() -> None:
    group, layer = Group.join(), nn.Linear(3, 2)
    layer.weight.sum().backward()
    group.same_start(layer)
    group.average_gradients(layer.parameters())
    assert group.leads
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, torch.ones(2, 3))
    assert group.from_leader(0.5) == 0.5
