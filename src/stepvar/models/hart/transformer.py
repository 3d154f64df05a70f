"""The HART transformer; parameter names are those of the published checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.kernels import ops
from stepvar.kernels.norm import EPS, HeadsNorm, Norm, rotate
from stepvar.models.hart.config import HARTConfig
from stepvar.models.hart.diffusion import DiffusionHead, SinusoidEmbedding
from stepvar.models.layers import (
    AdaptiveLinear,
    FeedForward,
    FusedAttention,
    GatedFeedForward,
    RMSNorm,
    Rotary,
    SelfAttention,
    split_heads,
)
from stepvar.models.offload import in_turn
from stepvar.models.precision import Policy, for_weight
from stepvar.models.var.transformer import AdaptiveBlock

POLICY: Policy = (
    (r"blocks\.\d+\.(attn|ffn|ada_lin)\.(?!scale_mul)", "blocks"),
    (r"diffloss\.", "blocks"),
    (r"head(_nm)?\.", "head"),
    (r"", "residual"),
)
"""Number formats of the weights; the diffusion head's products are in the blocks' format, its steps in float32."""


def make_norm(config: HARTConfig, affine: bool = False) -> nn.Module:
    """The normalisation of a flavour: with rotary positions always one with a weight."""
    if config.positions == "rotary":
        return RMSNorm(config.width)
    return nn.LayerNorm(config.width, eps=EPS, elementwise_affine=affine)


class Attention(SelfAttention):
    """Self-attention on queries and keys of unit length or not, turned by rotary positions or not."""

    halves = True

    def __init__(self, config: HARTConfig) -> None:
        projection = "qkv_proj" if config.positions == "rotary" else "mat_qkv"
        super().__init__(config.width, config.heads, projection, scaled=config.unit_attention)
        self.unit = config.unit_attention

    def fused_queries(self, qkv: Tensor, new_keys: Tensor, new_values: Tensor, context: FusedAttention) -> Tensor:
        if self.unit:
            return super().fused_queries(qkv, new_keys, new_values, context)
        norm, rotation = HeadsNorm("none", q_factor=0.25 / math.sqrt(new_keys.shape[-1])), context.rotation(halves=True)
        heads = (self.heads, self.heads)
        return ops.attention_inputs(qkv.chunk(3, dim=-1), heads, norm, rotation, new_keys, new_values)

    def place(self, q: Tensor, k: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
        dtype = q.dtype
        q, k = split_heads(q, self.heads), split_heads(k, self.heads)
        if self.unit:
            q = (F.normalize(q.float(), dim=-1) * self.scale()).to(dtype)
            k = F.normalize(k.float(), dim=-1).to(dtype)
        else:
            q = q * (0.25 / math.sqrt(q.shape[-1]))
        if rotary is not None:
            q, k = (rotate(part.float(), rotary, halves=True).to(dtype) for part in (q, k))
        return q, k


class Block(AdaptiveBlock):
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

    def norm(self, scale: Tensor | None, shift: Tensor | None) -> Norm:
        if isinstance(self.ln_wo_grad, RMSNorm):
            return Norm("rms", EPS, self.ln_wo_grad.weight, scale=scale, shift=shift)
        return super().norm(scale, shift)


class HeadNorm(nn.Module):
    """The normalisation before the head, modulated by the pooled text."""

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
        places: (R, T), of the text tokens; maps begin at the last one.
        levels: (S, C), what tells the scales apart.
    """

    context: Tensor
    null: Tensor
    pooled: Tensor
    modulation: tuple[Tensor | None, ...]
    places: Tensor
    levels: Tensor


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
        modulation = tuple(block.modulation(own) if modulated else None for block in in_turn(self.ordered_blocks))
        return Conditioning(context, null, highest, modulation, places, levels)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes (B, N, d) -> (B, N, C)."""
        return self.word_embed(for_weight(codes, self.word_embed.weight))

    def places(self, scale: int, positions: Tensor) -> Tensor | float:
        """Learned places (R, N, C) of the tokens of a scale after the first, at ``positions`` (R, N); 0 without."""
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
