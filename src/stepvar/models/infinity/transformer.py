"""The Infinity transformer; parameter names are those of the published checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.core.stack import SublayerHook
from stepvar.core.tokens import TokenMap
from stepvar.kernels.linear import Rows, product, rows_for
from stepvar.kernels.norm import EPS, Norm
from stepvar.models.blocks import ResidualStream, residual
from stepvar.models.infinity.config import InfinityConfig
from stepvar.models.layers import (
    AdaptiveLinear,
    Attend,
    Chunk,
    FeedForward,
    FusedAttention,
    HeadNorm,
    RMSNorm,
    SelfAttention,
    merge_heads,
    split_heads,
)
from stepvar.models.offload import StreamedModule, in_turn
from stepvar.models.precision import Policy, for_weight

POLICY: Policy = (
    (r"block_chunks\.\d+\.module\.\d+\.(sa|ca|ffn)\.(?!scale_mul)", "blocks"),
    (r"head(_nm)?\.", "head"),
    (r"", "residual"),
)
"""Number formats of the weights; each block's norms, gates and scale of the queries go with the residual stream."""


@dataclass(frozen=True)
class TextMemory:
    """Keys and values (R, heads, L, head_dim) of the text for one block.

    Attributes:
        mask: (R, 1, 1, L) where there is padding, else None: which tokens are there, or what is added to the scores.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None

    def rows(self, part: slice) -> TextMemory:
        """Some of the rows: one branch when the other one is no longer needed."""
        mask = None if self.mask is None else self.mask[part]
        return TextMemory(self.keys[part], self.values[part], mask)


def with_bias(memory: Sequence[TextMemory]) -> tuple[TextMemory, ...]:
    """The memory of all blocks with a bias of the scores, 0 or minus infinity, in place of the bool mask.

    PyTorch's attention makes one of a mask at every call, with three small kernels.
    """
    mask = memory[0].mask
    if mask is None:
        return tuple(memory)
    bias = torch.zeros(mask.shape, dtype=memory[0].keys.dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    return tuple(replace(own, mask=bias) for own in memory)


@dataclass(frozen=True)
class BlockContext:
    """What a block sees beside its tokens, for the rows at hand.

    Attributes:
        modulation: (R, 6, C): gates of attention and feed-forward, their scales, their shifts.
        text: the block's text keys and values.
        rotary: positions (R, N) -> cosines and sines.
        attend, hook: see the types.
    """

    modulation: Tensor
    text: TextMemory
    rotary: Callable[[Tensor], tuple[Tensor, Tensor]]
    attend: Attend
    hook: SublayerHook


class KeyValue(nn.Module):
    """A joint projection to keys (no bias) and values (with one); base of the two attentions to text."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_kv = nn.Linear(text_width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """text (R, L, text_width) -> keys and values (R, heads, L, head_dim)."""
        bias = torch.cat([self.get_buffer("zero_k_bias"), self.v_bias])
        keys, values = product(self.mat_kv, text, bias).chunk(2, dim=-1)
        return split_heads(keys, self.heads), split_heads(values, self.heads)


class TextPooling(KeyValue):
    """Pools the text into one vector with a learned query per head."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__(width, text_width, heads)
        self.mat_q = nn.Parameter(torch.empty(1, heads, width // heads))

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        """text (R, L, text_width), mask (R, 1, 1, L) -> (R, C)."""
        keys, values = self.keys_values(text)
        query = self.mat_q.unsqueeze(2).expand(len(text), -1, -1, -1)
        pooled = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return self.proj(merge_heads(pooled).squeeze(1))


class TextPoolingSlot(nn.Module):
    """The level of naming that the checkpoints put around the pooling attention."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.ca = TextPooling(width, text_width, heads)


class CrossAttention(KeyValue):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, width, heads)
        self.mat_q = nn.Linear(width, width)

    def forward(self, x: Rows, text: TextMemory) -> Tensor:
        query = split_heads(self.mat_q(rows_for(self.mat_q, x)), self.heads)
        return self.proj(
            merge_heads(F.scaled_dot_product_attention(query, text.keys, text.values, attn_mask=text.mask))
        )


class Block(StreamedModule):
    """Self-attention, attention to the text and a feed-forward layer, each a residual update."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        width = config.width
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        self.sa = SelfAttention(width, config.heads)
        self.ca = CrossAttention(width, config.heads)
        self.ca_norm = nn.LayerNorm(width, eps=EPS)
        self.ffn = FeedForward(width, config.ffn_width)

    def fused(
        self, stream: ResidualStream, layer: int, modulation: Tensor, text: TextMemory, attention: FusedAttention
    ) -> None:
        """As :meth:`forward` without a hook, on a residual stream.

        Args:
            modulation: (R, 6, C), as in :class:`BlockContext`.
        """
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unsqueeze(2).unbind(1)
        norm1, norm2 = Norm("layer", scale=scale1, shift=shift1), Norm("layer", scale=scale2, shift=shift2)
        norm_text = Norm("layer", self.ca_norm.eps, self.ca_norm.weight, self.ca_norm.bias)
        stream.add(self.sa.fused(stream.normed(norm1, self.sa.joint), layer, attention), gate1)
        stream.add(self.ca(stream.normed(norm_text, self.ca.mat_q), text))
        stream.add(self.ffn.fused(stream.normed(norm2, self.ffn.entry)), gate2)

    def cache_keys(self, x: Tensor, layer: int, modulation: Tensor, attention: FusedAttention) -> None:
        """Keeps the keys and values of tokens x (R, N, C) of which nothing is read behind this block."""
        _, _, scale, _, shift, _ = modulation.unsqueeze(2).unbind(1)
        self.sa.fused_inputs(rows_for(self.sa.joint, Norm("layer", scale=scale, shift=shift)(x)), layer, attention)

    def forward(self, tokens: TokenMap, layer: int, context: BlockContext) -> TokenMap:
        gate1, gate2, scale1, scale2, shift1, shift2 = context.modulation.unsqueeze(2).unbind(1)

        def attend_self(tokens: TokenMap) -> Tensor:
            x = Norm("layer", scale=scale1, shift=shift1)(tokens.features)
            return gate1 * self.sa(x, layer, context.attend, context.rotary(tokens.positions))

        def attend_text(tokens: TokenMap) -> Tensor:
            return self.ca(self.ca_norm(tokens.features), context.text).to(tokens.features.dtype)

        def feed_forward(tokens: TokenMap) -> Tensor:
            return gate2 * self.ffn(Norm("layer", scale=scale2, shift=shift2)(tokens.features))

        sublayers = (("self", attend_self), ("cross", attend_text), ("ffn", feed_forward))
        return residual(tokens, layer, sublayers, context.hook)


@dataclass(frozen=True)
class Conditioning:
    """Everything that the text contributes, computed once per generation.

    Attributes:
        pooled: (R, C), the first token's content and the source of all modulations.
        text: (R, L, C), the source of the blocks' text keys and values.
        modulation: per block (R, 6, C).
        memory: per block, its text keys and values.
    """

    pooled: Tensor
    text: Tensor
    modulation: tuple[Tensor, ...]
    memory: tuple[TextMemory, ...]


class InfinityTransformer(nn.Module):
    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cfg_uncond = nn.Parameter(torch.empty(config.text_maxlen, config.text_channels))
        self.text_norm = RMSNorm(config.text_channels)
        self.text_proj_for_sos = TextPoolingSlot(width, config.text_channels, config.pool_heads)
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(config.text_channels, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.pos_start = nn.Parameter(torch.empty(1, 1, width))
        self.lvl_embed = nn.Embedding(config.levels, width)
        self.word_embed = nn.Linear(config.token_bits, width)
        self.shared_ada_lin = AdaptiveLinear(width, 6)
        per_chunk = config.depth // config.block_chunks
        self.block_chunks = nn.ModuleList(
            Chunk([Block(config) for _ in range(per_chunk)]) for _ in range(config.block_chunks)
        )
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, 2 * config.token_bits)

    @property
    def blocks(self) -> list[Block]:
        """All blocks in order."""
        return [module for module in self.block_chunks.modules() if isinstance(module, Block)]

    def condition(self, text: Tensor, mask: Tensor | None) -> Conditioning:
        """Text features (R, L, text_channels), of which ``mask`` (R, 1, 1, L) is there -> what the blocks need."""
        text = self.text_norm(text)
        pooled = self.text_proj_for_sos.ca(text, mask)
        text = self.text_proj_for_ca(text)
        shared = self.shared_ada_lin(pooled).unflatten(-1, (6, -1))
        modulation, memory = [], []
        for block in in_turn(self.blocks):
            modulation.append(block.ada_gss[0] + shared)
            memory.append(TextMemory(*block.ca.keys_values(text), mask))
        return Conditioning(pooled, text, tuple(modulation), with_bias(memory))

    def null_text(self, batch: int, length: int) -> Tensor:
        """The learned unconditional text: as many of its rows as each prompt has tokens, (batch, length, ...)."""
        return self.cfg_uncond[:length].expand(batch, -1, -1)

    def first_tokens(self, condition: Conditioning) -> Tensor:
        """(R, 1, C): what the 1x1 scale starts from."""
        return condition.pooled.unsqueeze(1) + self.pos_start

    def logits(self, x: Tensor, pooled: Tensor) -> Tensor:
        """(R, N, C), pooled text (R, C) -> (R, N, token_bits, 2) in float32: for each bit the logits of 0 and 1."""
        weight = self.head.weight
        normed = self.head_nm(for_weight(x, weight), for_weight(pooled, weight))
        return self.head(normed).float().unflatten(-1, (-1, 2))
