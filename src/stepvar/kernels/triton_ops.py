"""The Triton kernels behind :mod:`stepvar.kernels.ops`; imported only where they run.

All compute in float32, whatever they read and write. Numbers of tokens are left out of the specialisation, so that each
kernel is compiled once per width and set of switches, not once per scale.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from stepvar.kernels.norm import HeadsNorm, Norm, Rotation

LAYER, RMS = tl.constexpr(1), tl.constexpr(2)
UNIT = tl.constexpr(1)
FP8_MAX = tl.constexpr(448.0)


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: make it that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def row_stride(x: Tensor | None) -> int:
    """Numbers from row to row of (R or 1, ...); one row serves all."""
    return 0 if x is None or x.shape[0] == 1 else x.stride(0)


def token_rows(x: Tensor) -> Tensor:
    """``x`` (R, N, C), copied unless its tokens lie at one distance and their channels side by side."""
    regular = x.stride(2) == 1 and (x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1))
    return x if regular else x.contiguous()


@triton.jit(do_not_specialize=["tokens"])
def _add_norm(
    x,
    update,
    gate,
    weight,
    bias,
    scale,
    shift,
    x_out,
    out,
    out_scale,
    tokens,
    gate_stride,
    scale_stride,
    shift_stride,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    QUANTISED: tl.constexpr,
):
    """One token per program: adds the gated update, normalises, modulates, rounds."""
    token = tl.program_id(0).to(tl.int64)
    row = token // tokens
    c = tl.arange(0, BLOCK)
    inside = c < C
    value = tl.load(x + token * C + c, mask=inside, other=0.0).to(tl.float32)
    if update is not None:
        added = tl.load(update + token * C + c, mask=inside, other=0.0).to(tl.float32)
        if gate is not None:
            added *= tl.load(gate + row * gate_stride + c, mask=inside, other=0.0).to(tl.float32)
        # Rounded like what is stored, so that a later reader of x' sees what was normalised here.
        value = (value + added).to(x_out.dtype.element_ty)
        tl.store(x_out + token * C + c, value, mask=inside)
        value = value.to(tl.float32)
    if NORM != 0:
        if NORM == LAYER:
            value = tl.where(inside, value - tl.sum(value, 0) / C, 0.0)
        value *= tl.rsqrt(tl.sum(value * value, 0) / C + EPS)
        if weight is not None:
            value *= tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            value += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
        if scale is not None:
            value *= 1.0 + tl.load(scale + row * scale_stride + c, mask=inside, other=0.0).to(tl.float32)
            value += tl.load(shift + row * shift_stride + c, mask=inside, other=0.0).to(tl.float32)
        if QUANTISED:
            step = tl.maximum(tl.max(tl.abs(value), 0), 1e-8) / FP8_MAX
            tl.store(out_scale + token, step)
            value /= step
        tl.store(out + token * C + c, value.to(out.dtype.element_ty), mask=inside)


def _run_add_norm(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    norm: Norm | None,
    out: Tensor | None,
    out_scale: Tensor | None,
    inplace: bool,
) -> Tensor:
    """Launches the kernel; returns x'."""
    x = x.contiguous()
    update = None if update is None else update.contiguous()
    x_out = x if update is None or inplace else torch.empty_like(x)
    rows, tokens, width = x.shape
    kind = 0 if norm is None else {"layer": LAYER.value, "rms": RMS.value}[norm.kind]
    weight, bias, scale, shift = (None,) * 4 if norm is None else norm[2:]
    with on_device(x):
        _add_norm[(rows * tokens,)](
            x,
            update,
            gate,
            weight,
            bias,
            scale,
            shift,
            x_out,
            out,
            out_scale,
            tokens,
            row_stride(gate),
            row_stride(scale),
            row_stride(shift),
            C=width,
            BLOCK=triton.next_power_of_2(width),
            NORM=kind,
            EPS=0.0 if norm is None else norm.eps,
            QUANTISED=out_scale is not None,
            num_warps=8 if width >= 2048 else 4,
        )
    return x_out


def add_gated(x: Tensor, update: Tensor, gate: Tensor | None, inplace: bool) -> Tensor:
    """:func:`stepvar.kernels.ops.add_gated`."""
    return _run_add_norm(x, update, gate, None, None, None, inplace)


def add_norm(
    x: Tensor, update: Tensor | None, gate: Tensor | None, norm: Norm, out_dtype: torch.dtype, inplace: bool
) -> tuple[Tensor, Tensor]:
    """The functions ``add_..._norm`` of :mod:`stepvar.kernels.ops`."""
    out = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    return _run_add_norm(x, update, gate, norm, out, None, inplace), out


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


@triton.jit
def _swiglu(gate, up, out, gate_stride, up_stride, C: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + token * gate_stride + c, mask=c < C, other=0.0).to(tl.float32)
    u = tl.load(up + token * up_stride + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(out + token * C + c, (g / (1.0 + tl.exp(-g)) * u).to(out.dtype.element_ty), mask=c < C)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """:func:`stepvar.kernels.ops.swiglu`."""
    gate, up = token_rows(gate), token_rows(up)
    rows, tokens, width = gate.shape
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    block = min(2048, triton.next_power_of_2(width))
    with on_device(gate):
        _swiglu[(rows * tokens, triton.cdiv(width, block))](
            gate, up, out, gate.stride(1), up.stride(1), C=width, BLOCK=block, num_warps=4
        )
    return out


@triton.jit
def _quantise(x, up, out, out_scale, x_stride, up_stride, C: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr):
    """One row per program, in fp8 with a scale of its own; behind GELU, or SiLU times ``up``."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < C
    value = tl.load(x + row * x_stride + c, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        value = value / (1.0 + tl.exp(-2.0 * inner))
    if up is not None:
        value = value / (1.0 + tl.exp(-value))
        value *= tl.load(up + row * up_stride + c, mask=inside, other=0.0).to(tl.float32)
    step = tl.maximum(tl.max(tl.abs(value), 0), 1e-8) / FP8_MAX
    tl.store(out_scale + row, step)
    tl.store(out + row * C + c, (value / step).to(out.dtype.element_ty), mask=inside)


def quantise(x: Tensor, up: Tensor | None, gelu: bool) -> tuple[Tensor, Tensor]:
    """Rows (..., C) in fp8, and their scales (..., 1)."""
    shape, width = x.shape, x.shape[-1]
    x = x if x.dim() == 3 else x.reshape(1, -1, width)
    x = token_rows(x)
    up = None if up is None else token_rows(up)
    out, scale = _quantised_like(shape, x.device)
    with on_device(x):
        _quantise[(x.shape[0] * x.shape[1],)](
            x,
            up,
            out,
            scale,
            x.stride(1),
            0 if up is None else up.stride(1),
            C=width,
            BLOCK=triton.next_power_of_2(width),
            GELU=gelu,
            num_warps=8 if width <= 8192 else 16,
        )
    return out, scale


def add_norm_quantised(
    x: Tensor, update: Tensor | None, gate: Tensor | None, norm: Norm, inplace: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`stepvar.kernels.fp8.add_norm_quantised`."""
    out, scale = _quantised_like(x.shape, x.device)
    return _run_add_norm(x, update, gate, norm, out, scale, inplace), out, scale


def _quantised_like(shape: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
    values = torch.empty(shape, dtype=torch.float8_e4m3fn, device=device)
    return values, torch.empty(*shape[:-1], 1, dtype=torch.float32, device=device)
