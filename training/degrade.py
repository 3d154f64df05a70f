"""Random damage to pictures, so that a network learns their content and not the renderer's fingerprints."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def degrade(pictures: Tensor) -> Tensor:
    """Blur, add noise, quantise as JPEG does and shift the tones of pictures (B, 3, H, W) in [-1, 1].

    Each picture gets a random strength of each, and often none. Height and width are multiples of 8.
    Draws from the global generator of the pictures' device.
    """
    pictures = _tones(pictures)
    pictures = torch.lerp(pictures, _blur(pictures), _strength(pictures, 0.5))
    pictures = _noise(pictures)
    shown = _strength(pictures, 0.4) > 0.0
    pictures = torch.where(shown, _quantise(pictures), pictures)
    return pictures.clamp(-1.0, 1.0)


def _uniform(pictures: Tensor, channels: int = 1) -> Tensor:
    return torch.rand(len(pictures), channels, 1, 1, device=pictures.device)


def _strength(pictures: Tensor, often: float) -> Tensor:
    """0 for most pictures, uniform in (0, 1] for a part ``often`` of them; (B, 1, 1, 1)."""
    return torch.where(_uniform(pictures) < often, 1.0 - _uniform(pictures), 0.0)


def _tones(pictures: Tensor) -> Tensor:
    gain = 1.0 + 0.16 * (_uniform(pictures) - 0.5) + 0.08 * (_uniform(pictures, 3) - 0.5)
    return pictures * gain + 0.12 * (_uniform(pictures) - 0.5)


def _blur(pictures: Tensor) -> Tensor:
    """Lose about half of the resolution, or three quarters."""
    height, width = pictures.shape[2:]
    factor = 2.0 if torch.rand(()).item() < 0.6 else 3.0
    small = (max(8, round(height / factor)), max(8, round(width / factor)))
    lost = F.interpolate(pictures, size=small, mode="bilinear", antialias=True)
    return F.interpolate(lost, size=(height, width), mode="bilinear", align_corners=False)


def _noise(pictures: Tensor) -> Tensor:
    """White noise, and blotches of about 16 pixels."""
    height, width = pictures.shape[2:]
    white = torch.randn_like(pictures) * (0.10 * _strength(pictures, 0.4))
    coarse = torch.randn(len(pictures), 3, math.ceil(height / 16), math.ceil(width / 16), device=pictures.device)
    blotches = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return pictures + white + blotches * (0.14 * _strength(pictures, 0.4))


def _quantise(pictures: Tensor) -> Tensor:
    """Round the cosine coefficients of blocks of 8 x 8 pixels, the fine ones more."""
    batch, channels, height, width = pictures.shape
    order = torch.arange(8, device=pictures.device, dtype=torch.float32)
    basis = torch.cos(math.pi / 8.0 * order[:, None] * (order + 0.5)) * 0.5
    basis[0] *= math.sqrt(0.5)
    blocks = pictures.view(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    step = (0.03 + 0.12 * _uniform(pictures))[..., None, None] * (1.0 + 0.6 * (order[:, None] + order))
    coefficients = basis @ blocks @ basis.T
    rounded = basis.T @ (torch.round(coefficients / step) * step) @ basis
    return rounded.transpose(3, 4).reshape(pictures.shape)
