"""Where the garment is in a photograph: roughly, from colours alone.

Garments lie in the middle and the ground at the edge, so the histograms of the two places tell which colour belongs to
which; where both have a colour, the place decides. No network: the rule is short, and its mistakes can be looked at.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.wardrobe.colours import to_lab

BINS = (14, 18, 18)
STEP = 8.0
ROUNDS = 4
BATCH = 256


def centre_prior(height: int, width: int, device: torch.device) -> Tensor:
    """(H, W) chance that a place shows the garment: 0.95 in the middle, 0.03 at the edge."""
    y = torch.linspace(-1, 1, height, device=device).abs()[:, None]
    x = torch.linspace(-1, 1, width, device=device).abs()[None]
    far = torch.maximum(y * 0.95, x)
    return 0.03 + 0.92 * torch.sigmoid((0.68 - far) * 9)


def _bins(lab: Tensor) -> Tensor:
    """Lab (B, 3, H, W) -> index of the histogram bin (B, H W)."""
    light, a, b = lab.unbind(1)
    rows = (light / STEP).long().clamp(0, BINS[0] - 1)
    greens = (a / STEP + BINS[1] / 2).long().clamp(0, BINS[1] - 1)
    blues = (b / STEP + BINS[2] / 2).long().clamp(0, BINS[2] - 1)
    return ((rows * BINS[1] + greens) * BINS[2] + blues).flatten(1)


def _histogram(index: Tensor, weight: Tensor) -> Tensor:
    """Smoothed colour density (B, bins) of pixels with weights (B, H W)."""
    counts = weight.new_zeros(len(index), BINS[0] * BINS[1] * BINS[2]).scatter_add_(1, index, weight)
    cube = counts.view(-1, 1, *BINS)
    smooth = 0.6 * cube + 0.4 * F.avg_pool3d(cube, 3, 1, 1)
    return (smooth / smooth.sum((2, 3, 4), keepdim=True).clamp(min=1e-9)).flatten(1)


def garment_chance(pictures: Tensor) -> Tensor:
    """Chance (B, H, W) that a pixel of small sRGB pictures (B, 3, H, W) in [0, 1] shows the garment.

    Pictures of 48 to 128 pixels a side. A few rounds of: histograms of garment and ground by the present chances;
    chances anew by the histograms and the place, smoothed over the neighbours.
    """
    parts = []
    for part in pictures.split(BATCH):
        lab = to_lab(F.avg_pool2d(F.pad(part, (1, 1, 1, 1), mode="replicate"), 3, 1))
        index = _bins(lab)
        prior = centre_prior(part.shape[2], part.shape[3], part.device)
        chance = prior.expand(len(part), -1, -1)
        for _ in range(ROUNDS):
            flat = chance.flatten(1)
            inside = _histogram(index, flat).gather(1, index) + 1e-5
            outside = _histogram(index, 1 - flat).gather(1, index) + 1e-5
            odds = (inside / outside).view_as(chance).clamp(0.02, 50) * (prior / (1 - prior))
            chance = (odds / (1 + odds)).unsqueeze(1)
            chance = F.avg_pool2d(F.pad(chance, (2, 2, 2, 2), mode="replicate"), 5, 1).squeeze(1)
        parts.append(chance)
    return torch.cat(parts)
