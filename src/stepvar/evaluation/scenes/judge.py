"""A small network that says what is in an image of a scene."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stepvar.errors import CheckpointError, UsageError
from stepvar.utils.files import atomic_path

from .grammar import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES

SLOTS: tuple[str, ...] = ("leftmost", "rightmost", "topmost", "bottommost")
WORDS: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES}
"""The attributes of an object and their words, in the order of the logits."""

RELATION_SLOTS: dict[str, tuple[int, int]] = {"left of": (0, 1), "right of": (1, 0), "above": (2, 3), "below": (3, 2)}
"""The slots where the first and the second object of a scene must be."""

SHORT_SIDE = 128
Self = TypeVar("Self", bound="StoredJudge")


class StoredJudge(nn.Module):
    """A network that finds objects in images, kept in a file of its own; ``form`` names the kind of file."""

    form: ClassVar[str]
    query: nn.Conv2d

    def save(self, path: str | os.PathLike[str], dtype: torch.dtype = torch.float16) -> None:
        """Write the weights as safetensors (``dtype`` for the floating ones), whole or not at all."""
        tensors = {
            name: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous()
            for name, value in self.state_dict().items()
        }
        with atomic_path(Path(path)) as temporary:
            save_file(tensors, temporary, metadata={"format": self.form})

    @classmethod
    def load(cls: type[Self], path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """Read a judge written by :meth:`save`, in float32 and evaluation mode.

        Raises ``CheckpointError`` when there is no file or it is not a judge.
        """
        judge = cls()
        try:
            with safe_open(Path(path), framework="pt") as file:
                if (file.metadata() or {}).get("format") != cls.form:
                    raise CheckpointError(f"{path} is not a judge: its format is not {cls.form!r}")
            judge.load_state_dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not hold the weights of a judge: {error}") from error
        return judge.to(device).eval()

    def find(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each query finds in features (B, C, h, w).

        Returns:
            The log-probability of its place (B, queries, h w), the mean place (B, queries, 2), (x, y) in short sides
            from the centre, and the features there (B, queries, C).
        """
        height, width = features.shape[2:]
        y, x = (
            (torch.arange(side, device=features.device, dtype=torch.float32) + 0.5 - 0.5 * side) / min(height, width)
            for side in (height, width)
        )
        coordinates = torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]
        query = self.query(torch.cat((features, coordinates.expand(len(features), -1, -1, -1)), dim=1))
        attention: Tensor = query.float().flatten(2).log_softmax(-1)
        weights = attention.exp()
        # Not a matrix product, which autocast would round.
        place = (weights[:, :, None] * coordinates.flatten(2)).sum(-1)
        return attention, place, torch.einsum("bsn,bcn->bsc", weights.to(features.dtype), features.flatten(2))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.body(x))


def down(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.GELU(),
    )


class Judge(StoredJudge):
    """Reads images (B, 3, H, W) in [-1, 1] of any size.

    The image is resized to a short side of 128 pixels. One attention query for each slot (leftmost,
    rightmost, topmost, bottommost object) finds an object and says its attributes. Where there is one
    object, all slots are that object; where there are two, the slots of the axis that separates them
    are meaningful.
    """

    form = "stepvar-judge-1"

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = 32, 56, 96
        self.trunk = nn.Sequential(
            down(3, fine, 5),
            down(fine, middle, 3),
            Residual(middle),
            down(middle, coarse, 3),
            Residual(coarse),
            Residual(coarse),
        )
        self.query = nn.Conv2d(coarse + 2, len(SLOTS), 1)
        self.say = nn.Sequential(nn.Linear(coarse, 128), nn.GELU())
        self.attributes = nn.ModuleDict({name: nn.Linear(128, len(words)) for name, words in WORDS.items()})
        self.scenery = nn.Linear(coarse, len(BACKGROUNDS))
        self.counting = nn.Sequential(nn.Linear(2 * coarse + 8, 64), nn.GELU(), nn.Linear(64, 2))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of a batch of images (B, 3, H, W).

        ``background`` (B, 9), ``count`` (B, 2: one or two objects), and for each slot ``shape``
        (B, 4, 8), ``colour`` (B, 4, 9), ``texture`` (B, 4, 4) and ``size`` (B, 4, 2); ``attention``
        (B, 4, h, w), the log-probability of each slot's place, and ``place`` (B, 4, 2), its mean
        (x, y) in short sides from the centre; ``features`` (B, 96), the mean of the last map, which
        distances between sets of images are taken from. Raises ``UsageError`` for another shape of input.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise UsageError(f"the judge reads (B, 3, H, W) images, not {tuple(images.shape)}")
        features = self.trunk(resized(images.float()))
        attention, place, found = self.find(features)
        found, flat = self.say(found), features.flatten(2)
        pooled = flat.mean(-1)
        scene = torch.cat((pooled, flat.amax(-1), place.flatten(1).to(flat.dtype)), dim=1)
        return {name: head(found).float() for name, head in self.attributes.items()} | {
            "features": pooled.float(),
            "background": self.scenery(pooled).float(),
            "count": self.counting(scene).float(),
            "attention": attention.unflatten(2, features.shape[2:]),
            "place": place,
        }


def resized(images: Tensor, side: int = SHORT_SIDE) -> Tensor:
    """Images (B, 3, H, W) with a short side of ``side`` pixels."""
    height, width = images.shape[2:]
    scale = side / min(height, width)
    size = (max(side, round(height * scale)), max(side, round(width * scale)))
    if size == (height, width):
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)
