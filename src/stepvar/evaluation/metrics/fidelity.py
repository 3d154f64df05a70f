"""Fidelity of images and frames to those of dense generation with the same seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.evaluation.metrics.learned import Distance
from stepvar.evaluation.metrics.perceptual import gmsd, haarpsi, spectrum_distance
from stepvar.evaluation.metrics.video import directions, flicker
from stepvar.utils.device import full_precision
from stepvar.utils.require import require

SSIM_WINDOW = 11
"""Pixels of the window that structural similarity is taken over."""

NO_ENERGY = 1e-10
"""High-frequency energy of a constant image, by rounding."""

EQUAL = 99.0
"""In dB: stands for the infinite PSNR of equal images."""


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, one per image (B, 3, H, W) or video in [0, 1]; infinite for equal ones.

    That of a video is over all of its pixels. A mean over the ratios of its frames would be ruled by those that are
    equal by construction, such as the image before a clip that methods leave dense.
    """
    return -10 * torch.log10((images - reference).square().flatten(1).mean(dim=1))


def high_frequency_energy(images: Tensor) -> Tensor:
    """Energy of a 3x3 high-pass, one per image (B, 3, H, W).

    Beside PSNR it shows the blur that PSNR forgives.
    """
    low = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    return (images - low).square().mean(dim=(1, 2, 3))


def high_frequency_share(images: Tensor, reference: Tensor) -> Tensor:
    """High-frequency energy as a share of the reference's, one per image; 1 where neither has any."""
    energy, full = high_frequency_energy(images), high_frequency_energy(reference)
    return torch.where(full > NO_ENERGY, energy / full.clamp(min=NO_ENERGY), 1.0)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity, one per image, of (B, 3, H, W) in [0, 1] (Wang et al. 2004), by torchmetrics.

    Raises:
        UsageError: if torchmetrics is not installed.
    """
    measure = require("torchmetrics.functional.image").structural_similarity_index_measure
    with full_precision():  # variances are small differences of large numbers
        found: Tensor = measure(images.float(), reference.float(), data_range=1.0, reduction="none")
    return found.view(len(images))


def fidelity(
    videos: Tensor,
    reference: Tensor,
    distances: Mapping[str, Distance] | None = None,
    clip_distances: Mapping[str, Distance] | None = None,
) -> list[dict[str, Any]]:
    """How close each of (B, t, 3, H, W) in [0, 1] is to its reference: means over the frames, PSNR over all pixels.

    Of videos ``frames`` has the numbers of every frame, too, and ``flicker`` is what they flicker more than their
    reference, in levels of 255; of three frames or more ``motion`` is 1 where things move to the reference's side.
    SSIM is left out of frames smaller than its window.

    Args:
        distances: more measures of frames (B, 3, H, W), by name.
        clip_distances: more measures of whole videos (B, t, 3, H, W), by name.
    """
    samples, count = videos.shape[:2]
    flat, other = videos.flatten(0, 1), reference.flatten(0, 1)
    measures = {
        "psnr": psnr(flat, other).clamp(max=EQUAL),
        "gmsd": gmsd(flat, other),
        "haarpsi": haarpsi(flat, other),
        "high_frequency": high_frequency_share(flat, other),
        "spectrum": spectrum_distance(flat, other),
    }
    if min(flat.shape[-2:]) >= SSIM_WINDOW:
        measures["ssim"] = ssim(flat, other)
    measures |= {name: distance(flat, other) for name, distance in (distances or {}).items()}
    table = {name: values.view(samples, count).cpu() for name, values in measures.items()}
    clips = {"psnr": psnr(videos, reference).clamp(max=EQUAL).cpu()}
    clips |= {name: distance(videos, reference).cpu() for name, distance in (clip_distances or {}).items()}
    added = flicker(videos.transpose(1, 2), reference.transpose(1, 2)).excess.tolist() if count > 1 else []
    rows: list[dict[str, Any]] = []
    for index in range(samples):
        row: dict[str, Any] = {name: round(float(values[index].mean()), 5) for name, values in table.items()}
        row |= {name: round(float(values[index]), 5) for name, values in clips.items()}
        if count > 1:
            if math.isfinite(added[index]):
                row["flicker"] = round(added[index], 4)
            row["frames"] = {name: [round(v, 4) for v in values[index].tolist()] for name, values in table.items()}
        rows.append(row)
    if count >= 3:
        sides = (directions(values.transpose(1, 2)) for values in (videos, reference))
        for row, own, wanted in zip(rows, *sides, strict=True):
            row["motion"] = float(own == wanted)
    return rows
