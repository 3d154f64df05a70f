"""The STAR transformer and its sampler; parameter names are those of the published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.core.stack import SublayerHook
from stepvar.core.tokens import TokenMap
from stepvar.kernels.fp8 import Quantised
from stepvar.kernels.linear import Rows, product
from stepvar.kernels.norm import EPS, Norm
from stepvar.models.blocks import ResidualStream, residual
from stepvar.models.infinity.transformer import KeyValue, TextMemory, with_bias
from stepvar.models.layers import (
    MAX_LOG_SCALE,
    Attend,
    FeedForward,
    FusedAttention,
    Rotary,
    SelfAttention,
    merge_heads,
    split_heads,
    unit_rotated,
)
from stepvar.models.offload import StreamedModule, in_turn
from stepvar.models.precision import Policy, for_weight
from stepvar.models.star.config import STARConfig
from stepvar.models.var.transformer import AdaptiveBlock

SAMPLER_BLOCKS = 3

POLICY: Policy = (
    (r"(blocks|feat_extract_blocks)\.\d+\.(attn|cross_attn|ffn)\.(?!scale_mul)", "blocks"),
    (r"head_proj\.", "blocks"),
    (r"head_logits2?\.", "head"),
    (r"", "residual"),
)
"""Number formats of the weights. The projection into the sampler runs on all tokens at every step, like a block."""


@dataclass(frozen=True)
class BlockContext:
    """What a block sees beside its tokens, for the rows at hand.

    Attributes:
        text: the block's text keys and values.
        rotary: positions (R, N) -> cosines and sines.
        attend, hook: see the types.
    """

    text: TextMemory
    rotary: Callable[[Tensor], Rotary]
    attend: Attend
    hook: SublayerHook


class CrossAttention(KeyValue):
    """Cosine attention to the text with a learned scale per head.

    Args:
        first_row: whether all rows get the update of the first one.
    """

    def __init__(self, config: STARConfig) -> None:
        super().__init__(config.width, config.text_channels, config.heads)
        self.first_row = config.first_row_cross
        self.mat_q = nn.Linear(config.width, config.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.heads, 1, 1), math.log(4)))

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """text (R, L, text_channels) -> keys of unit length and values (R, heads, L, head_dim)."""
        keys, values = super().keys_values(text)
        return unit_rotated(keys, None), values

    def forward(self, x: Rows, text: TextMemory) -> Tensor:
        """x (R, N, C) -> the update (R, N, C) in the format of the weights."""
        rows = x.shape[0]
        if self.first_row:
            x, text = _first(x), text.rows(slice(0, 1))
        scale = self.scale_mul_1H11.float().clamp(max=MAX_LOG_SCALE).exp()
        query = unit_rotated(split_heads(product(self.mat_q, x, self.q_bias), self.heads), None, scale)
        seen = F.scaled_dot_product_attention(query, text.keys, text.values, attn_mask=text.mask, scale=1.0)
        update: Tensor = self.proj(merge_heads(seen))
        return update.repeat(rows, 1, 1) if self.first_row else update


def _first(x: Rows) -> Rows:
    """The first row of (R, N, C)."""
    return Quantised(x.values[:1], x.scale[:1]) if isinstance(x, Quantised) else x[:1]


class Block(StreamedModule):
    """Self-attention, attention to the text and a feed-forward layer, each a residual update after a plain norm."""

    def __init__(self, config: STARConfig) -> None:
        super().__init__()
        self.attn = SelfAttention(config.width, config.heads)
        self.cross_attn = CrossAttention(config)
        self.ffn = FeedForward(config.width, config.ffn_width)

    def fused(self, stream: ResidualStream, layer: int, text: TextMemory, attention: FusedAttention) -> None:
        """As :meth:`forward` without a hook, on a residual stream."""
        norm = Norm("layer")
        stream.add(self.attn.fused(stream.normed(norm, self.attn.joint), layer, attention))
        stream.add(self.cross_attn(stream.normed(norm, self.cross_attn.mat_q), text))
        stream.add(self.ffn.fused(stream.normed(norm, self.ffn.entry)))

    def forward(self, tokens: TokenMap, layer: int, context: BlockContext) -> TokenMap:
        norm = Norm("layer")

        def attend_self(tokens: TokenMap) -> Tensor:
            x = norm(tokens.features)
            return self.attn(x, layer, context.attend, context.rotary(tokens.positions)).to(x.dtype)

        def attend_text(tokens: TokenMap) -> Tensor:
            return self.cross_attn(norm(tokens.features), context.text).to(tokens.features.dtype)

        def feed_forward(tokens: TokenMap) -> Tensor:
            return self.ffn(norm(tokens.features)).to(tokens.features.dtype)

        sublayers = (("self", attend_self), ("cross", attend_text), ("ffn", feed_forward))
        return residual(tokens, layer, sublayers, context.hook)


class SamplerBlock(AdaptiveBlock):
    """A block of the sampler: no text, no modulation."""

    def __init__(self, config: STARConfig) -> None:
        super().__init__()
        self.attn = SelfAttention(config.width, config.heads)
        self.ffn = FeedForward(config.width, config.ffn_width)


@dataclass(frozen=True)
class Conditioning:
    """Everything that the text contributes, computed once per generation; conditional rows first.

    Attributes:
        pooled: (R, C), what the first scale starts from.
        memory: per block, its text keys and values.
        sampler: (R, 1, C), the sampler's first token; None without a sampler.
    """

    pooled: Tensor
    memory: tuple[TextMemory, ...]
    sampler: Tensor | None


class STARTransformer(nn.Module):
    def __init__(self, config: STARConfig) -> None:
        super().__init__()
        self.config = config
        width, scales, codes = config.width, len(config.patch_nums), config.tokenizer
        self.word_embed = nn.Linear(codes.channels, width)
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.lvl_embed = nn.Embedding(scales, width)
        self.encoder_proj = nn.Linear(config.text_channels, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_logits = nn.Linear(width, codes.vocabulary)
        if config.sampler is not None:
            self.word_embed_head = nn.Linear(codes.channels, width)
            self.encoder_proj2 = nn.Linear(config.text_channels, width)
            self.head_proj = nn.Linear(2 * width, width)
            self.head_logits2 = nn.Linear(width, codes.vocabulary)
            self.pos_start_last = nn.Parameter(torch.zeros(1, 1, width))
            self.lvl_embed_2 = nn.Embedding(scales, width)
            self.feat_extract_blocks = nn.ModuleList(SamplerBlock(config) for _ in range(SAMPLER_BLOCKS))

    @property
    def ordered_blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def sampler_blocks(self) -> list[SamplerBlock]:
        return [block for block in self.feat_extract_blocks if isinstance(block, SamplerBlock)]

    def condition(self, text: Tensor, mask: Tensor | None, pooled: Tensor) -> Conditioning:
        """What the blocks need of a text.

        Args:
            text: features (R, L, text_channels).
            mask: (R, 1, 1, L), which of them are there; None: all.
            pooled: (R, text_channels).
        """
        memory = [TextMemory(*block.cross_attn.keys_values(text), mask) for block in in_turn(self.ordered_blocks)]
        sampler = None
        if self.config.sampler is not None:
            sampler = self.encoder_proj2(pooled).unsqueeze(1) + self.pos_start_last
        return Conditioning(self.encoder_proj(pooled), with_bias(memory), sampler)

    def first_tokens(self, pooled: Tensor) -> Tensor:
        """(R, C) -> (R, 1, C): what the first scale starts from."""
        return pooled.unsqueeze(1) + self.pos_start

    def logits(self, x: Tensor) -> Tensor:
        """(R, N, C) -> (R, N, vocabulary) in float32."""
        x = for_weight(x, self.head_logits.weight)
        return self.head_logits(_normed(x) if self.config.head_norm else x).float()

    def sampler_tokens(self, text: Tensor, features: Tensor, codes: Tensor, scale: int) -> Tensor:
        """What the sampler's blocks start from: (R, 1 + N, C).

        Args:
            text: (R, 1, C), their first token.
            features: (R, N, C), the tokens of the scale after the transformer's blocks.
            codes: (R, N, d), the codes that are known, zeros where none is.
        """
        known = self.word_embed_head(for_weight(codes, self.word_embed_head.weight)) + self.lvl_embed_2.weight[scale]
        known, features = (torch.cat([text, tokens], dim=1) for tokens in (known, features))
        joined = torch.cat([known, features], dim=-1)
        return self.head_proj(for_weight(joined, self.head_proj.weight)).to(features.dtype)

    def sampler_logits(self, x: Tensor) -> Tensor:
        """(R, 1 + N, C) -> (R, 1 + N, vocabulary) in float32; always normalised."""
        return self.head_logits2(_normed(for_weight(x, self.head_logits2.weight))).float()


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS)
