"""What models and methods know of each other: the blocks of one pass, their sub-layers, and the shape of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from stepvar.core.tokens import TokenMap


class SublayerRef(NamedTuple):
    """A residual sub-layer: its block's index, ``"self"``, ``"cross"`` or ``"ffn"``, and the number of blocks."""

    layer: int
    name: str
    depth: int = 0


@dataclass(frozen=True)
class ModelInfo:
    """What a method may ask of a model before a generation, to say whether it can serve it.

    Attributes:
        depth: number of blocks.
        sublayers: names of the residual sub-layers of a block, in order; ``"cross"`` attends to a text.
    """

    depth: int
    sublayers: tuple[str, ...] = ("self", "cross", "ffn")


class RunBlocks(Protocol):
    """Runs transformer blocks ``first`` to ``last`` (exclusive; None: the end) on a token map, dense or pruned."""

    @property
    def depth(self) -> int: ...

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap: ...


Sublayer = Callable[[TokenMap], Tensor]
"""The update (R, N, C) that a residual sub-layer computes for a map."""

SublayerHook = Callable[[Sublayer, TokenMap, SublayerRef], Tensor]
"""Runs a sub-layer on a map, or on a part of it, and returns the update (R, N, C) of the whole map."""


def run_dense(sublayer: Sublayer, tokens: TokenMap, ref: SublayerRef) -> Tensor:
    """The hook that leaves every sub-layer as it is."""
    return sublayer(tokens)
