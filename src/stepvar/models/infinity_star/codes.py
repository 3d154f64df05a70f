"""From bits to codes and back: the residual pyramid of a clip of latent frames.

A cell is coded in all its ``d`` channels ("detail"), or at coarse scales in a quarter of them ("semantic"), which
are then stretched over the channels as an image is over its pixels. Time is never resampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.tokens import Grid

CodePass = tuple[Grid, int]
"""One pass over a clip: its grid, and the bits per cell that it codes. A repeated scale is there repeatedly."""


def codes_of(bits: Tensor) -> Tensor:
    """Bits (B, bits, t, h, w), 0 or 1 -> codes of length 1 in float32: ``+-1 / sqrt(bits)``."""
    return (2.0 * bits.float() - 1.0) * bits.shape[1] ** -0.5


def enlarge_codes(codes: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """Codes (B, bits, t, h, w) -> (B, channels, t, H, W), linearly over channels, rows and columns of each frame."""
    target = (channels, *size)
    if (codes.shape[1], *codes.shape[3:]) == target:
        return codes
    return resample_frames(codes, target, "trilinear")


def shrink(latent: Tensor, grid: Grid) -> Tensor:
    """Latent frames (B, d, t, H, W) -> (B, d, *grid.shape): means over areas."""
    return latent if tuple(latent.shape[2:]) == grid.shape else F.interpolate(latent, size=grid.shape, mode="area")


def bits_of(residual: Tensor, grid: Grid, bits: int) -> Tensor:
    """What is left of a clip (B, d, t, H, W) -> its signs (B, bits, *grid.shape) as booleans.

    Channels, rows and columns of each frame are averaged over areas first.
    """
    target = (bits, grid.h, grid.w)
    if (residual.shape[1], *residual.shape[3:]) != target:
        residual = resample_frames(residual, target, "area")
    return residual > 0


def quantise_clip(target: Tensor, passes: Sequence[CodePass]) -> tuple[list[Tensor], Tensor]:
    """Codes the features of one clip, pass by pass, each what the ones before it left.

    Args:
        target: (B, d, t, H, W).

    Returns:
        The bits (B, bits, t, h, w) of each pass as booleans, and the sum of all codes, like ``target``, in float32.
    """
    target = target.float()
    total, bits = torch.zeros_like(target), []
    size = (target.shape[3], target.shape[4])
    for grid, count in passes:
        bits.append(bits_of(target - total, grid, count))
        total = total + enlarge_codes(codes_of(bits[-1]), target.shape[1], size)
    return bits, total


def quantise(feature: Tensor, clips: Sequence[Sequence[CodePass]]) -> tuple[list[Tensor], Tensor]:
    """Codes the features (B, d, T, H, W) of a video clip by clip; each clip takes as many frames as its grids have.

    Returns:
        The bits of all passes of all clips, and the sum of codes of all clips, one after the other.
    """
    bits: list[Tensor] = []
    totals = []
    frames = [passes[0][0].t for passes in clips]
    for target, passes in zip(feature[:, :, : sum(frames)].split(frames, dim=2), clips, strict=True):
        found, total = quantise_clip(target, passes)
        bits += found
        totals.append(total)
    return bits, torch.cat(totals, dim=2)


def resample_frames(values: Tensor, target: tuple[int, int, int], mode: str) -> Tensor:
    """Resamples channels, rows and columns of each frame of (B, C, t, h, w) as if they were a volume."""
    batch, _, frames = values.shape[:3]
    volumes = values.transpose(1, 2).flatten(0, 1).unsqueeze(1)
    corners = False if mode == "trilinear" else None
    resampled = F.interpolate(volumes, size=target, mode=mode, align_corners=corners)
    return resampled.squeeze(1).unflatten(0, (batch, frames)).transpose(1, 2)
