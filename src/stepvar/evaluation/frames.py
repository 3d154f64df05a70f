"""Pictures and videos as frames: compared frame by frame, written and read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stepvar.evaluation.learned import Distance
from stepvar.evaluation.metrics import SSIM_WINDOW, high_frequency_share, psnr, ssim
from stepvar.evaluation.video import directions, flicker
from stepvar.media.sheets import save_png

Frames = NDArray[np.uint8]
"""(t, H, W, 3); a picture is t = 1."""

EQUAL = 99.0
"""In dB: stands for the infinite PSNR of equal pictures."""


def to_tensor(clips: Sequence[Frames], device: torch.device) -> Tensor:
    """Frames of equal size as (B, t, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(clips)).to(device).permute(0, 1, 4, 2, 3).float() / 255


def fidelity(clips: Tensor, reference: Tensor, lpips: Distance | None = None) -> list[dict[str, Any]]:
    """How close each of (B, t, 3, H, W) in [0, 1] is to its reference: means over the frames.

    Of videos ``frames`` has the numbers of every frame, too, and ``flicker`` is what they flicker more than their
    reference, in levels of 255; of three frames or more ``motion`` is 1 where things move to the reference's side.
    SSIM is left out of frames smaller than its window.
    """
    samples, count = clips.shape[:2]
    flat, other = clips.flatten(0, 1), reference.flatten(0, 1)
    measures = {
        "psnr": psnr(flat, other).clamp(max=EQUAL),
        "high_frequency": high_frequency_share(flat, other),
    }
    if min(flat.shape[-2:]) >= SSIM_WINDOW:
        measures["ssim"] = ssim(flat, other)
    if lpips is not None:
        measures["lpips"] = lpips(flat, other)
    table = {name: values.view(samples, count).cpu() for name, values in measures.items()}
    added = flicker(clips.transpose(1, 2), reference.transpose(1, 2)).excess.tolist() if count > 1 else []
    rows: list[dict[str, Any]] = []
    for index in range(samples):
        row: dict[str, Any] = {name: round(float(values[index].mean()), 5) for name, values in table.items()}
        if count > 1:
            if math.isfinite(added[index]):
                row["flicker"] = round(added[index], 4)
            row["frames"] = {name: [round(v, 4) for v in values[index].tolist()] for name, values in table.items()}
        rows.append(row)
    if count >= 3:
        sides = (directions(videos.transpose(1, 2)) for videos in (clips, reference))
        for row, own, wanted in zip(rows, *sides, strict=True):
            row["motion"] = float(own == wanted)
    return rows


def write_frames(frames: Frames, path: Path) -> None:
    """One frame as ``path``; several into a folder of that name, without its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(frames) == 1:
        save_png(Image.fromarray(frames[0]), path)
        return
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    for number, frame in enumerate(frames):
        save_png(Image.fromarray(frame), folder / f"{number:04}.png")


def read_frames(path: Path) -> Frames:
    """What :func:`write_frames` wrote."""
    files = [path] if path.exists() else sorted(path.with_suffix("").glob("*.png"))
    pictures = []
    for file in files:
        with Image.open(file) as image:
            pictures.append(np.asarray(image.convert("RGB")))
    return np.stack(pictures)


def sheet_of_four(pictures: Sequence[Image.Image]) -> Image.Image:
    """Up to four pictures of one size, two by two, without gaps: rows first."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (2 * width, 2 * height))
    for index, picture in enumerate(pictures[:4]):
        sheet.paste(picture, (index % 2 * width, index // 2 * height))
    return sheet
