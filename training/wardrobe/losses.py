"""Errors of decoded pictures, and the discriminator that sharpens the decoder at the end."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from training.wardrobe.lite0 import Lite0

CHROMA_CELL = 8
PIXELS, SQUARES, EDGES, CHROMA, SEEN = 1.0, 3.0, 0.5, 2.0, 0.25
"""Weights of the errors of pixels (absolute, squared), their differences, coarse chroma, and early features."""
LECAM = 0.3
"""Weight of the pull of the discriminator's verdicts towards each other's average (LeCam, arXiv 2104.03310)."""


def edge_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbours, both ways."""
    return F.l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))


def chroma_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute error of red against green and of yellow against blue, over cells of 8 x 8 pixels.

    Coarse, since that is how far the eye follows hue; and apart from light, since light outweighs hue elsewhere.
    """
    error = F.avg_pool2d(a - b, CHROMA_CELL)
    red, green, blue = error.unbind(1)
    return (red - green).abs().mean() + (blue - (red + green) / 2).abs().mean()


def perceptual_error(network: Lite0, a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of the early features, each place's scaled to unit length over its channels."""
    errors = []
    for mine, other in zip(network.maps(a), network.maps(b), strict=True):
        mine, other = (x / (x.square().sum(1, keepdim=True) + 1e-4).sqrt() for x in (mine.float(), other.float()))
        errors.append((mine - other).square().sum(1).mean())
    return torch.stack(errors).sum()


def picture_error(network: Lite0, decoded: Tensor, pictures: Tensor, squares: float = SQUARES) -> tuple[Tensor, Tensor]:
    """All errors together, the squared one ``squares`` times; and it alone. Pictures (B, 3, H, W) in [-1, 1]."""
    squared = F.mse_loss(decoded, pictures)
    total = PIXELS * F.l1_loss(decoded, pictures) + squares * squared
    total = total + EDGES * edge_error(decoded, pictures) + CHROMA * chroma_error(decoded, pictures)
    return total + SEEN * perceptual_error(network, decoded, pictures), squared


class Discriminator(nn.Module):
    """Says of each patch of about 35 pixels whether it is a photograph's; every layer's gain is at most 1."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1)), nn.LeakyReLU(0.2)]
        layers += [spectral_norm(nn.Conv2d(widths[-1], 1, 3, 1, 1))]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("averages", torch.zeros(2))

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 1, H / 8, W / 8), above 0 for photographs."""
        return self.layers(pictures)

    def loss(self, real: Tensor, made: Tensor) -> Tensor:
        """Hinge loss of telling photographs from decoded ones, held back by LeCam's pull."""
        said_real, said_made = self(real), self(made)
        averages = self.get_buffer("averages")
        with torch.no_grad():
            now = torch.stack((said_real.mean(), said_made.mean())).float()
            averages.lerp_(now, 0.01)
        pull = F.relu(said_real - averages[1]).square().mean() + F.relu(averages[0] - said_made).square().mean()
        return F.relu(1 - said_real).mean() + F.relu(1 + said_made).mean() + LECAM * pull
