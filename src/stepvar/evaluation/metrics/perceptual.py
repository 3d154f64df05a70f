"""Measures of visible harm beside PSNR and SSIM: gradients, Haar wavelets, and the energy of texture by octave.

Images are (B, 3, H, W) in [0, 1]; each measure gives one number per image. Published constants are for levels of 255.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 255.0
GMSD_CONSTANT = 170.0
HAAR_CONSTANT = 30.0
"""Added as it is, as in the authors' code; their paper squares it."""

HAAR_SLOPE = 4.2
PATCH = 32
"""Side in pixels of the patches whose spectra are compared; they overlap by a half."""

_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def yiq(images: Tensor) -> Tensor:
    """Luma and chroma (B, 3, H, W), by the weights of NTSC."""
    return torch.einsum("kc,bchw->bkhw", images.new_tensor(_TO_YIQ), images)


def gmsd(images: Tensor, reference: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation (Xue et al. 2014): 0 for equal images, lower is better.

    Of the luma at half the size: Prewitt gradients, how alike they are point by point, and the deviation of that.
    """
    edge = images.new_tensor([[1.0, 0.0, -1.0]]).expand(3, 3) / 3
    kernels = torch.stack([edge, edge.T]).unsqueeze(1)
    first, second = (
        F.conv2d(_halved(LEVELS * yiq(one.float())[:, :1]), kernels, padding=1).square().sum(dim=1).sqrt()
        for one in (images, reference)
    )
    return _similarity(first, second, GMSD_CONSTANT).flatten(1).std(dim=1, correction=0)


def haarpsi(images: Tensor, reference: Tensor) -> Tensor:
    """Haar wavelet-based perceptual similarity (Reisenhofer et al. 2018): 1 for equal images, higher is better."""
    first, second = (_halved(LEVELS * yiq(one.float())) for one in (images, reference))
    similarities, weights = [], []
    fine = [[_haar(one[:, :1], scale) for scale in (1, 2, 3)] for one in (first, second)]
    for way in (0, 1):
        levels = [_similarity(fine[0][scale][way], fine[1][scale][way], HAAR_CONSTANT) for scale in (0, 1)]
        similarities.append((levels[0] + levels[1]) / 2)
        weights.append(torch.maximum(fine[0][2][way], fine[1][2][way]))
    chroma = [F.avg_pool2d(F.pad(one[:, 1:], (0, 1, 0, 1)), 2, stride=1).abs() for one in (first, second)]
    similarities.append(_similarity(chroma[0], chroma[1], HAAR_CONSTANT).mean(dim=1, keepdim=True))
    weights.append((weights[0] + weights[1]) / 2)
    similarity, weight = torch.cat(similarities, dim=1), torch.cat(weights, dim=1)
    weighted = (torch.sigmoid(HAAR_SLOPE * similarity) * weight).sum(dim=(1, 2, 3))
    # Where no wavelet finds anything in either image, all places count alike.
    plain = torch.sigmoid(HAAR_SLOPE * similarity).mean(dim=(1, 2, 3))
    total = weight.sum(dim=(1, 2, 3))
    score = torch.where(total > 0, weighted / total.clamp(min=1e-12), plain)
    return (torch.logit(score) / HAAR_SLOPE).square()


def spectrum_distance(images: Tensor, reference: Tensor) -> Tensor:
    """How far the energy of texture is from the reference's, patch by patch, in dB: 0 for equal images.

    A measure of this project. The luma of overlapping patches is windowed (Hann), and the energy of its spectrum summed
    over octaves of spatial frequency, from 1/16 of a cycle per pixel to 1/2. The distance is the mean over patches and
    octaves of the absolute difference in level. It sees texture that is lost, smeared or made up, whatever its phase,
    where PSNR sees only how far each pixel is off. A level of 1 in 255 is added to each energy, so that nothing is
    made of noise in flat areas.
    """
    first, second = (_octaves(one) for one in (images, reference))
    return (first - second).abs().mean(dim=(1, 2))


def _octaves(images: Tensor) -> Tensor:
    """Levels in dB (B, patches, octaves)."""
    luma = LEVELS * yiq(images.float())[:, :1]
    side = min(PATCH, *luma.shape[-2:])
    patches = F.unfold(luma, side, stride=side // 2).transpose(1, 2).unflatten(2, (side, side))
    patches = patches - patches.mean(dim=(2, 3), keepdim=True)
    hann = torch.hann_window(side, periodic=False, device=images.device)
    window = hann[:, None] * hann
    power = torch.fft.fft2(patches * window).abs().square() / (side * side * window.square().sum())
    frequency = torch.fft.fftfreq(side, device=images.device)
    radius = torch.hypot(frequency[:, None], frequency)
    bands = [(low <= radius) & (radius < 2 * low) for low in (1 / 16, 1 / 8, 1 / 4)]
    return torch.stack([10 * torch.log10(power[..., band].sum(dim=-1) + 1.0) for band in bands], dim=-1)


def _halved(maps: Tensor) -> Tensor:
    return F.avg_pool2d(maps, 2)


def _similarity(first: Tensor, second: Tensor, constant: float) -> Tensor:
    return (2 * first * second + constant) / (first.square() + second.square() + constant)


def _haar(luma: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Magnitudes of the responses (B, 1, H, W) to the two Haar wavelets of a scale, zeros around the image."""
    side = 2**scale
    step = torch.ones(side, side, device=luma.device) / side
    step[: side // 2] *= -1
    padded = F.pad(luma, (side // 2 - 1, side // 2, side // 2 - 1, side // 2))
    found = F.conv2d(padded, torch.stack([step, step.T]).unsqueeze(1)).abs()
    return found[:, :1], found[:, 1:]
