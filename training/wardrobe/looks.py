"""Figures and sheets of pictures that people look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from training.wardrobe.colours import to_lab

LINE = 14


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """In dB, one per picture, of (B, 3, H, W) in [0, 1]."""
    return -10 * torch.log10((pictures - reference).square().mean(dim=(1, 2, 3)))


def fine_detail(pictures: Tensor) -> Tensor:
    """Energy (B,) of what a mean over 3 x 3 pixels takes away; (B, 3, H, W) in [0, 1]."""
    low = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    return (pictures - low).square().mean(dim=(1, 2, 3))


def hue_error(pictures: Tensor, reference: Tensor) -> Tensor:
    """Mean distance (B,) in the a, b plane of Lab between cells of 8 x 8 pixels: 2 to 3 is just visible."""
    a, b = (F.avg_pool2d(to_lab(x)[:, 1:], 8) for x in (pictures, reference))
    return (a - b).square().sum(1).sqrt().mean((1, 2))


def as_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> an image."""
    values = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(values)


def sheet(
    path: Path, rows: Sequence[Sequence[Tensor]], titles: Sequence[Sequence[str]] | None = None, side: int = 160
) -> None:
    """Writes rows of pictures (3, H, W) in [0, 1], each fitted into a square of ``side`` pixels, with lines below."""
    below = 0 if titles is None else 2 * LINE
    columns = max(map(len, rows))
    whole = Image.new("RGB", (columns * (side + 4), len(rows) * (side + 4 + below)), "white")
    draw = ImageDraw.Draw(whole)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            image = as_image(picture)
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            place = (x * (side + 4), y * (side + 4 + below))
            whole.paste(image, place)
            if titles is not None:
                words = titles[y][x].split()
                half = (len(words) + 1) // 2
                for line, part in enumerate((words[:half], words[half:])):
                    draw.text((place[0], place[1] + side + LINE * line), " ".join(part), fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save(path, quality=90)
