"""The InfinityStar transformer; parameter names are those of the published checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stepvar.core.stack import Projection, SublayerHook, run_dense
from stepvar.core.tokens import Grid, TokenMap
from stepvar.kernels import ops
from stepvar.kernels.linear import Rows, rows_for
from stepvar.kernels.norm import EPS, HeadsNorm, Norm, Rotation, rotate
from stepvar.models.blocks import ResidualStream, residual
from stepvar.models.infinity_star.config import InfinityStarConfig
from stepvar.models.layers import (
    Attend,
    Chunk,
    GatedFeedForward,
    RMSNorm,
    Rotary,
    merge_heads,
    split_heads,
)
from stepvar.models.offload import StreamedModule, in_turn
from stepvar.models.precision import Policy, for_weight

POLICY: Policy = (
    (r".*\.(attn|mlp)\.\w+_proj\.", "blocks"),
    (r"(head|semantic_head2|norm_hidden_sates)\.", "head"),
    (r"", "residual"),
)
"""Number formats of the weights; the blocks' normalisations go with the residual stream."""


@dataclass(frozen=True)
class BlockContext:
    """What a block sees beside its tokens: their rotary positions, and see the types."""

    rotary: Callable[[Tensor], Rotary]
    attend: Attend
    hook: SublayerHook


Join = Callable[[int, int], tuple[Tensor, Tensor, Callable[[Tensor, Projection], Tensor]]]
"""(layer, N) -> room for the keys and values (R, kv_heads, N, head_dim), and the attention of queries to all."""


class Attention(nn.Module):
    """Attention with fewer heads of keys and values than of queries; queries and keys are normalised per head."""

    def __init__(self, config: InfinityStarConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_width, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)
        self.q_norm = RMSNorm(config.head_dim)
        self.k_norm = RMSNorm(config.head_dim)

    def fused(self, x: Rows, layer: int, rotary: Rotary, join: Join) -> Tensor:
        """As :meth:`forward` on x (R, N, C) in the form of the weights; ``join`` says where keys and values go."""
        cos, sin = (part.squeeze(1) for part in rotary)
        new_keys, new_values, attend = join(layer, x.shape[1])
        norm = HeadsNorm("rms", q_weight=self.q_norm.weight, k_weight=self.k_norm.weight)
        qkv, heads = (self.q_proj(x), self.k_proj(x), self.v_proj(x)), (self.heads, self.kv_heads)
        q = ops.attention_inputs(qkv, heads, norm, Rotation(cos, sin), new_keys, new_values)
        return self.o_proj(merge_heads(attend(q, Projection(split_heads(qkv[0], self.heads)))))

    def forward(self, x: Tensor, layer: int, attend: Attend, rotary: Rotary) -> Tensor:
        rows = rows_for(self.q_proj, x)
        v = split_heads(self.v_proj(rows), self.kv_heads)
        projected = split_heads(self.q_proj(rows), self.heads)
        q = rotate(self.q_norm(projected), rotary).to(v.dtype)
        k = rotate(self.k_norm(split_heads(self.k_proj(rows), self.kv_heads)), rotary).to(v.dtype)
        return self.o_proj(merge_heads(attend(layer, q, k, v, Projection(projected))))


class Block(StreamedModule):
    """Self-attention and a feed-forward layer, each a residual update."""

    def __init__(self, config: InfinityStarConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width)
        self.attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width)
        self.mlp = GatedFeedForward(config.width, config.ffn_width)

    def fused(self, stream: ResidualStream, layer: int, rotary: Rotary, join: Join) -> None:
        """As :meth:`forward` without a hook, on a residual stream."""
        norm1 = Norm("rms", EPS, self.input_layernorm.weight)
        norm2 = Norm("rms", EPS, self.post_attention_layernorm.weight)
        stream.add(self.attn.fused(stream.normed(norm1, self.attn.q_proj), layer, rotary, join))
        stream.add(self.mlp.fused(stream.normed(norm2, self.mlp.entry)))

    def forward(self, tokens: TokenMap, layer: int, context: BlockContext) -> TokenMap:
        def attend_self(tokens: TokenMap) -> Tensor:
            x = self.input_layernorm(tokens.features)
            update = self.attn(x, layer, context.attend, context.rotary(tokens.positions))
            return update.to(tokens.features.dtype)

        def feed_forward(tokens: TokenMap) -> Tensor:
            return self.mlp(self.post_attention_layernorm(tokens.features)).to(tokens.features.dtype)

        return residual(tokens, layer, (("self", attend_self), ("ffn", feed_forward)), context.hook)


def run_block(block: Block, features: Tensor, layer: int, rotary: Rotary, attend: Attend) -> Tensor:
    """One block on tokens (R, N, C) without any method; ``attend`` says who sees whom.

    A function of its own, so that training compiles it once for all blocks.
    """
    context = BlockContext(lambda _: rotary, attend, run_dense)
    return block(TokenMap.dense(features, Grid(1, 1, features.shape[1])), layer, context).features


class InfinityStarTransformer(nn.Module):
    """Text and the latent video of earlier clips in, bits of the next pass out."""

    def __init__(self, config: InfinityStarConfig) -> None:
        super().__init__()
        self.config = config
        width, channels = config.width, config.token_channels
        self.cfg_uncond = nn.Parameter(torch.empty(config.text_maxlen, config.text_channels))
        self.text_proj = nn.Linear(config.text_channels, width)
        self.word_embed = nn.Linear(channels, width)
        blocks = [Block(config) for _ in range(config.depth)]
        if config.block_chunks == 1:
            self.blocks = nn.ModuleList(blocks)
        else:
            size = config.depth // config.block_chunks
            chunks = (blocks[start : start + size] for start in range(0, config.depth, size))
            self.block_chunks = nn.ModuleList(Chunk(chunk) for chunk in chunks)
        self.norm_hidden_sates = RMSNorm(width)
        self.head = nn.Linear(width, 2 * channels)
        self.semantic_head2 = nn.Linear(width, 2 * config.semantic_bits)

    @property
    def block_list(self) -> list[Block]:
        """All blocks in order."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def text_tokens(self, text: Tensor) -> Tensor:
        """Text features (R, L, text_channels) -> tokens (R, L, C)."""
        return self.text_proj(for_weight(text, self.text_proj.weight))

    def null_text(self, batch: int, length: int) -> Tensor:
        """The learned unconditional text features: as many rows as the prompt has tokens, (batch, length, ...)."""
        return self.cfg_uncond[:length].expand(batch, -1, -1)

    def cell_tokens(self, cells: Tensor) -> Tensor:
        """Latent cells (R, N, d) -> tokens (R, N, C)."""
        return self.word_embed(for_weight(cells, self.word_embed.weight))

    def run_blocks(self, features: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        """All blocks on tokens (R, N, C) with the positions ``rotary``, without any method."""
        for layer, block in enumerate(in_turn(self.block_list)):
            features = run_block(block, features, layer, rotary, attend)
        return features

    def logits(self, x: Tensor, scale: int) -> Tensor:
        """(R, N, C) of a scale of its clip -> (R, N, bits, 2) in float32: for each bit the logits of 0 and 1."""
        head = self.semantic_head2 if scale < self.config.semantic_scales else self.head
        normed = self.norm_hidden_sates(for_weight(x, head.weight))
        return head(normed).float().unflatten(-1, (-1, 2))
