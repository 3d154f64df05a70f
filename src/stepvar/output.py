"""What a generation returns: images or videos, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.report import Report
from stepvar.media.video import Video

OutputType = Literal["pil", "np", "pt"]


@dataclass(frozen=True)
class Output:
    """What a generation returns.

    Attributes:
        images: ``"pil"``: a list of PIL images; ``"np"``: (B, H, W, 3) uint8; ``"pt"``: (B, 3, H, W) in [0, 1].
            Empty if videos were generated.
        report: what it cost.
        seeds: the seed of each image or video; None when a generator was given.
        kept: per pruned scale its :class:`~stepvar.core.plan.Step` and a map (B, t, h, w) of kept tokens, in [0, 1].
        captions: what each image or video shows: its prompt, or the name of its class.
        videos: ``"pil"``: a list of :class:`~stepvar.media.video.Video`, each with frames, their rate, and ``save``;
            ``"np"``: (B, F, H, W, 3) uint8; ``"pt"``: (B, 3, F, H, W) in [0, 1]. Empty if images were generated.
        continuation: what the next clip goes on from, for models that go on clip by clip; see
            :meth:`Pipeline.start_continuation`.
    """

    images: Any
    report: Report
    seeds: tuple[int, ...] | None
    kept: list[tuple[Step, Tensor]]
    captions: list[str]
    videos: Any = field(default_factory=list)
    continuation: Any = None


def to_media(pixels: Tensor, fps: float, output_type: OutputType) -> tuple[Any, Any]:
    """Images and videos from pixels (B, 3, H, W), or (B, 3, F, H, W), in [-1, 1]: one of the two is empty."""
    if pixels.ndim == 4:
        return to_images(pixels, output_type), []
    if pixels.shape[2] == 1:
        return to_images(pixels[:, :, 0], output_type), []
    return [], to_videos(pixels, fps, output_type)


def to_images(pixels: Tensor, output_type: OutputType) -> Any:
    """Pixels (B, 3, H, W) in [-1, 1] -> images in the form asked for."""
    unit = (pixels.float() + 1) / 2
    if output_type == "pt":
        return unit
    array = (unit * 255).permute(0, 2, 3, 1).round().to(torch.uint8).cpu().numpy()
    return array if output_type == "np" else [Image.fromarray(np.ascontiguousarray(a)) for a in array]


def to_videos(pixels: Tensor, fps: float, output_type: OutputType) -> Any:
    """Pixels (B, 3, F, H, W) in [-1, 1] -> videos in the form asked for."""
    if output_type == "pt":
        return (pixels.float() + 1) / 2
    videos = [Video.of(one, fps) for one in pixels]
    return np.stack([video.frames for video in videos]) if output_type == "np" else videos
