"""Products in fp8 (e4m3) with one scale per token and one per output channel, for Hopper and newer GPUs.

What feeds a product is quantised where it is made: behind a normalisation, behind the activation. Elsewhere than on
such a GPU the same numbers are rounded the same way and multiplied in float32.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.kernels import ops
from stepvar.kernels.norm import Norm
from stepvar.kernels.ops import MOST_CHANNELS, use_triton

MOST_HIDDEN = 32768
"""Widest row that is quantised by itself at a time."""

FP8 = torch.float8_e4m3fn
MAX = 448.0
"""Largest number of the format."""
TINY = 1e-8
FEWEST_ROWS = 128
MOST_INPUTS = 4096
"""cuBLAS refuses products with a scale per row that have fewer rows and more inputs; seen on an H100 up to 50 rows."""
EMULATED = "quantization='fp8': the CPU emulates fp8 products, slowly and in float32; 'int8' is faster here"


class Quantised(NamedTuple):
    """Rows in eight bits: ``values (..., C) * scale (..., 1)``; of a weight (outputs, inputs) one row per channel."""

    values: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        """(..., C)"""
        return self.values.shape

    def dequantise(self) -> Tensor:
        """The numbers in float32."""
        return self.values.float() * self.scale


def has_fp8_products(device: torch.device) -> bool:
    """Whether the device multiplies fp8 with scales per row."""
    return ops.compute_capability(device) >= (9, 0)


def _use_triton(most: int, *tensors: Tensor | None) -> bool:
    device, width = next((t.device, t.shape[-1]) for t in tensors if t is not None)
    converts = device.type != "cuda" or ops.compute_capability(device) >= (8, 9)
    return converts and width <= most and use_triton(*tensors)


def quantise_rows(x: Tensor) -> Quantised:
    """Rows (..., C) in fp8, each scaled by its largest magnitude."""
    if _use_triton(MOST_HIDDEN, x):
        from stepvar.kernels import triton_ops

        return Quantised(*triton_ops.quantise(x, None, gelu=False))
    if x.is_meta:  # only what the kernel allocates, for those who count
        return Quantised(torch.empty_like(x, dtype=FP8), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
    wide = x.float()
    scale = wide.abs().amax(dim=-1, keepdim=True).clamp(min=TINY) / MAX
    return Quantised((wide / scale).to(FP8), scale)


def gelu_quantised(x: Tensor) -> Quantised:
    """``quantise_rows(gelu(x))`` with the tanh form of GELU."""
    if _use_triton(MOST_HIDDEN, x):
        from stepvar.kernels import triton_ops

        return Quantised(*triton_ops.quantise(x, None, gelu=True))
    return quantise_rows(F.gelu(x, approximate="tanh"))


def swiglu_quantised(gate: Tensor, up: Tensor) -> Quantised:
    """``quantise_rows(silu(gate) * up)``, both (R, N, C)."""
    if _use_triton(MOST_HIDDEN, gate, up):
        from stepvar.kernels import triton_ops

        return Quantised(*triton_ops.quantise(gate, up, gelu=False))
    return quantise_rows(F.silu(gate) * up)


def add_norm_quantised(
    x: Tensor, update: Tensor | None, gate: Tensor | None, norm: Norm, *, inplace: bool = False
) -> tuple[Tensor, Quantised]:
    """:func:`ops.add_norm` whose normalised tokens come in fp8."""
    if _use_triton(MOST_CHANNELS, x, update, gate, *norm[2:]):
        from stepvar.kernels import triton_ops

        total, values, scale = triton_ops.add_norm_quantised(x, update, gate, norm, inplace)
        return total, Quantised(values, scale)
    total, normed = ops.add_norm(x, update, gate, norm, torch.float32, inplace=inplace)
    return total, quantise_rows(normed)


def fp8_linear(x: Quantised, weight: Quantised, bias: Tensor | None, out_dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """``x W^T + b`` (..., outputs) of rows (..., inputs) and a weight (outputs, inputs) in fp8.

    Args:
        out_dtype: on a GPU the product itself is bfloat16, and converted where another type is asked for.
    """
    outputs, inputs = weight.shape
    multiplies = x.values.is_meta or has_fp8_products(x.values.device)
    if multiplies and inputs % 16 == 0 and outputs % 16 == 0:
        values, scale = x.values.flatten(0, -2), x.scale.reshape(-1, 1)
        rows = len(values)
        if rows < FEWEST_ROWS and inputs > MOST_INPUTS and not values.is_meta:  # operations are counted without
            values, scale = _with_rows(values, FEWEST_ROWS), _with_rows(scale, FEWEST_ROWS)
        product = torch._scaled_mm(
            values,
            weight.values.t(),
            scale_a=scale,
            scale_b=weight.scale.reshape(1, -1),
            bias=None if bias is None else bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )[:rows]
        return product.unflatten(0, x.shape[:-1]).to(out_dtype)
    if x.values.device.type == "cpu":
        warnings.warn(EMULATED, stacklevel=2)  # shown once
    wide = None if bias is None else bias.float()
    return F.linear(x.dequantise(), weight.dequantise(), wide).to(out_dtype)


def _with_rows(x: Tensor, count: int) -> Tensor:
    """x (R, C) with rows of zeros behind its own."""
    padded = torch.zeros(count, x.shape[1], dtype=x.dtype, device=x.device)
    padded[: len(x)] = x
    return padded
