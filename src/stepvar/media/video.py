"""Videos as values: frames and their rate; written to files and read from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.media.video_files import FPS, read_frames, write_video

Frames = NDArray[np.uint8]


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """A video.

    Attributes:
        frames: (F, H, W, 3) uint8, RGB.
        fps: frames per second.

    Raises:
        UsageError: for frames of another shape or type, or a rate that is not positive.
    """

    frames: Frames
    fps: float = FPS

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise UsageError(f"frames of shape {shape} and type {self.frames.dtype}: must be (F, H, W, 3) uint8")
        if not 0 < self.fps < float("inf"):
            raise UsageError(f"fps={self.fps}: must be a positive number of frames per second")

    @classmethod
    def of(cls, pixels: Tensor, fps: float = FPS) -> Video:
        """From pixels (3, F, H, W) in [-1, 1], rounded; what lies outside is clamped."""
        # In place behind the first copy: a long video takes gigabytes.
        levels = pixels.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
        return cls(levels.permute(1, 2, 3, 0).contiguous().cpu().numpy(), fps)

    @classmethod
    def of_images(cls, images: Iterable[Image.Image], fps: float = FPS) -> Video:
        """From pictures of one size.

        Raises:
            UsageError: if there are none, or of different sizes.
        """
        pictures = [np.asarray(image.convert("RGB")) for image in images]
        if len({picture.shape for picture in pictures}) != 1:
            sizes = sorted({f"{picture.shape[1]}x{picture.shape[0]}" for picture in pictures})
            raise UsageError(f"frames: sizes {', '.join(sizes) or 'of no picture'}; a video needs pictures of one size")
        return cls(np.stack(pictures), fps)

    @classmethod
    def read(cls, path: str | Path, fps: float | None = None, frames: int | None = None) -> Video:
        """Reads a video file, an animated GIF, or a folder of pictures as :meth:`save` writes it.

        Args:
            fps: rate to bring a file to, by repeating and dropping frames; None: its own. Of a folder: its rate
                where its pictures do not say.
            frames: how many frames to read from the start; None: all.

        Raises:
            UsageError: if there is no such file, it holds no video, or fewer frames than asked for; or if PyAV is
                not installed (a folder needs none).
        """
        pictures, rate = read_frames(Path(path), fps, frames)
        return cls(pictures, rate)

    def save(
        self,
        path: str | Path,
        *,
        quality: int = 65,
        pixels: str = "yuv420p",
        metadata: Mapping[str, str] | None = None,
        progress: bool = False,
    ) -> Path:
        """Writes the video, whole or not at all; the ending of the name says how.

        ``.mp4``: H.264, or MPEG-4 where PyAV was built without it. ``.gif``: an animated GIF. No ending: a new folder
        of PNG files, without loss.

        Args:
            quality: of MP4, 0 (small) to 100 (large); 65 is hard to tell from the frames.
            pixels: format of the pixels of MP4. ``"yuv420p"`` plays everywhere and halves the resolution of colour;
                frames of odd width or height get their last column or row twice. ``"yuv444p"`` does neither, and
                not every player shows it.
            metadata: texts that go into the file.
            progress: whether to show a bar.

        Returns:
            The path.

        Raises:
            UsageError: for another ending, a setting out of range, or an MP4 without PyAV.
            OutputError: if it cannot be written.
        """
        write_video(self, Path(path), quality, pixels, dict(metadata or {}), progress)
        return Path(path)

    def __repr__(self) -> str:
        return f"Video({len(self)} frames of {self.size[0]}x{self.size[1]}, {self.fps:g} fps)"

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return (self.frames.shape[2], self.frames.shape[1])

    @property
    def seconds(self) -> float:
        return len(self) / self.fps

    @property
    def rate(self) -> Fraction:
        """``fps`` as the fraction that files state, such as 30000/1001."""
        return Fraction(self.fps).limit_denominator(1001)

    def images(self) -> list[Image.Image]:
        return [Image.fromarray(frame) for frame in self.frames]

    def tensor(self, device: str | torch.device = "cpu") -> Tensor:
        """Pixels (3, F, H, W) in [-1, 1], as models take them."""
        pixels = torch.from_numpy(np.ascontiguousarray(self.frames)).to(device).permute(3, 0, 1, 2)
        return pixels.float() / 127.5 - 1
