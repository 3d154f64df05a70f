"""The operations of a transformer block and of token pruning, behind one selector.

Every function has a plain path and a Triton kernel of the same signature. :func:`use_triton` decides at each call; what
a kernel does not support takes the plain path. The plain path is the arithmetic that results are pinned to: it does
not change. A kernel computes in float32 and rounds once, so the two differ by rounding.

Shapes: R rows, N tokens, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.kernels.norm import HeadsNorm, Norm, Rotation, rms_norm

Kernels = Literal["auto", "plain"]

KERNELS: ContextVar[Kernels] = ContextVar("KERNELS", default="auto")
"""Which kernels the running thread uses: ``"auto"``: fused ones where they are supported; ``"plain"``: PyTorch only."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

MOST_CHANNELS = 8192
"""Widest row that a kernel holds at a time."""


@contextmanager
def kernels(which: Kernels) -> Iterator[None]:
    """Chooses the kernels inside a ``with`` block."""
    token = KERNELS.set(which)
    try:
        yield
    finally:
        KERNELS.reset(token)


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


@cache
def is_interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU, as tests without a GPU do (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def compute_capability(device: torch.device) -> tuple[int, int]:
    """The CUDA compute capability of a device; (0, 0) if it is not an NVIDIA GPU."""
    if device.type != "cuda" or torch.version.hip is not None:
        return (0, 0)
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


def is_enabled(*tensors: Tensor | None) -> bool:
    """Whether fused operations are allowed on these tensors: chosen, not differentiated, and not being compiled.

    Under ``torch.compile`` the plain path is the better one: the compiler fuses it itself.
    """
    if KERNELS.get() == "plain" or torch.compiler.is_compiling():
        return False
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))


def use_triton(*tensors: Tensor | None) -> bool:
    """Whether a Triton kernel may take these tensors (None is passed over).

    They must be allowed to (:func:`is_enabled`), not empty, of a supported type, and on one NVIDIA GPU of compute
    capability 8.0 or higher; or on the CPU if Triton interprets its kernels.
    """
    present = [t for t in tensors if t is not None]
    device = present[0].device
    if device.type != "cuda" and not (device.type == "cpu" and is_interpreted()):
        return False
    if any(t.device != device or t.numel() == 0 or t.dtype not in (*FLOATS, torch.int64) for t in present):
        return False
    supported = device.type == "cpu" or compute_capability(device) >= (8, 0)
    return supported and has_triton() and is_enabled(*present)


def add_gated(x: Tensor, update: Tensor, gate: Tensor | None = None, *, inplace: bool = False) -> Tensor:
    """``x + gate * update``, in the type of x.

    Args:
        x, update: (R, N, C); the update may be of a lower precision.
        gate: (R, 1, C); None: 1.
        inplace: whether the sum may be written into ``x``.
    """
    if x.shape[-1] <= MOST_CHANNELS and use_triton(x, update, gate):
        from stepvar.kernels import triton_ops

        return triton_ops.add_gated(x, update, gate, inplace)
    return x + (update.to(x.dtype) if gate is None else gate * update)


def add_norm(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    norm: Norm,
    out_dtype: torch.dtype,
    *,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Adds an update to the residual stream, and normalises the sum.

    Args:
        x: (R, N, C), the residual stream.
        update, gate: as in :func:`add_gated`; without an update ``x' = x``.
        out_dtype: of what is normalised.
        inplace: whether x' may be written into ``x``.

    Returns:
        x' and the normalised tokens, both (R, N, C).
    """
    if x.shape[-1] <= MOST_CHANNELS and use_triton(x, update, gate, *norm[2:]):
        from stepvar.kernels import triton_ops

        return triton_ops.add_norm(x, update, gate, norm, out_dtype, inplace)
    if update is not None:
        x = add_gated(x, update, gate)
    return x, norm(x).to(out_dtype)


def attention_inputs(
    qkv: Sequence[Tensor],
    heads: tuple[int, int],
    norm: HeadsNorm,
    rotation: Rotation,
    key_out: Tensor,
    value_out: Tensor,
) -> Tensor:
    """Queries and keys normalised per head and rotated; keys and values stored.

    Args:
        qkv: queries (R, N, H D), keys and values (R, N, KV D); they may be parts of one projection.
        heads: H and KV.
        key_out, value_out: (R, KV, N, D), views of a cache to write into.

    Returns:
        Queries (R, H, N, D) in the type they came in.
    """
    q, k, v = qkv
    tensors = (q, k, v, *norm[2:5], *rotation[:3], key_out, value_out)
    if _supports_heads(q, heads[0], key_out, value_out) and use_triton(*tensors):
        from stepvar.kernels import triton_attention

        return triton_attention.attention_inputs((q, k, v), heads, norm, rotation, key_out, value_out)
    counts = (heads[0], heads[1], heads[1])
    q, k, v = (part.unflatten(-1, (count, -1)).transpose(1, 2) for part, count in zip(qkv, counts, strict=True))
    dtype = v.dtype
    if norm.kind == "unit":
        assert norm.q_scale is not None
        q = F.normalize(q.float(), dim=-1) * norm.q_scale.view(-1, 1, 1)
        k = F.normalize(k.float(), dim=-1)
        if rotation.halves:
            q, k = q.to(dtype), k.to(dtype)  # rounded in between, as HART does
    elif norm.kind == "rms":
        assert norm.q_weight is not None and norm.k_weight is not None
        q, k = rms_norm(q, norm.q_weight, norm.eps), rms_norm(k, norm.k_weight, norm.eps)
    else:
        q = q * norm.q_factor
    key_out.copy_(rotation(k.float()).to(dtype))
    value_out.copy_(v)
    return rotation(q.float()).to(dtype)


def _supports_heads(q: Tensor, heads: int, key_out: Tensor, value_out: Tensor) -> bool:
    """Whether the kernel holds the heads of a token at a time: H and D are rounded up to powers of two."""
    head_dim = q.shape[-1] // heads
    padded = 2 ** ((heads - 1).bit_length() + (head_dim - 1).bit_length())
    regular = key_out.stride(3) == value_out.stride(3) == 1
    return regular and head_dim % 2 == 0 and head_dim >= 16 and padded <= MOST_CHANNELS


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x W^T + b)`` in its tanh form; on a GPU in half precision it is part of the product."""
    if x.device.type == "cuda" and x.dtype in FLOATS[1:] and is_enabled(x, weight, bias):
        flat = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
        return flat.unflatten(0, x.shape[:-1])
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, both (R, N, C); they may be halves of one projection."""
    if use_triton(gate, up):
        from stepvar.kernels import triton_ops

        return triton_ops.swiglu(gate, up)
    return F.silu(gate) * up


def texture_energy(features: Tensor, t: int, h: int, w: int) -> Tensor:
    """Energy of a 3x3 high-pass over each frame: ``sum_c (x - avgpool3x3(x))^2``.

    At the border the average runs over the cells that exist, so that a constant map scores 0 everywhere.

    Args:
        features: (R, N, C), all ``N = t * h * w`` tokens of a grid, row-major.

    Returns:
        (R, N) in float32.
    """
    if use_triton(features):
        from stepvar.kernels import triton_maps

        return triton_maps.texture_energy(features, h, w)
    rows, size, channels = features.shape
    frames = features.float().view(rows * t, h, w, channels).permute(0, 3, 1, 2)
    low = F.avg_pool2d(frames, 3, stride=1, padding=1, count_include_pad=False)
    return (frames - low).square().sum(dim=1).view(rows, size)


def gather_rows(features: Tensor, index: Tensor) -> Tensor:
    """features (R, N, C) at index (R, M) -> (R, M, C): the kept tokens, or each token's nearest kept one."""
    if features.shape[-1] <= MOST_CHANNELS and use_triton(features, index):
        from stepvar.kernels import triton_maps

        return triton_maps.gather_rows(features, index)
    return features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
