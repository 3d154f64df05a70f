"""The Switti transformer; parameter names are those of the published checkpoints."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.core.tokens import TokenMap
from stepvar.kernels import ops
from stepvar.kernels.linear import Rows, rows_for
from stepvar.kernels.norm import EPS, HeadsNorm, Norm, rotate
from stepvar.models.blocks import ResidualStream, residual
from stepvar.models.infinity.transformer import BlockContext, Conditioning, TextMemory, with_bias
from stepvar.models.layers import (
    AdaptiveLinear,
    FusedAttention,
    GatedFeedForward,
    HeadNorm,
    JointAttention,
    RMSNorm,
    Rotary,
    merge_heads,
    split_heads,
)
from stepvar.models.offload import StreamedModule, in_turn
from stepvar.models.precision import Policy, for_weight
from stepvar.models.switti.config import SwittiConfig

POLICY: Policy = (
    (r"blocks\.\d+\.(attn|cross_attn|ffn|ada_lin)\.", "blocks"),
    (r"head(_nm)?\.", "head"),
    (r"crop_embed\.", "exact"),
    (r"", "residual"),
)
"""Number formats of the weights; norms go with the residual stream."""

CROP_SIZE = 512.0
"""Height and width of the training image that a generated one is said to be: whole, at any resolution."""

WHOLE = Norm("layer")
"""Of queries and keys: over all channels, not head by head, without weights."""


def rms(norm: RMSNorm, scale: Tensor | None = None, shift: Tensor | None = None) -> Norm:
    """A norm with its modulation (R, 1, C), if there is one."""
    return Norm("rms", EPS, norm.weight, scale=scale, shift=shift)


def fused_whole(x: Tensor) -> Tensor:
    """Queries or keys (R, N, C), normalised by one kernel, in their own format."""
    return ops.add_norm(x, None, None, WHOLE, x.dtype)[1]


def fused_after(update: Tensor, norm: RMSNorm) -> Tensor:
    """The update (R, N, C) of a sub-layer, normalised by one kernel, in the format of the residual stream."""
    return ops.add_norm(update, None, None, rms(norm), norm.weight.dtype)[1]


class Attention(JointAttention):
    """Dot products of queries and keys that are normalised over the whole width and turned by rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.factor = 1 / math.sqrt(width // heads)

    @property
    def joint(self) -> nn.Linear:
        return self.to_qkv

    def bias(self) -> Tensor:
        return self.to_qkv.bias

    @property
    def query_bias(self) -> Tensor:
        return self.to_qkv.bias[: self.proj.in_features]

    def fused_queries(self, qkv: Tensor, new_keys: Tensor, new_values: Tensor, context: FusedAttention) -> Tensor:
        q, k, v = qkv.chunk(3, dim=-1)
        norm, heads = HeadsNorm("none", q_factor=self.factor), (self.heads, self.heads)
        parts = (fused_whole(q), fused_whole(k), v)
        return ops.attention_inputs(parts, heads, norm, context.rotation(self.halves), new_keys, new_values)

    def place(self, q: Tensor, k: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
        assert rotary is not None
        q, k = (split_heads(WHOLE(part), self.heads) for part in (q, k))
        return rotate((q * self.factor).float(), rotary).to(q.dtype), rotate(k.float(), rotary).to(k.dtype)


class CrossAttention(nn.Module):
    """Attention to the text, with queries and keys normalised as in self-attention, without positions."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(text_width, 2 * width)
        self.proj = nn.Linear(width, width)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """text (R, L, text_width) -> keys and values (R, heads, L, head_dim)."""
        keys, values = self.to_kv(rows_for(self.to_kv, text)).chunk(2, dim=-1)
        return split_heads(WHOLE(keys), self.heads), split_heads(values, self.heads)

    def forward(self, x: Rows, text: TextMemory) -> Tensor:
        return self._attend(WHOLE(self.to_q(rows_for(self.to_q, x))), text)

    def fused(self, x: Rows, text: TextMemory) -> Tensor:
        """As :meth:`forward` on x in the form of the weights, the norm by one kernel."""
        return self._attend(fused_whole(self.to_q(x)), text)

    def _attend(self, q: Tensor, text: TextMemory) -> Tensor:
        query = split_heads(q, self.heads)
        return self.proj(
            merge_heads(F.scaled_dot_product_attention(query, text.keys, text.values, attn_mask=text.mask))
        )


class Block(StreamedModule):
    """Self-attention, attention to the text and a feed-forward layer, each between two RMS norms.

    Self-attention and feed-forward layer are modulated and gated, attention to the text is not.
    """

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        width = config.width
        if config.crop_condition:
            self.crop_cond_scales = nn.Parameter(torch.zeros(1, width))
        self.attn = Attention(width, config.heads)
        self.cross_attn = CrossAttention(width, config.text_channels, config.heads)
        self.ffn = GatedFeedForward(width, config.ffn_width)
        self.self_attention_norm1, self.self_attention_norm2 = RMSNorm(width), RMSNorm(width)
        self.cross_attention_norm1, self.cross_attention_norm2 = RMSNorm(width), RMSNorm(width)
        self.ffn_norm1, self.ffn_norm2 = RMSNorm(width), RMSNorm(width)
        self.attention_y_norm = RMSNorm(config.text_channels)
        self.ada_lin = AdaptiveLinear(width, 6)

    def modulation(self, pooled: Tensor, crop: Tensor | None) -> Tensor:
        """The modulation (R, 6, C) from the pooled text (R, C), and the crop condition (1, C) if there is one."""
        condition = pooled if crop is None else pooled + self.crop_cond_scales * crop
        return self.ada_lin(condition).unflatten(-1, (6, -1))

    def text_memory(self, text: Tensor, mask: Tensor | None) -> TextMemory:
        """What the block attends to of the text (R, L, text_channels)."""
        return TextMemory(*self.cross_attn.keys_values(self.attention_y_norm(text)), mask)

    def fused(
        self, stream: ResidualStream, layer: int, modulation: Tensor, text: TextMemory, attention: FusedAttention
    ) -> None:
        """As :meth:`forward` without a hook, on a residual stream.

        Args:
            modulation: (R, 6, C), as in :class:`BlockContext`.
        """
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unsqueeze(2).unbind(1)
        x = stream.normed(rms(self.self_attention_norm1, scale1, shift1), self.attn.joint)
        stream.add(fused_after(self.attn.fused(x, layer, attention), self.self_attention_norm2), gate1)
        x = stream.normed(rms(self.cross_attention_norm1), self.cross_attn.to_q)
        stream.add(fused_after(self.cross_attn.fused(x, text), self.cross_attention_norm2))
        x = stream.normed(rms(self.ffn_norm1, scale2, shift2), self.ffn.entry)
        stream.add(fused_after(self.ffn.fused(x), self.ffn_norm2), gate2)

    def forward(self, tokens: TokenMap, layer: int, context: BlockContext) -> TokenMap:
        gate1, gate2, scale1, scale2, shift1, shift2 = context.modulation.unsqueeze(2).unbind(1)

        def attend_self(tokens: TokenMap) -> Tensor:
            x = rms(self.self_attention_norm1, scale1, shift1)(tokens.features)
            update = self.attn(x, layer, context.attend, context.rotary(tokens.positions))
            return gate1 * self.self_attention_norm2(update)

        def attend_text(tokens: TokenMap) -> Tensor:
            update = self.cross_attn(self.cross_attention_norm1(tokens.features), context.text)
            return self.cross_attention_norm2(update)

        def feed_forward(tokens: TokenMap) -> Tensor:
            update = self.ffn(rms(self.ffn_norm1, scale2, shift2)(tokens.features))
            return gate2 * self.ffn_norm2(update)

        sublayers = (("self", attend_self), ("cross", attend_text), ("ffn", feed_forward))
        return residual(tokens, layer, sublayers, context.hook)


class CropEmbedding(nn.Module):
    """Sines and cosines of numbers at fixed random frequencies, which the checkpoints hold."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width // 8))

    def forward(self, numbers: Tensor) -> Tensor:
        """(4,) -> (1, width). The angles reach thousands: in less than float32 they are lost."""
        angles = numbers[:, None] * self.weight * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten()[None]


class SwittiTransformer(nn.Module):
    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        self.config = config
        width, first = config.width, config.patch_nums[0] ** 2
        self.pos_start = nn.Parameter(torch.zeros(1, first, width))
        self.word_embed = nn.Linear(config.tokenizer.channels, width)
        self.text_pooler = nn.Linear(config.pooled_channels, width)
        self.lvl_embed = nn.Embedding(len(config.patch_nums), width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        if config.crop_condition:
            self.crop_embed = CropEmbedding(width)
            self.crop_proj = nn.Linear(width, width)
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, config.tokenizer.vocabulary)

    @property
    def ordered_blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def crop(self) -> Tensor | None:
        """The crop condition (1, C), the same for every image; None without one."""
        if not self.config.crop_condition:
            return None
        device = self.crop_embed.weight.device
        # Height and width, top and left; filled on the device: nothing is copied to it while graphs are captured.
        numbers = torch.cat([torch.full((2,), CROP_SIZE, device=device), torch.zeros(2, device=device)])
        return self.crop_proj(for_weight(self.crop_embed(numbers), self.crop_proj.weight))

    def condition(self, text: Tensor, pooled: Tensor, mask: Tensor | None) -> Conditioning:
        """What the blocks need of a text.

        Args:
            text: features (R, L, text_channels).
            pooled: (R, pooled_channels).
            mask: (R, 1, 1, L), which tokens of a row are there; None: all.
        """
        embedded, crop = self.text_pooler(pooled), self.crop()
        modulation, memory = [], []
        for block in in_turn(self.ordered_blocks):
            modulation.append(block.modulation(embedded, crop))
            memory.append(block.text_memory(text, mask))
        return Conditioning(embedded, text, tuple(modulation), with_bias(memory))

    def first_tokens(self, pooled: Tensor) -> Tensor:
        """(R, C) -> (R, tokens of the first scale, C): what it starts from."""
        return pooled.unsqueeze(1) + self.pos_start

    def logits(self, x: Tensor, pooled: Tensor) -> Tensor:
        """(R, N, C), pooled text (R, C) -> (R, N, vocabulary) in float32."""
        weight = self.head.weight
        return self.head(self.head_nm(for_weight(x, weight), for_weight(pooled, weight))).float()
