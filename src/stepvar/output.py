"""What a generation returns: images or videos, and what they cost."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from html import escape
from inspect import signature
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.report import Report
from stepvar.core.values import nearest, shown
from stepvar.errors import UnknownAttribute, UsageError
from stepvar.media.images import GeneratedImage
from stepvar.media.saving import check_results, result_paths, save_result
from stepvar.media.squares import cut_from_square
from stepvar.media.video import Video
from stepvar.media.video_files import FPS
from stepvar.utils.outputs import is_folder_name, write_new

MediaType = Literal["pil", "np", "pt"]
OutputType = Literal["pil", "np", "pt", "latent"]

SHOWN, MOST_SHOWN, FRAMES_SHOWN = 384, 8, 24
"""In a notebook: longest side in pixels, images of a batch, frames of a video."""


@dataclass(frozen=True, eq=False)
class Latents:
    """Images or videos that are generated and not yet decoded; :meth:`Pipeline.decode` does that.

    Attributes:
        model: the name of the model that generated them.
        state: what its decoder reads; ``state.latent`` is the accumulated latent, (B, d, H, W) or (B, d, T, H, W).
        metadata, sources, fps: as those of :class:`Output`.
    """

    model: str
    state: Any
    metadata: list[dict[str, str]]
    sources: list[Image.Image]
    fps: float

    def __len__(self) -> int:
        """Number of images or videos."""
        return len(self.state.latent)


@dataclass(frozen=True, repr=False)
class Output:
    """What a generation returns.

    Attributes:
        images: ``"pil"``: a list of PIL images; ``"np"``: (B, H, W, 3) uint8; ``"pt"``: (B, 3, H, W) in [0, 1].
            Empty if videos were generated, or with ``"latent"``.
        report: what it cost.
        seeds: the seed of each image or video; None when a generator was given.
        kept: per pruned scale its :class:`~stepvar.core.plan.Step` and a map (B, t, h, w) of kept tokens, in [0, 1].
        captions: what each image or video shows: its prompt, or the name of its class.
        videos: ``"pil"``: a list of :class:`~stepvar.media.video.Video`, each with frames, their rate, and ``save``;
            ``"np"``: (B, F, H, W, 3) uint8; ``"pt"``: (B, 3, F, H, W) in [0, 1]. Empty if images were generated.
        continuation: what the next clip goes on from, for models that go on clip by clip; see
            :meth:`Pipeline.start_continuation`.
        metadata: how each image or video was made, as texts that :meth:`save` writes into the files.
        fps: frames per second of videos.
        sources: the image that each result is an edit of; empty where nothing was edited. A map of kept tokens then is
            that of a square as large as the longer side, with the image in its top left corner.
        latents: with ``output_type="latent"`` what :meth:`Pipeline.decode` makes images or videos of; else None.
        warnings: of each image or video, what was left out of its prompts: words that the text encoder does not know.
    """

    images: Any
    report: Report
    seeds: tuple[int, ...] | None
    kept: list[tuple[Step, Tensor]]
    captions: list[str]
    videos: Any = field(default_factory=list)
    continuation: Any = None
    metadata: list[dict[str, str]] = field(default_factory=list)
    fps: float = FPS
    sources: list[Image.Image] = field(default_factory=list)
    latents: Latents | None = None
    warnings: list[list[str]] = field(default_factory=list)

    def save(self, path: str | Path, *, quality: int | None = None) -> list[Path]:
        """Writes all images or videos, each with how it was made inside; files of these names are replaced.

        Args:
            path: a file: .png, .jpg or .webp, for videos .mp4 or .gif; several results are numbered, ``name-1.png``.
                Or a folder, which is made if it is not there: ``0001.png``, ``0002.png`` ... behind those in it.
            quality: 0 (small) to 100 (large), of JPEG, WebP and MP4; None: 95, without loss, 65.

        Returns:
            The files.

        Raises:
            UsageError: for another ending, an empty path, or latents.
            OutputError: if one cannot be written; the others are then not begun.
        """
        if not str(path):
            raise UsageError("path '': must name a file or a folder")
        if self.latents is not None:
            raise UsageError("output_type='latent': nothing is decoded; save what pipe.decode(output.latents) returns")
        results, own = self._media(), is_folder_name(path)
        paths = result_paths(path, len(results), bool(len(self.videos)))
        check_results(paths, bool(len(self.videos)), quality)
        return [
            write_new(file, partial(save_result, one, texts=texts, quality=quality), force=True, own=own)
            for one, texts, file in zip(results, self.metadata or [{}] * len(results), paths, strict=True)
        ]

    def __getitem__(self, index: int) -> Any:
        """``out[0]`` is the images, or the videos, as of the outputs of diffusers' pipelines."""
        return (self.videos if len(self.videos) else self.images, self.report)[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name == "frames":
            raise UnknownAttribute("Output.frames: videos are .videos, each with .frames (F, H, W, 3) and .save(path)")
        known = [one.name for one in fields(self)]
        has = nearest(name, known) or f"; it has {', '.join(known)}"
        raise UnknownAttribute(f"Output.{name}: there is no such attribute{has}")

    def _media(self) -> list[Image.Image | Video]:
        """The images or videos as objects, whatever the type of the output."""
        given = self.videos if len(self.videos) else self.images
        if isinstance(given, Tensor):
            pixels = 2 * given - 1
            return list(to_images(pixels, "pil") if given.ndim == 4 else to_videos(pixels, self.fps, "pil"))
        if isinstance(given, np.ndarray):
            return [Image.fromarray(one) if given.ndim == 4 else Video(one, self.fps) for one in given]
        return list(given)

    def __repr__(self) -> str:
        return f"Output({self._summary})"

    def _repr_html_(self) -> str:
        """The images (of videos moving previews) and the report, for notebooks."""
        figures = [
            f'<figure style="display:inline-block;margin:4px"><img src="data:image/{kind};base64,{data}" '
            f'style="max-width:{SHOWN}px"><figcaption>{escape(caption)}</figcaption></figure>'
            for caption, (kind, data) in zip(self.captions, self._pictures(), strict=False)
        ]
        return f"<div>{''.join(figures)}</div><p>{escape(self._summary)}</p>{self.report._repr_html_()}"

    @property
    def _summary(self) -> str:
        kind, several = ("video", self.videos) if len(self.videos) else ("image", self.images)
        seeds = (
            "" if self.seeds is None else f", seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds[:4]))}"
        )
        more = ", ..." if self.seeds is not None and len(self.seeds) > 4 else ""
        count = len(several) if self.latents is None else len(self.latents)
        what = (
            f"{count} {kind}{'s' * (count != 1)} of {_size_of(several)}"
            if self.latents is None
            else f"latents ({count})"
        )
        return f"{what}{seeds}{more}; {self.report!r}"

    def _pictures(self) -> list[tuple[str, str]]:
        """Type and base64 of a picture of each of the first images or videos."""
        several = self.videos if len(self.videos) else self.images
        found = []
        for one in list(several)[:MOST_SHOWN]:
            frames = [_as_image(frame) for frame in _frames(one, video=bool(len(self.videos)))]
            for frame in frames:
                frame.thumbnail((SHOWN, SHOWN))
            file = BytesIO()
            if len(frames) == 1:
                frames[0].save(file, "PNG")
            else:
                frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=200, loop=0)
            found.append(("png" if len(frames) == 1 else "gif", b64encode(file.getvalue()).decode()))
        return found


def _size_of(several: Any) -> str:
    """Width and height of the first image or video, in any form."""
    if not len(several):
        return "nothing"
    first = several[0]
    if hasattr(first, "size") and isinstance(first.size, tuple):
        return f"{first.size[0]}x{first.size[1]}"
    shape = first.shape
    return f"{shape[-1]}x{shape[-2]}" if isinstance(first, Tensor) else f"{shape[-2]}x{shape[-3]}"


def _frames(one: Any, video: bool) -> list[Any]:
    """An image as it is, or some frames of a video, in any form."""
    if not video:
        return [one]
    if isinstance(one, Video):
        one = one.frames
    frames = one.movedim(1, 0) if isinstance(one, Tensor) else one
    return [frames[round(place)] for place in np.linspace(0, len(frames) - 1, min(len(frames), FRAMES_SHOWN))]


def _as_image(one: Any) -> Image.Image:
    """A copy of an image in any form."""
    if isinstance(one, Image.Image):
        return one.copy()
    if isinstance(one, Tensor):
        one = (one.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(one))


def to_media(
    pixels: Tensor,
    fps: float,
    output_type: MediaType,
    metadata: Sequence[Mapping[str, str]] = (),
    sources: Sequence[Image.Image] = (),
) -> tuple[Any, Any]:
    """Images and videos from pixels (B, 3, H, W), or (B, 3, F, H, W), in [-1, 1]: one of the two is empty.

    Args:
        metadata: of each, for objects that are saved later.
        sources: what the images are edits of, at whose size they are cut from their squares.
    """
    if pixels.ndim == 4:
        return to_images(pixels, output_type, metadata, sources), []
    if pixels.shape[2] == 1:
        return to_images(pixels[:, :, 0], output_type, metadata), []
    return [], to_videos(pixels, fps, output_type, metadata)


def to_images(
    pixels: Tensor,
    output_type: MediaType,
    metadata: Sequence[Mapping[str, str]] = (),
    sources: Sequence[Image.Image] = (),
) -> Any:
    """Pixels (B, 3, H, W) in [-1, 1] -> images in the form asked for; arguments as for :func:`to_media`."""
    unit = (pixels.float() + 1) / 2
    if output_type == "pt" and not sources:
        return unit
    array: Any = (unit * 255).permute(0, 2, 3, 1).round().to(torch.uint8).cpu().numpy()
    if sources:
        squares = map(Image.fromarray, array)
        cut = [cut_from_square(one, like.size) for one, like in zip(squares, sources, strict=True)]
        array = [np.asarray(one) for one in cut]
        if output_type != "pil":
            array = np.stack(array)
    if output_type == "pt":
        return torch.from_numpy(array).to(pixels.device).permute(0, 3, 1, 2).float() / 255
    if output_type == "np":
        return array
    return [GeneratedImage.of(one, texts) for one, texts in zip(array, metadata or [{}] * len(array), strict=True)]


def to_videos(pixels: Tensor, fps: float, output_type: MediaType, metadata: Sequence[Mapping[str, str]] = ()) -> Any:
    """Pixels (B, 3, F, H, W) in [-1, 1] -> videos in the form asked for."""
    if output_type == "pt":
        return (pixels.float() + 1) / 2
    videos = [
        replace(Video.of(one, fps), metadata=texts)
        for one, texts in zip(pixels, metadata or [{}] * len(pixels), strict=True)
    ]
    return np.stack([video.frames for video in videos]) if output_type == "np" else videos


def check_outputs(output_type: Any, callback: Any) -> None:
    """Raises a UsageError for a form of outputs, or a callback, that cannot be used."""
    if output_type not in get_args(OutputType):
        raise UsageError(f"output_type={shown(output_type)}: must be one of {', '.join(get_args(OutputType))}")
    if callback is not None and not (callable(callback) and _takes_two(callback)):
        raise UsageError(f"callback_on_scale_end={shown(callback)}: must be a function of (step, state)")


def check_stackable(output_type: OutputType, sources: Sequence[Image.Image]) -> None:
    """Raises a UsageError if results are to be one array, and edit images of different sizes."""
    sizes = {one.size for one in sources}
    if output_type in ("np", "pt") and len(sizes) > 1:
        found = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise UsageError(f"output_type={output_type!r}: the images have different sizes ({found}); use 'pil'")


def _takes_two(callback: Callable[..., Any]) -> bool:
    """Whether a function can be called with two arguments, as far as Python can tell."""
    try:
        parameters = signature(callback)
    except (TypeError, ValueError):  # some that are written in C do not say
        return True
    try:
        parameters.bind(None, None)
    except TypeError:
        return False
    return True
