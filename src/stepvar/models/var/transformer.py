"""The VAR transformer; parameter names are those of the published checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from stepvar.core.stack import SublayerHook
from stepvar.core.tokens import TokenMap
from stepvar.kernels.norm import Norm
from stepvar.models.blocks import ResidualStream, residual
from stepvar.models.layers import (
    AdaptiveLinear,
    Attend,
    FeedForward,
    FusedAttention,
    GatedFeedForward,
    HeadNorm,
    Rotary,
    SelfAttention,
)
from stepvar.models.offload import StreamedModule, in_turn
from stepvar.models.precision import Policy, for_weight
from stepvar.models.var.config import VARConfig

POLICY: Policy = (
    (r"blocks\.\d+\.(attn|ffn|ada_lin)\.(?!scale_mul)", "blocks"),
    (r"head(_nm)?\.", "head"),
    (r"", "residual"),
)
"""Number formats of the weights. A block's own projection of the class is a third of its weights and stored like
the others; what comes out of it is added to the residual stream in that stream's format."""


@dataclass(frozen=True)
class BlockContext:
    """What a block sees beside its tokens, for the rows at hand.

    Attributes:
        modulation: (R, 6, C): gates of attention and feed-forward, their scales, their shifts; None: no modulation.
        attend, hook: see the types.
        rotary: positions (R, N) -> cosines and sines, or None.
    """

    modulation: Tensor | None
    attend: Attend
    hook: SublayerHook
    rotary: Callable[[Tensor], Rotary | None] = lambda positions: None


class AdaptiveBlock(StreamedModule):
    """Self-attention and a feed-forward layer, each a residual update after the same modulated normalisation."""

    attn: SelfAttention
    ffn: FeedForward | GatedFeedForward

    def norm(self, scale: Tensor | None, shift: Tensor | None) -> Norm:
        """The normalisation before a sub-layer, here a layer norm without weights."""
        return Norm("layer", scale=scale, shift=shift)

    def fused(self, stream: ResidualStream, layer: int, modulation: Tensor | None, attention: FusedAttention) -> None:
        """As :meth:`forward` without a hook, on a residual stream."""
        gate1, gate2, scale1, scale2, shift1, shift2 = _parts(modulation)
        x = stream.normed(self.norm(scale1, shift1), self.attn.joint)
        stream.add(self.attn.fused(x, layer, attention), gate1)
        stream.add(self.ffn.fused(stream.normed(self.norm(scale2, shift2), self.ffn.entry)), gate2)

    def forward(self, tokens: TokenMap, layer: int, context: BlockContext) -> TokenMap:
        gate1, gate2, scale1, scale2, shift1, shift2 = _parts(context.modulation)

        def attend_self(tokens: TokenMap) -> Tensor:
            x = self.norm(scale1, shift1)(tokens.features)
            return _gated(self.attn(x, layer, context.attend, context.rotary(tokens.positions)), gate1, tokens)

        def feed_forward(tokens: TokenMap) -> Tensor:
            return _gated(self.ffn(self.norm(scale2, shift2)(tokens.features)), gate2, tokens)

        return residual(tokens, layer, (("self", attend_self), ("ffn", feed_forward)), context.hook)


def _parts(modulation: Tensor | None) -> Sequence[Tensor | None]:
    """The six parts (R, 1, C) of a modulation (R, 6, C); None where there is none."""
    return [None] * 6 if modulation is None else modulation.unsqueeze(2).unbind(1)


def _gated(update: Tensor, gate: Tensor | None, tokens: TokenMap) -> Tensor:
    """The update in the format of the residual stream."""
    return update.to(tokens.features.dtype) if gate is None else gate * update


class Block(AdaptiveBlock):
    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        width = config.width
        self.attn = SelfAttention(width, config.heads)
        self.ffn = FeedForward(width, config.ffn_width)
        if config.shared_adaln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        else:
            self.ada_lin = AdaptiveLinear(width, 6)

    def modulation(self, pooled: Tensor, shared: Tensor | None) -> Tensor:
        """The block's modulation (R, 6, C) from the class (R, C), or from what all blocks share (R, 6, C)."""
        if shared is None:
            return self.ada_lin(pooled).unflatten(-1, (6, -1))
        return self.ada_gss[0] + shared


@dataclass(frozen=True)
class Conditioning:
    """Everything that the classes contribute, computed once per generation.

    Attributes:
        pooled: (R, C), the class embeddings.
        modulation: per block (R, 6, C).
    """

    pooled: Tensor
    modulation: tuple[Tensor, ...]


class VARTransformer(nn.Module):
    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config = config
        width, first = config.width, config.patch_nums[0] ** 2
        sizes = [side * side for side in config.patch_nums]
        self.starts = [0, *accumulate(sizes)][:-1]
        self.word_embed = nn.Linear(config.tokenizer.channels, width)
        self.class_emb = nn.Embedding(config.classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, first, width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, sum(sizes), width))
        self.lvl_embed = nn.Embedding(len(sizes), width)
        self.shared_ada_lin = AdaptiveLinear(width, 6) if config.shared_adaln else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, config.tokenizer.vocabulary)

    @property
    def ordered_blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def condition(self, labels: Tensor) -> Conditioning:
        """Class indices (R,) -> what the blocks need of them."""
        pooled = self.class_emb(labels)
        shared = None if self.shared_ada_lin is None else self.shared_ada_lin(pooled).unflatten(-1, (6, -1))
        return Conditioning(pooled, tuple(block.modulation(pooled, shared) for block in in_turn(self.ordered_blocks)))

    def first_tokens(self, pooled: Tensor) -> Tensor:
        """(R, C) -> (R, tokens of the first scale, C): what it starts from."""
        return pooled.unsqueeze(1) + self.pos_start

    def places(self, scale: int, positions: Tensor) -> Tensor:
        """Level and position embeddings (R, N, C) of the tokens of a scale at ``positions`` (R, N)."""
        return self.lvl_embed.weight[scale] + self.pos_1LC[0, self.starts[scale] + positions]

    def logits(self, x: Tensor, pooled: Tensor) -> Tensor:
        """(R, N, C), classes (R, C) -> (R, N, vocabulary) in float32."""
        weight = self.head.weight
        return self.head(self.head_nm(for_weight(x, weight), for_weight(pooled, weight))).float()
