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

from stepvar.kernels.norm import Norm

LAYER, RMS = tl.constexpr(1), tl.constexpr(2)
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
