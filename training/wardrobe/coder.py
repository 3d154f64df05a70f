"""The tokenizer in training: its latent centred and scaled, so that every scale's bits carry what they can."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.core.tokens import ScaleSchedule
from stepvar.models.infinity.tokenizer import BitTokenizer
from training.pyramid import Pyramid
from training.wardrobe.presets import WardrobePreset

SPREAD = 2.236
"""Standard deviation of every latent channel, in units of a code (``d ** -0.5`` with d bits): with fields between white
noise and 1/f this spread leaves the smallest share behind the last of ten scales."""
SOFTNESS = 0.1
SLOWEST = 0.02
"""Share of a batch in the running mean and variance of the latent."""
BALANCED_FROM = 1
"""First scale whose bits are balanced: one number for a whole picture, as at 1x1, may lean to a side."""


def in_bfloat16(module: nn.Module, x: Tensor) -> Tensor:
    """Runs a module in bfloat16, normalisations included, with gradients to its float32 weights."""
    weights = {name: weight.to(torch.bfloat16) for name, weight in module.named_parameters()}
    return torch.func.functional_call(module, weights, (x.to(torch.bfloat16),)).float()


class Coder(nn.Module):
    """A tokenizer and the running statistics of its encoder's output.

    Attributes:
        mean, variance: (d,) of the encoder's output.
    """

    def __init__(self, preset: WardrobePreset) -> None:
        super().__init__()
        self.tokenizer = BitTokenizer(preset.model.tokenizer)
        bits = preset.model.tokenizer.code_bits
        self.spread = SPREAD * bits**-0.5
        self.register_buffer("mean", torch.zeros(bits))
        self.register_buffer("variance", torch.ones(bits))

    def latent(self, raw: Tensor) -> Tensor:
        """The encoder's output (B, d, h, w), each channel with mean 0 and the same spread."""
        mean, variance = self.get_buffer("mean"), self.get_buffer("variance")
        factor = self.spread * (variance + 1e-6).rsqrt()
        return (raw - mean[:, None, None]) * factor[:, None, None]

    @torch.no_grad()
    def follow(self, statistics: Tensor, share: float) -> None:
        """Moves mean and variance towards those of a batch (2, d)."""
        self.get_buffer("mean").lerp_(statistics[0], share)
        self.get_buffer("variance").lerp_(statistics[1], share)

    @torch.no_grad()
    def folded(self) -> BitTokenizer:
        """A tokenizer whose last encoder layer brings the centring and scaling along."""
        tokenizer = BitTokenizer(self.tokenizer.config).to(self.get_buffer("mean").device)
        tokenizer.load_state_dict(self.tokenizer.state_dict())
        weight = tokenizer.get_parameter("encoder.conv_out.conv.weight")
        bias = tokenizer.get_parameter("encoder.conv_out.conv.bias")
        mean, variance = self.get_buffer("mean"), self.get_buffer("variance")
        factor = (self.spread * (variance + 1e-6).rsqrt()).to(weight)
        weight.mul_(factor[:, None, None, None])
        bias.sub_(mean.to(bias)).mul_(factor)
        return tokenizer

    @torch.no_grad()
    def unfold(self) -> None:
        """Statistics of a tokenizer that brings its centring along: those that change nothing.

        Folding left its last layer small or large; that is brought back to the size of a fresh one, since the steps of
        the optimiser do not depend on it.
        """
        weight = self.tokenizer.get_parameter("encoder.conv_out.conv.weight")
        size = weight.square().mean((1, 2, 3)).sqrt()
        gain = (3 * weight[0].numel()) ** -0.5 / size.clamp(min=1e-9)
        weight.mul_(gain[:, None, None, None])
        self.tokenizer.get_parameter("encoder.conv_out.conv.bias").mul_(gain)
        self.get_buffer("mean").zero_()
        self.get_buffer("variance").copy_((self.spread * gain).square())


def statistics(raw: Tensor) -> Tensor:
    """Mean and variance (2, d) of each channel of (B, d, h, w)."""
    variance, mean = torch.var_mean(raw.float(), dim=(0, 2, 3))
    return torch.stack((mean, variance))


def balance_error(latent: Tensor, built: Pyramid, schedule: ScaleSchedule) -> Tensor:
    """How far the bits lean to a side: mean over scales and channels of (2 p - 1)^2, with softened bits.

    A scale takes the signs of the latent less the sum of the coarser scales' codes; the latter is taken as given.
    """
    errors = []
    for index in range(BALANCED_FROM, len(built.sums)):
        grid = schedule.grids[index]
        left = F.adaptive_avg_pool2d(latent - built.sums[index - 1], (grid.h, grid.w))
        errors.append((2 * torch.sigmoid(left / SOFTNESS).mean((0, 2, 3)) - 1).square().mean())
    return torch.stack(errors).mean()


def correlation_error(latent: Tensor) -> Tensor:
    """Mean squared correlation of two channels: bits of one cell are drawn independently, so they should be."""
    flat = latent.transpose(0, 1).flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-6)
    table = flat @ flat.T
    return (table - torch.diag(torch.diag(table))).square().mean()
