"""A pass whose guidance branches run in two processes, and how each has the rows of the other one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Exchange(Protocol):
    """How two processes that run one guidance branch each hand tensors to each other; both make the same calls."""

    @property
    def branch(self) -> int:
        """Which one this process runs: 0 the conditional, 1 the unconditional."""
        ...

    def gather(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values of the same shape in both processes -> those of the conditional branch, those of the other one."""
        ...

    def broadcast(self, values: Tensor, branch: int) -> Tensor:
        """The values that the process of a branch has, in both."""
        ...


@dataclass(frozen=True)
class Split:
    """What one process would run at a pass of which two run one guidance branch each.

    Where that is one branch alone, both processes run theirs all the same: no time is lost, and the one that would not
    run has the keys of its own branch, and the logits of the other, for the passes that follow.

    Attributes:
        branches, first_row: of the pass in one process; see :class:`~stepvar.core.plan.Step`.
    """

    exchange: Exchange
    branches: int
    first_row: int

    def every_row(self, values: Tensor) -> Tensor:
        """All rows that one process would have (branches * B, ...), from those of this process (B, ...)."""
        return torch.cat(self.exchange.gather(values)) if self.branches == 2 else self.first_rows(values)

    def first_rows(self, values: Tensor) -> Tensor:
        """The first B of these rows: of the conditional branch, unless the other one alone would run."""
        return self.exchange.broadcast(values, int(self.first_row > 0))
