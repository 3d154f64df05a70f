"""The photographs, decoded once and kept on the device; crops, turns and shifts of them on demand."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from training.wardrobe.colours import turn_hue
from training.wardrobe.measure import FINE, Measurer

CANVAS = 344
"""Side in pixels of the square that every photograph lies in, at its top left; larger ones are scaled to fit."""
ENDINGS = (".webp", ".jpg", ".jpeg", ".png")
READERS = 8


@dataclass(frozen=True)
class Facts:
    """What the table says of a photograph.

    Attributes:
        held_out: never trained on.
    """

    name: str
    label: str = ""
    child: bool = False

    @property
    def held_out(self) -> bool:
        """By the last digit of the number in the name; photographs without a label only serve the tokenizer."""
        return bool(self.label) and Path(self.name).stem[-1:] == "7"


@dataclass
class Photographs:
    """N photographs on one device.

    Attributes:
        facts: one for each.
        pixels: (N, 3, CANVAS, CANVAS) uint8.
        sizes: (N, 2) height and width within the canvas.
        centres: (N, 2) where the garment's middle is, as shares of height and width.
    """

    facts: list[Facts]
    pixels: Tensor
    sizes: Tensor
    centres: Tensor

    def __len__(self) -> int:
        return len(self.facts)

    def where(self, held_out: bool, ratio: float | None = None, labelled: bool = True) -> Tensor:
        """Indices of the photographs, held out or not, whose shape suits pictures of a height over width."""
        own = self.sizes[:, 0] / self.sizes[:, 1]
        suits = torch.ones_like(own, dtype=torch.bool)
        if ratio is not None and ratio > 1.1:
            suits = own > 1.12
        elif ratio is not None and ratio < 0.9:
            suits = own < 0.89
        kept = [f.held_out == held_out and (bool(f.label) or not labelled) for f in self.facts]
        return (suits & torch.tensor(kept, device=own.device)).nonzero().flatten()

    def fine(self, index: Tensor) -> Tensor:
        """Small pictures (B, 3, 128, 128) in [0, 1] for the measurements, squeezed to a square."""
        parts = []
        for place in index.tolist():
            height, width = (int(side) for side in self.sizes[place])
            whole = self.pixels[place : place + 1, :, :height, :width].float() / 255
            parts.append(F.interpolate(whole, size=(FINE, FINE), mode="area"))
        return torch.cat(parts)

    def crop(self, index: Tensor, boxes: Tensor, mirrored: Tensor, size: tuple[int, int]) -> Tensor:
        """Pieces of photographs as sRGB (B, 3, h, w) in [0, 1].

        Args:
            boxes: (B, 4) top, left, height and width in pixels of the canvas.
            mirrored: (B,) bool, left for right.
            size: height and width of the pieces.
        """
        top, left, height, width = boxes.float().unbind(1)
        flip = torch.where(mirrored, -1.0, 1.0)
        zero = torch.zeros_like(top)
        across = torch.stack((flip * width / CANVAS, zero, (2 * left + width) / CANVAS - 1), dim=1)
        down = torch.stack((zero, height / CANVAS, (2 * top + height) / CANVAS - 1), dim=1)
        places = F.affine_grid(torch.stack((across, down), dim=1), [len(index), 3, *size], align_corners=False)
        whole = self.pixels[index].float() / 255
        return F.grid_sample(whole, places, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)


def _decode(path: Path) -> tuple[Tensor, tuple[int, int]]:
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if max(picture.size) > CANVAS:
        scale = CANVAS / max(picture.size)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    values = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    # The edge goes on into the rest of the canvas, so that a resampled edge is not darkened.
    room = (0, CANVAS - picture.width, 0, CANVAS - picture.height)
    return F.pad(values[None].float(), room, mode="replicate")[0].to(torch.uint8), (picture.height, picture.width)


def read_table(folder: Path) -> list[Facts]:
    """The photographs of a folder: by its CSV file (image, label, kids) where there is one, or without labels."""
    tables = sorted(folder.glob("*.csv"))
    if not tables:
        return [Facts(path.name) for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS]
    with tables[0].open(newline="") as stream:
        rows = [Facts(row["image"], row["label"], row["kids"] == "true") for row in csv.DictReader(stream)]
    return [facts for facts in rows if (folder / facts.name).exists()]


def read_photographs(
    folders: Sequence[Path],
    device: torch.device,
    most: int | None = None,
    wait_for: Path | None = None,
    held_out: bool = False,
) -> Photographs:
    """Reads and decodes the photographs of some folders; ``most`` of each, once the file ``wait_for`` is there.

    Args:
        held_out: only those that are never trained on.
    """
    while wait_for is not None and not wait_for.exists():
        time.sleep(0.2)
    found = [
        (folder / facts.name, facts)
        for folder in folders
        for facts in read_table(folder)[:most]
        if facts.held_out or not held_out
    ]
    with ThreadPoolExecutor(READERS) as pool:
        decoded = list(pool.map(lambda item: _decode(item[0]), found))
    pixels = torch.stack([values for values, _ in decoded]).to(device)
    sizes = torch.tensor([size for _, size in decoded], device=device)
    centres = torch.full((len(found), 2), 0.5, device=device)
    return Photographs([facts for _, facts in found], pixels, sizes, centres)


def find_centres(photographs: Photographs, index: Tensor, measurer: Measurer) -> None:
    """Notes where the garments of some photographs are."""
    weight = (measurer.chance - 0.4).clamp(min=0) + 1e-4
    total = weight.sum((1, 2))
    for axis in (0, 1):
        sides = weight.sum(2 - axis)
        places = (torch.arange(sides.shape[1], device=sides.device) + 0.5) / sides.shape[1]
        photographs.centres[index, axis] = ((sides * places).sum(1) / total).to(photographs.centres)


def choose_boxes(photographs: Photographs, index: Tensor, size: tuple[int, int], zoom: float, squeeze: float) -> Tensor:
    """Random pieces (B, 4) of photographs for pictures of ``size`` pixels.

    Args:
        zoom: the smallest piece as a share of the largest one that fits.
        squeeze: how much the aspect ratio may change: 1.2 allows a piece 1.2 times as long as its picture shows it.
    """
    height, width = photographs.sizes[index].float().unbind(1)
    wanted = size[0] / size[1]
    random = torch.rand(5, len(index), device=index.device)
    own = height / width
    # As long a piece as may be is most often taken: it shows most of the garment.
    ratio = wanted * (own / wanted).clamp(1 / squeeze, squeeze) ** (1 - 0.5 * random[0] * (zoom < 1))
    scale = zoom + (1 - zoom) * random[1]
    box_height = torch.minimum(height, width * ratio) * scale
    box_width = torch.minimum(width, height / ratio) * scale
    middle = photographs.centres[index] + 0.08 * (random[2:4].T - 0.5)
    top = torch.minimum((middle[:, 0] * height - box_height / 2).clamp(min=0), height - box_height)
    left = torch.minimum((middle[:, 1] * width - box_width / 2).clamp(min=0), width - box_width)
    return torch.stack((top, left, box_height, box_width), dim=1)


def roam(photographs: Photographs, index: Tensor, size: tuple[int, int], zoom: float) -> Tensor:
    """Random pieces (B, 4) anywhere in photographs, of the shape of a picture of ``size`` pixels."""
    height, width = photographs.sizes[index].float().unbind(1)
    ratio = size[0] / size[1]
    random = torch.rand(3, len(index), device=index.device)
    scale = zoom + (1 - zoom) * random[0]
    box_height = torch.minimum(height, width * ratio) * scale
    box_width = torch.minimum(width, height / ratio) * scale
    top, left = (height - box_height) * random[1], (width - box_width) * random[2]
    return torch.stack((top, left, box_height, box_width), dim=1)


def middle_boxes(photographs: Photographs, index: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest piece (B, 4) of the shape of a picture of ``size`` pixels, around the photograph's middle."""
    height, width = photographs.sizes[index].float().unbind(1)
    ratio = size[0] / size[1]
    box_height, box_width = torch.minimum(height, width * ratio), torch.minimum(width, height / ratio)
    return torch.stack(((height - box_height) / 2, (width - box_width) / 2, box_height, box_width), dim=1)


def shift_tones(pictures: Tensor, hue: Tensor, strength: float = 1.0) -> Tensor:
    """Turns the hue by ``hue`` degrees (B,) and changes light and saturation a little; (B, 3, H, W) in [0, 1]."""
    random = torch.rand(2, len(pictures), 1, 1, 1, device=pictures.device) - 0.5
    turned = turn_hue(pictures, hue)
    grey = turned.mean(1, keepdim=True)
    coloured = grey + (turned - grey) * (1 + 0.3 * strength * random[0])
    return (coloured * (1 + 0.16 * strength * random[1])).clamp(0, 1)
