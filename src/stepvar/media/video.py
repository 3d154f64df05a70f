"""Videos as values: frames and their rate; written to files and read from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stepvar.core.values import shown
from stepvar.errors import UsageError
from stepvar.media.images import as_rgb
from stepvar.media.video_files import FPS, Frames, check_rate, write_video
from stepvar.media.video_reading import Shown, at_rate, read_frames


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """A video.

    Attributes:
        frames: (F, H, W, 3) uint8, RGB.
        fps: frames per second.
        metadata: how it was made, as texts that go into its file.

    Raises:
        UsageError: for frames of another shape or type, or a rate that is not from 0.001 to 1000.
    """

    frames: Frames
    fps: float = FPS
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.frames, np.ndarray):
            raise UsageError(f"frames={shown(self.frames)}: must be an array (F, H, W, 3) uint8; see Video.of_images")
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise UsageError(f"frames of shape {shape} and type {self.frames.dtype}: must be (F, H, W, 3) uint8")
        object.__setattr__(self, "fps", check_rate(self.fps))

    @classmethod
    def of(cls, pixels: Tensor, fps: float = FPS) -> Video:
        """From pixels (3, F, H, W) in [-1, 1], rounded; what lies outside is clamped."""
        # In place after the first copy: a long video takes gigabytes.
        levels = pixels.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
        return cls(levels.permute(1, 2, 3, 0).contiguous().cpu().numpy(), fps)

    @classmethod
    def of_images(cls, images: Iterable[Image.Image], fps: float = FPS) -> Video:
        """From images of one size; a UsageError if there are none, or of different sizes."""
        given = list(images) if isinstance(images, Iterable) else [images]
        if (other := next((one for one in given if not isinstance(one, Image.Image)), given)) is not given:
            raise UsageError(f"images: {shown(other)} is no image; give a list of PIL images")
        frames = [np.asarray(as_rgb(image)) for image in given]
        if len({frame.shape for frame in frames}) != 1:
            sizes = sorted({f"{frame.shape[1]}x{frame.shape[0]}" for frame in frames})
            raise UsageError(f"frames: sizes {', '.join(sizes) or 'of no image'}; a video needs images of one size")
        return cls(np.stack(frames), fps)

    @classmethod
    def read(cls, path: str | Path, fps: float | None = None, frames: int | None = None) -> Video:
        """Reads a video file, an animated GIF, or a folder of images as :meth:`save` writes it.

        Args:
            fps: rate to bring a file to, by repeating and dropping frames; None: its own. Of a folder: its rate
                where its images do not say.
            frames: how many frames to read from the start; None: all.

        Raises:
            UsageError: if there is no such file, it holds no video, or fewer frames than asked for; or if PyAV is
                not installed (folders and GIFs need none).
        """
        return cls(*read_frames(Path(path), fps, frames))

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
            metadata: texts that go into the file; None: those of the video.
            progress: whether to show a bar.

        Returns:
            The path.

        Raises:
            UsageError: for another ending, a setting out of range, or an MP4 without PyAV.
            OutputError: if it cannot be written.
        """
        texts = self.metadata if metadata is None else metadata
        write_video(self.frames, self.fps, Path(path), quality, pixels, texts, progress)
        return Path(path)

    def at_rate(self, fps: float) -> Video:
        """The video at another rate, by repeating and dropping frames; a UsageError if it would be too long."""
        fps = check_rate(fps)
        if fps == self.fps:
            return self
        timed = [Shown(frame, index / self.fps) for index, frame in enumerate(self.frames)]
        return replace(self, frames=np.stack([one.pixels for one in at_rate(timed, self.fps, fps)]), fps=fps)

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

    def images(self) -> list[Image.Image]:
        return [Image.fromarray(frame) for frame in self.frames]

    def tensor(self, device: str | torch.device = "cpu") -> Tensor:
        """Pixels (3, F, H, W) in [-1, 1], as models take them."""
        frames = np.require(self.frames, requirements=["C", "W"])  # PyTorch warns of arrays that cannot be written to
        pixels = torch.from_numpy(frames).to(device).permute(3, 0, 1, 2)
        return pixels.float() / 127.5 - 1
