"""How a file was made, as it says itself: images, GIF and MP4, and folders of frames."""

from __future__ import annotations

from pathlib import Path

from stepvar.errors import UsageError
from stepvar.media.images import FORMATS, comment_texts, image_metadata, opened
from stepvar.media.video_reading import frame_paths, mp4_comment
from stepvar.utils.reading import check_regular


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in a file that this package wrote, or in the first frame of a folder; empty where there are none.

    Raises:
        UsageError: if there is no such file, it cannot be read, it is of a format that carries no texts, or it is a
            folder of images that were generated one by one.
    """
    if path.is_dir():
        paths = frame_paths(path)
        if not paths:
            raise UsageError(f"{path}: is a folder without frames; name an image or video in it")
        first, *others = map(read_metadata, paths[:2])
        if any(other and other != first for other in others):
            raise UsageError(f"{path}: holds images and not the frames of a video; name one, such as {paths[0]}")
        return first
    check_regular(path)
    if path.suffix.lower() in (".mp4", ".m4v", ".mov"):
        return comment_texts(mp4_comment(path))
    with opened(path) as image:
        if image.format not in (*FORMATS.values(), "GIF"):
            raise UsageError(f"{path}: is a {image.format} image, which carries no settings; stepvar writes none")
        return image_metadata(image)
