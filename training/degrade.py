"""Random damage to images, so that a network learns their content and not the renderer's fingerprints."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def degrade(images: Tensor) -> Tensor:
    """Blur, add noise, quantise as JPEG does and shift the tones of images (B, 3, H, W) in [-1, 1].

    Each image gets a random strength of each, and often none. Height and width are multiples of 8.
    Uses the global generator of the images' device.
    """
    images = _tones(images)
    images = torch.lerp(images, _blur(images), _strength(images, 0.5))
    images = _noise(images)
    shown = _strength(images, 0.4) > 0.0
    images = torch.where(shown, _quantise(images), images)
    return images.clamp(-1.0, 1.0)


def _uniform(images: Tensor, channels: int = 1) -> Tensor:
    return torch.rand(len(images), channels, 1, 1, device=images.device)


def _strength(images: Tensor, often: float) -> Tensor:
    """0 for most images, uniform in (0, 1] for a part ``often`` of them; (B, 1, 1, 1)."""
    return torch.where(_uniform(images) < often, 1.0 - _uniform(images), 0.0)


def _tones(images: Tensor) -> Tensor:
    gain = 1.0 + 0.16 * (_uniform(images) - 0.5) + 0.08 * (_uniform(images, 3) - 0.5)
    return images * gain + 0.12 * (_uniform(images) - 0.5)


def _blur(images: Tensor) -> Tensor:
    """Lose about half of the resolution, or three quarters."""
    height, width = images.shape[2:]
    factor = 2.0 if torch.rand(()).item() < 0.6 else 3.0
    small = (max(8, round(height / factor)), max(8, round(width / factor)))
    lost = F.interpolate(images, size=small, mode="bilinear", antialias=True)
    return F.interpolate(lost, size=(height, width), mode="bilinear", align_corners=False)


def _noise(images: Tensor) -> Tensor:
    """White noise, and blotches of about 16 pixels."""
    height, width = images.shape[2:]
    white = torch.randn_like(images) * (0.10 * _strength(images, 0.4))
    coarse = torch.randn(len(images), 3, math.ceil(height / 16), math.ceil(width / 16), device=images.device)
    blotches = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return images + white + blotches * (0.14 * _strength(images, 0.4))


def _quantise(images: Tensor) -> Tensor:
    """Round the cosine coefficients of blocks of 8 x 8 pixels, the fine ones more."""
    batch, channels, height, width = images.shape
    order = torch.arange(8, device=images.device, dtype=torch.float32)
    basis = torch.cos(math.pi / 8.0 * order[:, None] * (order + 0.5)) * 0.5
    basis[0] *= math.sqrt(0.5)
    blocks = images.view(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    step = (0.03 + 0.12 * _uniform(images))[..., None, None] * (1.0 + 0.6 * (order[:, None] + order))
    coefficients = basis @ blocks @ basis.T
    rounded = basis.T @ (torch.round(coefficients / step) * step) @ basis
    return rounded.transpose(3, 4).reshape(images.shape)
