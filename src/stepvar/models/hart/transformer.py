"""The HART transformer; parameter names are those of the published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.core.stack import SublayerHook
from stepvar.core.tokens import TokenMap
from stepvar.kernels import ops
from stepvar.models.blocks import ResidualStream, residual
from stepvar.models.hart.config import HARTConfig
from stepvar.models.hart.diffusion import DiffusionHead, SinusoidEmbedding
from stepvar.models.hart.rope import rotate_halves
from stepvar.models.layers import (
    EPS,
    MAX_LOG_SCALE,
    AdaptiveLinear,
    Attend,
    FeedForward,
    FusedAttention,
    GatedFeedForward,
    RMSNorm,
    Rotary,
    merge_heads,
    split_heads,
)
from stepvar.models.precision import Policy, for_weight

POLICY: Policy = (
    (r"blocks\.\d+\.(attn|ffn|ada_lin)\.(?!scale_mul)", "blocks"),
    (r"diffloss\.", "blocks"),
    (r"head(_nm)?\.", "head"),
    (r"", "residual"),
)
"""Number formats of the weights; the diffusion head's products are in the blocks' format, its steps in float32."""


@dataclass(frozen=True)
class BlockContext:
    """What a block sees beside its tokens, for the rows at hand.

    Attributes:
        modulation: (R, 6, C): gates of attention and feed-forward, their scales, their shifts; None: no modulation.
        rotary: positions (R, N) -> cosines and sines; None with learned positions.
        attend, hook: see the types.
    """

    modulation: Tensor | None
    rotary: Callable[[Tensor], Rotary | None]
    attend: Attend
    hook: SublayerHook


def make_norm(config: HARTConfig, affine: bool = False) -> nn.Module:
    """The normalisation of a flavour: with rotary positions always one with a weight."""
    if config.positions == "rotary":
        return RMSNorm(config.width)
    return nn.LayerNorm(config.width, eps=EPS, elementwise_affine=affine)


class Attention(nn.Module):
    """Self-attention on queries and keys of unit length or not, turned by rotary positions or not."""

    def __init__(self, config: HARTConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.projection = "qkv_proj" if config.positions == "rotary" else "mat_qkv"
        self.add_module(self.projection, nn.Linear(width, 3 * width, bias=False))
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.scale_mul_1H11: nn.Parameter | None = None
        if config.unit_attention:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4)))
        self.proj = nn.Linear(width, width)

    @property
    def weight(self) -> Tensor:
        """The joint projection to queries, keys and values."""
        return self.get_parameter(f"{self.projection}.weight")

    def bias(self) -> Tensor:
        """The bias (3C,) of queries, keys and values."""
        return torch.cat([self.q_bias, self.get_buffer("zero_k_bias"), self.v_bias])

    def scale(self) -> Tensor:
        """The scale of the queries of each head (1, heads, 1, 1), in float32; of unit attention only."""
        assert self.scale_mul_1H11 is not None
        return self.scale_mul_1H11.float().clamp(max=MAX_LOG_SCALE).exp()

    def fused(self, x: Tensor, layer: int, context: FusedAttention) -> Tensor:
        """As :meth:`forward` on x (R, N, C) in the format of the weights, keys and values written into the cache."""
        qkv = F.linear(x, self.weight, context.constant(self, "bias", self.bias))
        new_keys, new_values, keys, values = context.cache.reserve(layer, x.shape[1], context.rows)
        where = (*context.rotary, context.positions, new_keys, new_values)
        if self.scale_mul_1H11 is None:
            factor = 0.25 / math.sqrt(keys.shape[-1])
            q = ops.qkv_scaled_rotary(qkv, self.heads, factor, *where, halves=True)
        else:
            scale = context.constant(self, "scale", self.scale).flatten()
            q = ops.qkv_unit_rotary(qkv, self.heads, scale, *where, halves=True)
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, keys, values, scale=1.0)))

    def forward(self, x: Tensor, layer: int, attend: Attend, rotary: Rotary | None) -> Tensor:
        weight = self.weight
        parts = F.linear(for_weight(x, weight), weight, self.bias()).chunk(3, dim=-1)
        q, k, v = (split_heads(part, self.heads) for part in parts)
        if self.scale_mul_1H11 is None:
            q, k = q * (0.25 / math.sqrt(q.shape[-1])), k
        else:
            q = (F.normalize(q.float(), dim=-1) * self.scale()).to(v.dtype)
            k = F.normalize(k.float(), dim=-1).to(v.dtype)
        if rotary is not None:
            q, k = (rotate_halves(part.float(), rotary).to(v.dtype) for part in (q, k))
        return self.proj(merge_heads(attend(layer, q, k, v)))


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each a residual update behind the same normalisation."""

    def __init__(self, config: HARTConfig) -> None:
        super().__init__()
        width = config.width
        self.attn = Attention(config)
        feed_forward = GatedFeedForward if config.feed_forward == "swiglu" else FeedForward
        self.ffn = feed_forward(width, config.ffn_width)
        self.ln_wo_grad = make_norm(config)
        self.ada_lin: AdaptiveLinear | None = None
        if config.modulation == "own":
            self.ada_lin = AdaptiveLinear(width, 6)
        if config.modulation == "shared":
            self.scale_shift_table = nn.Parameter(torch.zeros(6, width))

    def modulation(self, pooled: Tensor) -> Tensor:
        """From the pooled text (R, C) to (R, 6, C)."""
        if self.ada_lin is not None:
            return self.ada_lin(pooled).unflatten(-1, (6, -1))
        return self.scale_shift_table + pooled.unsqueeze(1)

    def fused(self, stream: ResidualStream, layer: int, modulation: Tensor | None, attention: FusedAttention) -> None:
        """As :meth:`forward` without a hook, on a residual stream."""
        gate1, gate2, scale1, scale2, shift1, shift2 = _parts(modulation)
        dtype = self.attn.weight.dtype

        def normed(scale: Tensor | None, shift: Tensor | None) -> Tensor:
            norm = self.ln_wo_grad
            if isinstance(norm, RMSNorm):
                return stream.rms_norm(norm.weight, scale, shift, EPS, dtype)
            return stream.layer_norm(scale, shift, dtype)

        stream.add(self.attn.fused(normed(scale1, shift1), layer, attention), gate1)
        stream.add(self.ffn.fused(normed(scale2, shift2)), gate2)

    def forward(self, tokens: TokenMap, layer: int, context: BlockContext) -> TokenMap:
        gate1, gate2, scale1, scale2, shift1, shift2 = _parts(context.modulation)

        def attend_self(tokens: TokenMap) -> Tensor:
            x = self._normed(tokens.features, scale1, shift1)
            return _gated(self.attn(x, layer, context.attend, context.rotary(tokens.positions)), gate1, tokens)

        def feed_forward(tokens: TokenMap) -> Tensor:
            return _gated(self.ffn(self._normed(tokens.features, scale2, shift2)), gate2, tokens)

        return residual(tokens, layer, (("self", attend_self), ("ffn", feed_forward)), context.hook)

    def _normed(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        x = self.ln_wo_grad(x)
        return x if scale is None or shift is None else torch.addcmul(shift, x, 1 + scale)


def _parts(modulation: Tensor | None) -> Sequence[Tensor | None]:
    """The six parts (R, 1, C) of a modulation (R, 6, C): gates, scales, shifts; None where there is none."""
    return [None] * 6 if modulation is None else modulation.unsqueeze(2).unbind(1)


def _gated(update: Tensor, gate: Tensor | None, tokens: TokenMap) -> Tensor:
    """The update in the format of the residual stream."""
    return update.to(tokens.features.dtype) if gate is None else gate * update


class HeadNorm(nn.Module):
    """The normalisation in front of the head, modulated by the pooled text."""

    def __init__(self, config: HARTConfig) -> None:
        super().__init__()
        self.ln_wo_grad = make_norm(config)
        self.ada_lin = AdaptiveLinear(config.width, 2)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        scale, shift = self.ada_lin(pooled).unsqueeze(1).chunk(2, dim=-1)
        return torch.addcmul(shift, self.ln_wo_grad(x), 1 + scale)


@dataclass(frozen=True)
class Conditioning:
    """Everything that the text contributes, computed once per generation; conditional rows first.

    Attributes:
        context: (B, T, C), what the first scale runs on.
        null: (1, 1 or T, C), the same of the unconditional branch, whose tokens are all alike unless they have learned
            places. Without guidance it is not used.
        pooled: (R, C) for the head.
        modulation: per block (R, 6, C), or None.
        places: (R, T), of the text tokens.
        levels: (S, C), what tells the scales apart.
    """

    context: Tensor
    null: Tensor
    pooled: Tensor
    modulation: tuple[Tensor | None, ...]
    places: Tensor
    levels: Tensor

    @property
    def starts(self) -> Tensor:
        """Where maps begin (R,): the place of the last text token."""
        return self.places[:, -1]


class HARTTransformer(nn.Module):
    def __init__(self, config: HARTConfig) -> None:
        super().__init__()
        self.config = config
        width, scales = config.width, len(config.patch_nums)
        sizes = [config.context_tokens] + [side * side for side in config.patch_nums[1:]]
        self.starts = [0, *accumulate(sizes)][:-1]
        self.word_embed = nn.Linear(config.tokenizer.channels, width)
        self.context_embed = nn.Linear(config.context_channels, width)
        self.context_norm = RMSNorm(config.context_channels) if config.context_norm else nn.Identity()
        if config.positions == "learned":
            self.pos_start = nn.Parameter(torch.zeros(1, config.context_tokens, width))
            self.pos_1LC = nn.Parameter(torch.zeros(1, sum(sizes), width))
        self.lvl_embed: nn.Module
        if config.levels == "sinusoid":
            self.lvl_embed = SinusoidEmbedding(width)
        else:
            self.lvl_embed = nn.Embedding(scales, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(config)
        self.head = nn.Linear(width, config.tokenizer.vocabulary)
        self.decoder_norm = make_norm(config, affine=True)
        self.diffloss = DiffusionHead(
            config.tokenizer.channels, width, config.diffusion_width, config.diffusion_depth, config.diffusion_steps
        )

    @property
    def ordered_blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def condition(self, features: Tensor, mask: Tensor, places: Tensor, guided: bool) -> Conditioning:
        """Text features (B, T, context_channels), mask of the words (B, T), places (B, T) -> what the blocks need.

        The unconditional branch reads zeros at place 0, so all its tokens are the same.
        """
        text = self.context_embed(self.context_norm(features))
        null = self.context_embed(self.context_norm(features.new_zeros(1, 1, features.shape[2])))
        levels = self.lvl_embed(torch.arange(len(self.config.patch_nums), device=features.device))
        highest = text.amax(dim=1)
        own = highest if self.config.modulation == "own" and self.config.pooling == "max" else _mean(text, mask)
        if guided:
            unconditional = null[0].expand(len(text), -1)
            highest, own = (torch.cat([pooled, unconditional]) for pooled in (highest, own))
            places = torch.cat([places, torch.zeros_like(places)])
        context, null = text + levels[0], null + levels[0]
        if self.config.positions == "learned":
            learned = self.pos_start + self.pos_1LC[:, : self.config.context_tokens]
            context, null = context + learned, null + learned
        modulated = self.config.modulation != "none"
        modulation = tuple(block.modulation(own) if modulated else None for block in self.ordered_blocks)
        return Conditioning(context, null, highest, modulation, places, levels)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes (B, N, d) -> (B, N, C)."""
        return self.word_embed(for_weight(codes, self.word_embed.weight))

    def places(self, scale: int, positions: Tensor) -> Tensor | float:
        """Learned places (R, N, C) of the tokens of a scale behind the first, at ``positions`` (R, N); 0 without."""
        if self.config.positions == "rotary":
            return 0.0
        return self.pos_1LC[0, self.starts[scale] + positions]

    def logits(self, x: Tensor, pooled: Tensor) -> Tensor:
        """(R, N, C), pooled text (R, C) -> (R, N, vocabulary) in float32."""
        weight = self.head.weight
        return self.head(for_weight(self.head_nm(for_weight(x, weight), for_weight(pooled, weight)), weight)).float()


def _mean(text: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, C) of the words; zeros where there is none."""
    weights = mask.to(text.dtype).unsqueeze(-1)
    return (text * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
