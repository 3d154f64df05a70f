"""What models and methods know of each other: the blocks of one pass, what is inside them, and the shape of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class PassResult:
    """What a pass left, for methods that look at it.

    Attributes:
        logits: (B, N, ..., classes) in float32, with temperature and guidance applied, before any truncation; None of
            a pass whose codes were given.
        indices: (B, N, ...), the indices or bits that were sampled or given.
        latent: (B, d, H, W) or (B, d, T, H, W), the sum of all codes so far at full size; later passes write into it.
        decode: the image (B, 3, H, W) in [-1, 1] of a latent (B, d, h, w) of any size.
    """

    logits: Tensor | None
    indices: Tensor
    latent: Tensor
    decode: Callable[[Tensor], Tensor]


class RunBlocks(Protocol):
    """Runs transformer blocks ``first`` to ``last`` (exclusive; None: the end) on a token map, dense or pruned."""

    @property
    def depth(self) -> int: ...

    def enter(self, tokens: TokenMap, first: int = 0) -> TokenMap:
        """Adds what a family adds to a map right in front of block ``first``, such as the embedding of the scale.

        For methods that combine tokens there: blocks that are run later in the pass do not add it again.
        """
        ...

    def entered(self, tokens: TokenMap, layer: int = 0) -> TokenMap:
        """The map as a block sees it: with what some families add in front of it, such as the level embedding."""
        ...

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap: ...


Sublayer = Callable[[TokenMap], Tensor]
"""The update (R, N, C) that a residual sub-layer computes for a map."""

SublayerHook = Callable[[Sublayer, TokenMap, SublayerRef], Tensor]
"""Runs a sub-layer on a map, or on a part of it, and returns the update (R, N, C) of the whole map."""


class Projection(NamedTuple):
    """Queries as a layer projects them, before any norm, scale or rotation.

    Attributes:
        queries: (R, heads, N, head_dim), with their bias.
        bias: (heads * head_dim,); None: there is none.
    """

    queries: Tensor
    bias: Tensor | None = None

    def without_bias(self, index: Tensor) -> Tensor:
        """Those of the tokens at ``index`` (W,): (R, heads, W, head_dim), without the bias."""
        queries = self.queries[:, :, index]
        return queries if self.bias is None else queries - self.bias.view(queries.shape[1], 1, -1)


@dataclass(frozen=True)
class AttentionInputs:
    """The self-attention of one layer at one pass: ``softmax(queries keys^T) values``, with a scale of 1.

    Attributes:
        queries: (R, heads, N, head_dim) of the tokens that run, normalised, scaled and rotated as the family does.
        keys, values: (R, kv_heads, M, head_dim) of all tokens that they see; the last N are their own. Views of the
            cache in some families: not to be written into.
        projection: the queries before norm, scale and rotation.
        mask: (R, 1, 1, M), which keys are there; None: all.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    projection: Projection
    mask: Tensor | None = None

    def without_first(self, count: int) -> AttentionInputs:
        """The same without the first keys."""
        if not count:
            return self
        mask = None if self.mask is None else self.mask[..., count:]
        return replace(self, keys=self.keys[:, :, count:], values=self.values[:, :, count:], mask=mask)


Attention = Callable[[AttentionInputs], Tensor]
"""Attention over all keys: (R, heads, N, head_dim)."""

AttentionHook = Callable[[Attention, AttentionInputs, SublayerRef], Tensor]
"""Computes the attention of a layer, as the model would or otherwise: (R, heads, N, head_dim)."""

CacheHook = Callable[[AttentionInputs, int, SublayerRef], Tensor]
"""Which keys of a layer stay behind its attention, as many as it is told: ascending indices (R, kv_heads, count)."""


@dataclass(frozen=True)
class Hooks:
    """What a method does inside the blocks of a pass; where it does nothing, models may fuse.

    Attributes:
        sublayer: around every residual sub-layer.
        attention: in place of the self-attention; None: the model's own.
        cache: chooses the keys that stay, at layers of which the plan lets fewer stay than there are.
    """

    sublayer: SublayerHook | None = None
    attention: AttentionHook | None = None
    cache: CacheHook | None = None


NO_HOOKS = Hooks()


def run_dense(sublayer: Sublayer, tokens: TokenMap, ref: SublayerRef) -> Tensor:
    """The hook that leaves every sub-layer as it is."""
    return sublayer(tokens)
