"""Results of a generation as files: which names and formats they get, and what is written into them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from stepvar.core.values import shown
from stepvar.errors import UsageError
from stepvar.media.images import FORMATS, check_quality, save_image
from stepvar.media.video import Video
from stepvar.media.video_files import check_video_suffix
from stepvar.utils.files import check_folder, check_writable, is_stream
from stepvar.utils.outputs import in_folder, is_folder_name, numbered

VIDEO_FORMATS = (".mp4", ".gif")
MP4_QUALITY = 65


def default_suffix(video: bool) -> str:
    """Of results whose names say nothing: PNG; for videos MP4, or GIF where PyAV is not installed."""
    if not video:
        return ".png"
    try:
        return ".mp4" if find_spec("av") is not None else ".gif"
    except ValueError:  # a module that was put out of reach
        return ".gif"


def result_paths(path: str | Path, number: int, video: bool) -> list[Path]:
    """The files of ``number`` results: the path itself, ``name-1.png`` and so on, or numbered ones in a folder."""
    if is_folder_name(path):
        return in_folder(Path(path), default_suffix(video), number)
    return numbered(Path(path), number)


def check_results(paths: Sequence[Path], video: bool, quality: int | None = None, name: str = "") -> None:
    """Fails now rather than after the work if results cannot be written.

    Args:
        name: of the option that they follow from, for errors.

    Raises:
        UsageError: for an ending that is not that of an image or a video, or a quality out of range or without effect.
        OutputError: if one cannot be written.
    """
    for path in paths:
        check_quality_of(quality, path.suffix)
        where, suffix = f"{name} {str(path)!r}".strip(), path.suffix.lower()
        if is_stream(path):
            continue
        if video and suffix not in VIDEO_FORMATS:
            raise UsageError(f"{where}: must end in .mp4 or .gif for a video; --seconds 0 generates an image")
        if not video and suffix not in FORMATS:
            raise UsageError(f"{where}: must end in .png, .jpg or .webp; this generates an image")
        if video:
            check_video_suffix(path)
    for folder in {path.parent for path in paths if not os.path.isdir(path.parent)}:
        check_folder(folder)
    for path in paths:
        if os.path.isdir(path.parent):
            check_writable(path)


def check_quality_of(quality: int | None, suffix: str) -> None:
    """Raises a UsageError for a quality out of range, or of files that have none.

    Args:
        suffix: the ending of the files.
    """
    if quality is None:
        return
    check_quality(quality)
    if suffix.lower() in (".png", ".gif"):
        kind = suffix[1:].upper()
        raise UsageError(f"quality={quality}: {kind} has none; leave it out, or write JPEG, WebP or MP4")


def stated_quality(texts: Mapping[str, str], source: Path, target: Path) -> int | None:
    """The quality that the texts of one file state, for another of its format; else None, the format's own.

    Raises:
        UsageError: if it is none.
    """
    kinds = [FORMATS.get(path.suffix.lower(), path.suffix.lower()) for path in (source, target)]
    if "quality" not in texts or kinds[0] != kinds[1]:
        return None
    if not re.fullmatch("[0-9]{1,3}", texts["quality"]):
        raise UsageError(f"{source}: quality {shown(texts['quality'])}: the file is damaged; give --quality")
    quality = int(texts["quality"])
    check_quality(quality)
    return quality


def save_result(
    result: Image.Image | Video, path: Path, texts: Mapping[str, str], quality: int | None, progress: bool = False
) -> None:
    """Writes one result; a folder that is missing is made."""
    if not os.path.isdir(path.parent):
        path.parent.mkdir(exist_ok=True)
    if isinstance(result, Video):
        chosen = MP4_QUALITY if quality is None else quality
        result.save(path, quality=chosen, metadata=texts, progress=progress)
    else:
        save_image(result, path, texts, quality)
