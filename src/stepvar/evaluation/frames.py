"""Images and videos as frames: as tensors, written and read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stepvar.media.images import read_image, save_image
from stepvar.output import Output

Frames = NDArray[np.uint8]
"""(t, H, W, 3); an image is t = 1."""


def frames_of(output: Output) -> list[Frames]:
    """The frames of each image or video of an output of the type "np"."""
    return list(output.videos) if len(output.videos) else [image[None] for image in output.images]


def to_tensor(videos: Sequence[Frames], device: torch.device) -> Tensor:
    """Frames of equal size as (B, t, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(videos)).to(device).permute(0, 1, 4, 2, 3).float() / 255


def middle(frames: Frames) -> Image.Image:
    """The image, or the middle frame of a video."""
    return Image.fromarray(frames[len(frames) // 2])


def write_frames(frames: Frames, path: Path) -> None:
    """One frame as ``path``; several into a folder of that name, without its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(frames) == 1:
        save_image(Image.fromarray(frames[0]), path)
        return
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    for number, frame in enumerate(frames):
        save_image(Image.fromarray(frame), folder / f"{number:04}.png")


def frame_files(path: Path) -> list[Path]:
    """The files that :func:`write_frames` wrote."""
    return [path] if path.exists() else sorted(path.with_suffix("").glob("*.png"))


def read_frames(path: Path) -> Frames:
    """What :func:`write_frames` wrote."""
    return np.stack([np.asarray(read_image(file)) for file in frame_files(path)])


def sheet_of_four(images: Sequence[Image.Image]) -> Image.Image:
    """Up to four images of one size, two by two, without gaps: rows first."""
    width, height = images[0].size
    sheet = Image.new("RGB", (2 * width, 2 * height))
    for index, image in enumerate(images[:4]):
        sheet.paste(image, (index % 2 * width, index // 2 * height))
    return sheet
