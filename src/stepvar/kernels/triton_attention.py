"""The Triton kernel that prepares queries, keys and values for attention; imported only where it runs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stepvar.kernels.norm import HeadsNorm, Rotation
from stepvar.kernels.triton_ops import on_device, row_stride, token_rows

UNIT, RMS = tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _turn_heads(
    x,
    out,
    head_stride,
    factor,
    weight,
    scale,
    cos,
    sin,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    HALVES: tl.constexpr,
):
    """The H heads of one token: normalises, scales, rotates. HEADS and WIDTH are H and D as powers of two."""
    h = tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, WIDTH // 2)[None, :]
    d = tl.arange(0, WIDTH)[None, :]
    pairs = (h < H) & (i < D // 2)
    whole = (h < H) & (d < D)
    if HALVES:
        a = tl.load(x + h * D + i, mask=pairs, other=0.0).to(tl.float32)
        b = tl.load(x + h * D + D // 2 + i, mask=pairs, other=0.0).to(tl.float32)
    else:
        # One load of neighbours, pulled apart afterwards, is wider than two loads of every second number.
        both = tl.load(x + h * D + d, mask=whole, other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(both, [HEADS, WIDTH // 2, 2]))
    if NORM != 0:
        square = tl.sum(a * a + b * b, 1)[:, None]
        inverse = 1.0 / tl.maximum(tl.sqrt(square), 1e-12) if NORM == UNIT else tl.rsqrt(square / D + EPS)
        a *= inverse
        b *= inverse
    first = i if HALVES else 2 * i
    second = i + D // 2 if HALVES else 2 * i + 1
    if weight is not None:
        a *= tl.load(weight + first, mask=i < D // 2, other=0.0).to(tl.float32)
        b *= tl.load(weight + second, mask=i < D // 2, other=0.0).to(tl.float32)
    if scale is not None:
        by_head = tl.load(scale + h, mask=h < H, other=0.0).to(tl.float32)
        a *= by_head
        b *= by_head
    a *= factor
    b *= factor
    if cos is not None:
        cos_a = tl.load(cos + i, mask=i < D // 2, other=0.0)
        sin_a = tl.load(sin + i, mask=i < D // 2, other=0.0)
        if HALVES:
            cos_b = tl.load(cos + D // 2 + i, mask=i < D // 2, other=0.0)
            sin_b = tl.load(sin + D // 2 + i, mask=i < D // 2, other=0.0)
        else:
            cos_b = cos_a
            sin_b = sin_a
        turned = a * cos_a - b * sin_a
        b = b * cos_b + a * sin_b
        a = turned
    kind = out.dtype.element_ty
    if HALVES:
        tl.store(out + h * head_stride + i, a.to(kind), mask=pairs)
        tl.store(out + h * head_stride + D // 2 + i, b.to(kind), mask=pairs)
    else:
        both = tl.reshape(tl.join(a, b), [HEADS, WIDTH])
        tl.store(out + h * head_stride + d, both.to(kind), mask=whole)


@triton.jit(do_not_specialize=["tokens", "position_row", "position_token"])
def _attention_inputs(
    q,
    k,
    v,
    q_out,
    k_out,
    v_out,
    q_scale,
    q_weight,
    k_weight,
    cos,
    sin,
    positions,
    tokens,
    q_stride,
    k_stride,
    v_stride,
    k_out_row,
    k_out_head,
    k_out_token,
    v_out_row,
    v_out_head,
    v_out_token,
    position_row,
    position_token,
    q_factor,
    H: tl.constexpr,
    KV: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    HALVES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One token per program: its queries, keys and values of all heads."""
    token = tl.program_id(0).to(tl.int64)
    row = token // tokens
    n = token % tokens
    if cos is not None:
        place = row * position_row + n * position_token
        if positions is not None:
            place = tl.load(positions + place)
        cos += place * COLUMNS
        sin += place * COLUMNS
    _turn_heads(
        q + token * q_stride,
        q_out + token * (H * D),
        D,
        q_factor,
        q_weight,
        q_scale,
        cos,
        sin,
        H,
        HEADS,
        D,
        WIDTH,
        NORM,
        EPS,
        HALVES,
    )
    _turn_heads(
        k + token * k_stride,
        k_out + row * k_out_row + n * k_out_token,
        k_out_head,
        1.0,
        k_weight,
        None,
        cos,
        sin,
        KV,
        KV_HEADS,
        D,
        WIDTH,
        NORM,
        EPS,
        HALVES,
    )
    h = tl.arange(0, KV_HEADS)[:, None]
    d = tl.arange(0, WIDTH)[None, :]
    inside = (h < KV) & (d < D)
    value = tl.load(v + token * v_stride + h * D + d, mask=inside, other=0.0)
    target = v_out + row * v_out_row + n * v_out_token + h * v_out_head + d
    tl.store(target, value.to(v_out.dtype.element_ty), mask=inside)


def attention_inputs(
    qkv: tuple[Tensor, Tensor, Tensor],
    heads: tuple[int, int],
    norm: HeadsNorm,
    rotation: Rotation,
    key_out: Tensor,
    value_out: Tensor,
) -> Tensor:
    """:func:`stepvar.kernels.ops.attention_inputs`."""
    q, k, v = (token_rows(part) for part in qkv)
    rows, tokens, width = q.shape
    count, kv_count = heads
    head_dim = width // count
    cos, sin, positions, halves = rotation
    if cos is not None and sin is not None:
        cos, sin = cos.contiguous(), sin.contiguous()
    if positions is not None:
        strides = (row_stride(positions), positions.stride(1))
    else:
        strides = (tokens if cos is not None and cos.shape[0] > 1 else 0, 1)
    out = torch.empty(rows, tokens, count, head_dim, dtype=q.dtype, device=q.device)
    with on_device(q):
        _attention_inputs[(rows * tokens,)](
            q,
            k,
            v,
            out,
            key_out,
            value_out,
            norm.q_scale,
            norm.q_weight,
            norm.k_weight,
            cos,
            sin,
            positions,
            tokens,
            q.stride(1),
            k.stride(1),
            v.stride(1),
            *key_out.stride()[:3],
            *value_out.stride()[:3],
            *strides,
            norm.q_factor,
            H=count,
            KV=kv_count,
            HEADS=triton.next_power_of_2(count),
            KV_HEADS=triton.next_power_of_2(kv_count),
            D=head_dim,
            WIDTH=triton.next_power_of_2(head_dim),
            NORM={"none": 0, "unit": UNIT.value, "rms": RMS.value}[norm.kind],
            EPS=norm.eps,
            HALVES=halves,
            COLUMNS=0 if cos is None else cos.shape[-1],
            num_warps=8 if width >= 4096 else 4,
        )
    return out.transpose(1, 2)
