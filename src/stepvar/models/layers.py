"""Layers that several families share; parameter names are those of their published checkpoints."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.core.cache import KVCache
from stepvar.core.stack import AttentionInputs, Projection
from stepvar.kernels import ops
from stepvar.kernels.linear import Rows, product, product_gelu, products_swiglu, rows_for
from stepvar.kernels.norm import EPS, HeadsNorm, Norm, Rotation, rms_norm, rotate
from stepvar.models.precision import for_weight

MAX_LOG_SCALE = math.log(100)

Attend = Callable[[int, Tensor, Tensor, Tensor, Projection], Tensor]
"""Self-attention of a layer over everything computed so far: (layer, q, k, v, projection of the queries).

Queries, keys and values are (R, heads, N, head_dim).
"""

AttendCached = Callable[[int, AttentionInputs], Tensor]
"""As :data:`Attend`, of keys and values that are in the cache already: (layer, inputs)."""

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines (R, 1, N, head_dim / 2) of the tokens' positions."""


@dataclass(frozen=True)
class FusedAttention:
    """What the fused attention of a pass shares over its blocks.

    Attributes:
        cache: where keys and values are kept.
        rows: the rows of the cache that run.
        rotary: tables of cosines and sines, of which ``positions`` picks rows; None: no rotary positions.
        positions: (R, N), the tokens of the map; None: the tables are those of the tokens themselves.
        constants: what follows from weights alone, by module, made once per generation.
        attend: the attention itself.
    """

    cache: KVCache
    rows: slice
    rotary: tuple[Tensor | None, Tensor | None]
    positions: Tensor | None
    constants: dict[tuple[int, str], Tensor]
    attend: AttendCached

    def rotation(self, halves: bool) -> Rotation:
        return Rotation(*self.rotary, self.positions, halves)

    def constant(self, module: nn.Module, name: str, make: Callable[[], Tensor]) -> Tensor:
        key = (id(module), name)
        if key not in self.constants:
            self.constants[key] = make()
        return self.constants[key]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(R, N, C) -> (R, heads, N, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(R, heads, N, head_dim) -> (R, N, C)."""
    return x.transpose(1, 2).flatten(2)


def unit_rotated(x: Tensor, rotary: Rotary | None, scale: Tensor | None = None) -> Tensor:
    """Queries or keys (R, heads, N, head_dim) to unit length, scaled per head, then turned; in float32 inside."""
    unit = F.normalize(x.float(), dim=-1)
    if scale is not None:
        unit = unit * scale
    return (unit if rotary is None else rotate(unit, rotary)).to(x.dtype)


def grouped_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention where each head of the keys serves several neighbouring heads of the queries.

    The queries that share a head of the keys stand in one row one after the other, so no key is copied, and any kernel
    will do. Without a causal mask the order of queries does not matter.

    Args:
        q: (R, heads, N, head_dim).
        keys, values: (R, kv_heads, M, head_dim).
        mask: (R, 1, 1, M), which keys are seen.
    """
    groups = q.shape[1] // keys.shape[1]
    rows = q.unflatten(1, (-1, groups)).flatten(2, 3)
    seen = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask)
    return seen.unflatten(2, (groups, -1)).flatten(1, 2)


class RMSNorm(nn.Module):
    """Division by the root of the mean square, computed in float32, and a weight per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, EPS)


class Chunk(nn.Module):
    """A group of blocks: only a level of naming."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.module = nn.ModuleList(blocks)


class JointAttention(nn.Module, ABC):
    """Self-attention from one projection to queries, keys and values; a subclass says how these are normalised.

    Attributes:
        heads: attention heads.
        proj: the projection behind the attention.
    """

    halves: ClassVar[bool] = False  # whether rotary positions turn the halves of a head, not neighbouring channels
    heads: int
    proj: nn.Linear

    @property
    @abstractmethod
    def joint(self) -> nn.Linear:
        """The joint projection to queries, keys and values."""

    @abstractmethod
    def bias(self) -> Tensor:
        """The bias (3C,) of queries, keys and values."""

    @property
    @abstractmethod
    def query_bias(self) -> Tensor:
        """That of the queries (C,)."""

    @abstractmethod
    def fused_queries(self, qkv: Tensor, new_keys: Tensor, new_values: Tensor, context: FusedAttention) -> Tensor:
        """Queries (R, heads, N, head_dim) from qkv (R, N, 3C), as keys and values are written where they belong."""

    @abstractmethod
    def place(self, q: Tensor, k: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
        """Queries and keys (R, N, C) as (R, heads, N, head_dim), scaled and turned by their positions."""

    def fused(self, x: Rows, layer: int, context: FusedAttention) -> Tensor:
        """As :meth:`forward` on x (R, N, C) in the form of the weights, keys and values written into the cache."""
        return self.proj(merge_heads(context.attend(layer, self.fused_inputs(x, layer, context))))

    def fused_inputs(self, x: Rows, layer: int, context: FusedAttention) -> AttentionInputs:
        """Queries of x, and keys and values of all tokens, those of x written into the cache."""
        qkv = product(self.joint, x, context.constant(self, "bias", self.bias))
        new_keys, new_values, keys, values = context.cache.reserve(layer, x.shape[1], context.rows)
        q = self.fused_queries(qkv, new_keys, new_values, context)
        context.cache.keep(layer, context.rows, new_keys, new_values)
        projection = Projection(split_heads(qkv.chunk(3, dim=-1)[0], self.heads), self.query_bias)
        return AttentionInputs(q, keys, values, projection)

    def forward(self, x: Tensor, layer: int, attend: Attend, rotary: Rotary | None = None) -> Tensor:
        q, k, v = product(self.joint, x, self.bias()).chunk(3, dim=-1)
        projection = Projection(split_heads(q, self.heads), self.query_bias)
        q, k = self.place(q, k, rotary)
        return self.proj(merge_heads(attend(layer, q, k, split_heads(v, self.heads), projection)))


class SelfAttention(JointAttention):
    """Cosine attention with a learned scale per head, and rotary positions if the family has them.

    Args:
        projection: name of the joint projection to queries, keys and values.
        scaled: whether there is a learned scale.
    """

    def __init__(self, width: int, heads: int, projection: str = "mat_qkv", scaled: bool = True) -> None:
        super().__init__()
        self.heads, self.projection = heads, projection
        self.add_module(projection, nn.Linear(width, 3 * width, bias=False))
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        if scaled:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4)))
        self.proj = nn.Linear(width, width)

    @property
    def joint(self) -> nn.Linear:
        layer: nn.Linear = getattr(self, self.projection)
        return layer

    @property
    def query_bias(self) -> Tensor:
        return self.q_bias

    def bias(self) -> Tensor:
        return torch.cat([self.q_bias, self.get_buffer("zero_k_bias"), self.v_bias])

    def scale(self) -> Tensor:
        """The scale of the queries of each head (1, heads, 1, 1), in float32."""
        return self.scale_mul_1H11.float().clamp(max=MAX_LOG_SCALE).exp()

    def fused_queries(self, qkv: Tensor, new_keys: Tensor, new_values: Tensor, context: FusedAttention) -> Tensor:
        scale = context.constant(self, "scale", self.scale).flatten()
        norm, rotation = HeadsNorm("unit", q_scale=scale), context.rotation(self.halves)
        heads = (self.heads, self.heads)
        return ops.attention_inputs(qkv.chunk(3, dim=-1), heads, norm, rotation, new_keys, new_values)

    def place(self, q: Tensor, k: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
        q, k = split_heads(q, self.heads), split_heads(k, self.heads)
        return unit_rotated(q, rotary, self.scale()), unit_rotated(k, rotary)


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    @property
    def entry(self) -> nn.Linear:
        """The layer that multiplies what enters."""
        return self.fc1

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(rows_for(self.fc1, x)), approximate="tanh"))

    def fused(self, x: Rows) -> Tensor:
        """As :meth:`forward`, the activation in the epilogue of the product where there is one."""
        return self.fc2(product_gelu(self.fc1, x))


class GatedFeedForward(nn.Module):
    """SwiGLU: one projection gates the other."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    @property
    def entry(self) -> nn.Linear:
        """The first of the layers that multiply what enters."""
        return self.gate_proj

    def forward(self, x: Tensor) -> Tensor:
        rows = rows_for(self.gate_proj, x)
        return self.down_proj(F.silu(self.gate_proj(rows)) * self.up_proj(rows))

    def fused(self, x: Rows) -> Tensor:
        """As :meth:`forward`, gate and product in one kernel."""
        return self.down_proj(products_swiglu(self.gate_proj, self.up_proj, x))


class AdaptiveLinear(nn.Sequential):
    """SiLU and a linear layer, from the condition to a modulation."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, parts * width))

    def forward(self, condition: Tensor) -> Tensor:
        active = for_weight(self[0](condition), self.get_parameter("1.weight"))
        return self[1](active).to(condition.dtype)


class HeadNorm(nn.Module):
    """The normalisation before the head, modulated by the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = AdaptiveLinear(width, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition).unsqueeze(1).chunk(2, dim=-1)
        return Norm("layer", scale=scale, shift=shift)(x)
