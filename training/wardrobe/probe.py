"""A probe that reads the garment of a picture: a logistic regression on features of EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.evaluation.metrics.lite0 import Lite0
from training.wardrobe.photographs import Photographs, middle_boxes

SIDE = 224
ROUNDS = 400
DECAY = 3e-3
LABELS = "labels"


@torch.no_grad()
def features(pictures: Tensor, network: Lite0, batch: int = 32) -> Tensor:
    """Features (N, 1280) of pictures (N, 3, H, W) in [0, 1], squeezed to the network's square."""
    parts = []
    for part in pictures.split(batch):
        small = F.interpolate(part, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        parts.append(network(small * 2 - 1))
    return torch.cat(parts)


def whole_photographs(photographs: Photographs, index: Tensor, size: tuple[int, int]) -> Tensor:
    """The middles of photographs as (N, 3, h, w) in [0, 1]."""
    straight = torch.zeros(len(index), dtype=torch.bool, device=index.device)
    return photographs.crop(index, middle_boxes(photographs, index, size), straight, size)


def features_of(photographs: Photographs, index: Tensor, size: tuple[int, int], network: Lite0) -> Tensor:
    """Features (N, 1280) of the middles of photographs, on the CPU."""
    parts = [features(whole_photographs(photographs, part, size), network) for part in index.split(64)]
    return torch.cat(parts).cpu()


@dataclass(frozen=True)
class Probe:
    """The regression on standardised features.

    Attributes:
        labels: C of them.
        mean, spread: (1280,) of the features it was fitted to.
        weight, bias: (1280, C) and (C,).
    """

    labels: tuple[str, ...]
    mean: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, found: Tensor, labels: Sequence[str]) -> Probe:
        """From features (N, F) and the label of each, with weight decay."""
        names = sorted(set(labels))
        wanted = torch.tensor([names.index(label) for label in labels])
        weight = torch.zeros(found.shape[1], len(names), requires_grad=True)
        bias = torch.zeros(len(names), requires_grad=True)
        mean, spread = found.mean(0), found.std(0) + 1e-4
        known = (found - mean) / spread
        optimiser = torch.optim.LBFGS([weight, bias], max_iter=ROUNDS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = F.cross_entropy(known @ weight + bias, wanted) + DECAY * weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        return cls(tuple(names), mean, spread, weight.detach(), bias.detach())

    @torch.no_grad()
    def read(self, found: Tensor) -> list[str]:
        """The label of each row of features (N, F)."""
        best = (((found - self.mean) / self.spread) @ self.weight + self.bias).argmax(1)
        return [self.labels[place] for place in best.tolist()]

    def to(self, device: torch.device) -> Probe:
        parts = {name: getattr(self, name).to(device) for name in ("mean", "spread", "weight", "bias")}
        return replace(self, **parts)

    def save(self, path: Path) -> None:
        parts = {"mean": self.mean, "spread": self.spread, "weight": self.weight, "bias": self.bias}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(parts, path, {LABELS: "\n".join(self.labels)})

    @classmethod
    def load(cls, path: Path) -> Probe:
        """What :meth:`save` wrote.

        Raises:
            UsageError: if it is not there, or something else.
        """
        try:
            with safe_open(path, "pt") as stored:
                labels = tuple((stored.metadata() or {})[LABELS].split("\n"))
                return cls(labels, *(stored.get_tensor(name) for name in ("mean", "spread", "weight", "bias")))
        except (OSError, SafetensorError, KeyError):
            raise UsageError(f"probe {path}: is no probe; python -m training.wardrobe.judge makes one") from None
