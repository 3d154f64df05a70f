"""The operations of a convolutional decoder in channels_last, behind the selector of :mod:`stepvar.kernels.ops`.

A fused residual block leaves the biases out of its convolutions and adds them where the next operation reads the map
anyway::

    x, moments = add_bias_residual(conv(...), bias, residual, groups)     # x + bias + residual, and its moments
    x = apply_group_norm(x, moments, weight, bias, eps)                   # norm and SiLU

Moments are the mean and variance (B, groups) in float32 of the groups of channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.kernels.ops import use_triton

Moments = tuple[Tensor, Tensor]

MOST_CHANNELS = 4096
"""Most channels of a map that a kernel holds at a time."""


def use_fused_maps(*maps: Tensor | None) -> bool:
    """Whether the kernels take these maps (B, C, H, W): all in channels_last, and see :func:`ops.use_triton`."""
    present = [x for x in maps if x is not None]
    regular = all(x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) for x in present)
    return regular and present[0].shape[1] <= MOST_CHANNELS and use_triton(*present)


def group_moments(x: Tensor, groups: int, conv_bias: Tensor | None = None) -> Moments:
    """Mean and variance (B, groups) of ``x + conv_bias`` (B, C, H, W)."""
    if use_fused_maps(x):
        from stepvar.kernels import triton_maps

        return triton_maps.group_moments(x, groups, conv_bias, None, store=False)[1:]
    wide = x.float() if conv_bias is None else x.float() + conv_bias.float()[:, None, None]
    variance, mean = torch.var_mean(wide.unflatten(1, (groups, -1)).flatten(2), 2, correction=0)
    return mean, variance


def add_bias_residual(x: Tensor, bias: Tensor, residual: Tensor | None, groups: int) -> tuple[Tensor, Moments]:
    """``x + bias + residual`` (B, C, H, W) with a bias (C,), and the moments of the sum, in one pass."""
    if use_fused_maps(x, residual):
        from stepvar.kernels import triton_maps

        total, mean, variance = triton_maps.group_moments(x, groups, bias, residual, store=True)
        return total, (mean, variance)
    total = x + bias[:, None, None]
    if residual is not None:
        total = total + residual
    return total, group_moments(total, groups)


def apply_group_norm(
    x: Tensor,
    moments: Moments,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool = True,
    conv_bias: Tensor | None = None,
) -> Tensor:
    """Group normalisation of ``x + conv_bias`` (B, C, H, W) by given moments, and SiLU behind it.

    Args:
        moments: of ``x + conv_bias``, or of another input whose statistics this one shares.
        weight, bias, conv_bias: (C,).
    """
    if use_fused_maps(x):
        from stepvar.kernels import triton_maps

        return triton_maps.normalise_groups(x, moments, (weight, bias), eps, silu, conv_bias)
    mean, variance = moments
    size = x.shape[1] // mean.shape[1]
    gain = (variance + eps).rsqrt().repeat_interleave(size, dim=1) * weight.float()
    shift = bias.float() - mean.repeat_interleave(size, dim=1) * gain
    wide = x.to(torch.float32, copy=True)
    if conv_bias is not None:
        wide = wide.add_(conv_bias.float()[:, None, None])
    wide = wide.mul_(gain[..., None, None]).add_(shift[..., None, None])
    normed = wide.to(x.dtype)
    return F.silu(normed) if silu else normed


def upsample_nearest2x(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), every cell four times."""
    if use_fused_maps(x):
        from stepvar.kernels import triton_maps

        return triton_maps.upsample_nearest2x(x)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
