"""The residual diffusion head: what a code leaves over, sampled token by token from noise.

The diffusion process is that of "Improved Denoising Diffusion Probabilistic Models" (Nichol and Dhariwal, 2021) with
a learned variance, the head that of "Autoregressive Image Generation without Vector Quantization" (Li et al., 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.kernels.norm import EPS
from stepvar.models.precision import for_weight

TRAINED_STEPS = 1000
GAIN = 0.6
"""What sampled residuals are multiplied by."""

Draw = Callable[[int], Tensor]
"""From the number of a draw, counted from 0, to standard normal variables (B, N, d)."""

EveryRow = Callable[[Tensor], Tensor]


def itself(values: Tensor) -> Tensor:
    """All rows, where they are all here."""
    return values


@dataclass(frozen=True)
class NoiseSchedule:
    """A cosine schedule of 1000 steps, of which a few are kept; all in float64, the least noisy step first.

    Attributes:
        timesteps: which of the 1000 steps are kept.
        betas: variance that each kept step adds.
        clean, noisy: factors of the sample and of its noise in the estimate of the clean value.
        mean_clean, mean_noisy: factors of the estimate and of the sample in the mean of the step before.
        log_variance: the smaller of the two variances between which the network chooses, as a logarithm.
    """

    timesteps: tuple[int, ...]
    betas: np.ndarray
    clean: np.ndarray
    noisy: np.ndarray
    mean_clean: np.ndarray
    mean_noisy: np.ndarray
    log_variance: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)

    @classmethod
    def of(cls, steps: int) -> NoiseSchedule:
        """A schedule of ``steps`` steps, spread evenly over the 1000."""
        kept = evenly_spaced(steps)
        signal = np.cumprod(1 - cosine_betas())[list(kept)]
        before = np.append(1.0, signal[:-1])
        betas = 1 - signal / before
        variance = betas * (1 - before) / (1 - signal)
        return cls(
            timesteps=kept,
            betas=betas,
            clean=np.sqrt(1 / signal),
            noisy=np.sqrt(1 / signal - 1),
            mean_clean=betas * np.sqrt(before) / (1 - signal),
            mean_noisy=(1 - before) * np.sqrt(1 - betas) / (1 - signal),
            log_variance=np.log(np.append(variance[1], variance[1:])),  # that of the first step is zero
        )


def evenly_spaced(steps: int) -> tuple[int, ...]:
    """Which of the 1000 steps are kept; the stride is added up in floating point, half to even."""
    place, kept = 0.0, []
    for _ in range(steps):
        kept.append(round(place))
        place += (TRAINED_STEPS - 1) / (steps - 1)
    return tuple(kept)


def cosine_betas() -> np.ndarray:
    """The variance that each of the 1000 steps adds."""

    def signal(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = range(TRAINED_STEPS)
    return np.array([min(1 - signal((i + 1) / TRAINED_STEPS) / signal(i / TRAINED_STEPS), 0.999) for i in steps])


class SinusoidEmbedding(nn.Module):
    """Whole numbers (M,) -> (M, width): cosines and sines of 128 frequencies, through two layers."""

    def __init__(self, width: int, frequencies: int = 128) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, numbers: Tensor) -> Tensor:
        place = torch.arange(self.frequencies, dtype=torch.float32, device=numbers.device)
        angles = numbers[:, None].float() * torch.exp(-math.log(10000) * place / self.frequencies)
        return self.mlp(for_weight(torch.cat([angles.cos(), angles.sin()], dim=-1), self.get_parameter("mlp.0.weight")))


class Modulation(nn.Sequential):
    """SiLU and a linear layer; the activation is computed once for all blocks, outside."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, parts * width))
        self.parts = parts

    def forward(self, active: Tensor) -> tuple[Tensor, ...]:
        return self[1](active).chunk(self.parts, dim=-1)


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = Modulation(width, 3)

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(active)
        return torch.addcmul(x, gate, self.mlp(torch.addcmul(shift, self.in_ln(x), 1 + scale)))


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = Modulation(width, 2)

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(active)
        return self.linear(torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale))


class DiffusionNet(nn.Module):
    """A multilayer perceptron on each token alone: its noisy residual, the step, the transformer's output."""

    def __init__(self, channels: int, condition: int, width: int, depth: int) -> None:
        super().__init__()
        self.channels, self.condition, self.width = channels, condition, width
        self.time_embed = SinusoidEmbedding(width)
        self.cond_embed = nn.Linear(condition, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels)

    def embed(self, condition: Tensor) -> Tensor:
        """(..., condition) -> (..., width): what all steps share."""
        return self.cond_embed(for_weight(condition, self.cond_embed.weight))

    def forward(self, x: Tensor, condition: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and its variance, both (R, N, channels) in float32.

        Args:
            x: (B, N, channels); the branches in ``condition``, of which there may be several times B, see the same.
            condition: (R, N, width) of :meth:`embed`.
            time: (width,) of ``time_embed``.
        """
        active = F.silu(condition + time)
        x = self.input_proj(for_weight(x, self.input_proj.weight))
        x = x.repeat(len(condition) // len(x), 1, 1)
        for block in self.res_blocks:
            x = block(x, active)
        noise, variance = self.final_layer(x, active).float().chunk(2, dim=-1)
        return noise, variance


class DiffusionHead(nn.Module):
    """Draws residuals by a fixed number of steps from noise to value."""

    def __init__(self, channels: int, condition: int, width: int, depth: int, steps: int) -> None:
        super().__init__()
        self.net = DiffusionNet(channels, condition, width, depth)
        self.schedule = NoiseSchedule.of(steps)

    def timesteps(self, device: torch.device) -> Tensor:
        """The kept steps, written on the device: a copy from the host could not be captured in a graph."""
        return torch.stack([torch.full((), step, device=device) for step in self.schedule.timesteps])

    def sample(self, condition: Tensor, guidance: float, draw: Draw, every_row: EveryRow = itself) -> Tensor:
        """Residuals (B, N, channels) in float32; arguments as for :meth:`steps`."""
        *_, (x, _) = self.steps(condition, guidance, draw, every_row)
        return GAIN * x

    def steps(
        self, condition: Tensor, guidance: float, draw: Draw, every_row: EveryRow = itself
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The sample after each step, and the clean value that it was estimated to lead to.

        Guidance moves the estimated noise, not its variance.

        Args:
            condition: (B, N, C), or (2B, N, C) with the unconditional branch after.
            guidance: of which the first branch is pushed away from the second, as in
                :func:`~stepvar.core.sampling.classifier_free_guidance`; without effect on one branch.
            draw: draw 0 is the start, draw i the noise of step i.
            every_row: from values of the rows of the condition to those of all rows, of which others may be in another
                process.
        """
        schedule, embedded = self.schedule, self.net.embed(condition)
        times = self.net.time_embed(self.timesteps(condition.device))
        x = draw(0)
        for turn, step in enumerate(reversed(range(len(schedule))), start=1):
            noise, share = map(every_row, self.net(x, embedded, times[step]))
            if len(noise) > len(x):
                conditional, unconditional = noise.chunk(2)
                noise = guidance * conditional + (1 - guidance) * unconditional
                share = share[: len(x)]
            clean = (float32(schedule.clean[step]) * x - float32(schedule.noisy[step]) * noise).clamp(-1, 1)
            x = float32(schedule.mean_clean[step]) * clean + float32(schedule.mean_noisy[step]) * x
            if step > 0:
                share = (share + 1) / 2
                most, least = float32(np.log(schedule.betas[step])), float32(schedule.log_variance[step])
                x = x + torch.exp(0.5 * (share * most + (1 - share) * least)) * draw(turn)
            yield x, clean


def float32(value: float) -> float:
    """The number that arithmetic in float32 sees."""
    return float(np.float32(value))
