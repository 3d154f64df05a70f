"""Fidelity of a picture to the dense one of the same seed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, one per picture, of (B, 3, H, W) in [0, 1]; infinite for equal ones."""
    return -10 * torch.log10((pictures - reference).square().mean(dim=(1, 2, 3)))


def high_frequency_energy(pictures: Tensor) -> Tensor:
    """Energy of a 3x3 high-pass, one per picture (B, 3, H, W).

    Beside PSNR it shows the blur that PSNR forgives.
    """
    low = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    return (pictures - low).square().mean(dim=(1, 2, 3))
