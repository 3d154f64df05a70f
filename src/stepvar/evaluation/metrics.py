"""Fidelity of a picture to the dense one of the same seed."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.utils.device import full_precision

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
NO_ENERGY = 1e-10  # of a constant picture, by rounding
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, one per picture, of (B, 3, H, W) in [0, 1]; infinite for equal ones."""
    return -10 * torch.log10((pictures - reference).square().mean(dim=(1, 2, 3)))


def high_frequency_energy(pictures: Tensor) -> Tensor:
    """Energy of a 3x3 high-pass, one per picture (B, 3, H, W).

    Beside PSNR it shows the blur that PSNR forgives.
    """
    low = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    return (pictures - low).square().mean(dim=(1, 2, 3))


def high_frequency_share(pictures: Tensor, reference: Tensor) -> Tensor:
    """High-frequency energy as a share of the reference's, one per picture; 1 where neither has any."""
    energy, full = high_frequency_energy(pictures), high_frequency_energy(reference)
    return torch.where(full > NO_ENERGY, energy / full.clamp(min=NO_ENERGY), 1.0)


def ssim(pictures: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity, one per picture, of (B, 3, H, W) in [0, 1] (Wang et al. 2004).

    A Gaussian window of 11x11 and standard deviation 1.5, mirrored at the border, mean over channels and places:
    what ``torchmetrics`` computes, by matrix products, which makes it cheap for many pictures.
    """
    height, width = pictures.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"pictures of {height}x{width} pixels: the window needs {SSIM_WINDOW}x{SSIM_WINDOW}")
    rows, columns = (_window(side, pictures.device) for side in (height, width))
    with full_precision():  # variances are small differences of large numbers

        def blur(values: Tensor) -> Tensor:
            return rows @ (values.float() @ columns.T)

        mean_a, mean_b = blur(pictures), blur(reference)
        var_a = (blur(pictures.square()) - mean_a.square()).clamp(min=0)
        var_b = (blur(reference.square()) - mean_b.square()).clamp(min=0)
        cov = blur(pictures * reference) - mean_a * mean_b
    top = (2 * mean_a * mean_b + SSIM_C1) * (2 * cov + SSIM_C2)
    bottom = (mean_a.square() + mean_b.square() + SSIM_C1) * (var_a + var_b + SSIM_C2)
    return (top / bottom).mean(dim=(1, 2, 3))


@lru_cache(maxsize=16)
def _window(side: int, device: torch.device) -> Tensor:
    """The Gaussian window around every place of one side, mirrored at its ends: (side, side)."""
    reach = SSIM_WINDOW // 2
    offset = torch.arange(-reach, reach + 1)
    weights = torch.exp(-(offset.float() ** 2) / (2 * SSIM_SIGMA**2))
    place = torch.arange(side)[:, None] + offset
    place = (side - 1) - (side - 1 - place.abs()).abs()
    matrix = torch.zeros(side, side).scatter_add_(1, place, (weights / weights.sum()).expand(side, -1))
    return matrix.to(device)
