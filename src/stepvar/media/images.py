"""Image files: written with how they were made inside, and read as they are meant to be seen."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from stepvar.core.values import Range, whole_number
from stepvar.errors import UsageError, printable
from stepvar.utils.files import atomic_path
from stepvar.utils.reading import check_regular

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""By the ending of a name."""

MOST_SIDE = {"JPEG": 65_500, "WEBP": 16_383, "GIF": 65_535}
"""Pixels of the longest side that a format holds."""

MOST_DECODED = 50_000_000
"""Pixels of an image that somebody unknown sent: 150 MB once it is decoded."""

JPEG_QUALITY = 95
_EXIF, _USER_COMMENT, _ASCII = 0x8769, 0x9286, b"ASCII\0\0\0"
_MOST_EXIF = 60_000
"""Bytes of a comment: a segment of a JPEG holds 64 KB."""


def image_format(path: Path) -> str:
    """The format that the ending of a name stands for; a device has none and gets PNG."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS and not str(path).startswith("/dev/"):
        raise UsageError(f"{path}: images end in {', '.join(FORMATS)}")
    return FORMATS.get(suffix, "PNG")


def check_quality(quality: Any, name: str = "quality") -> int:
    """The quality of a JPEG, WebP or MP4 as a number of Python; a UsageError for what is none.

    Args:
        name: of the argument, for errors.
    """
    return whole_number(name, quality, Range(0, 100, note="small to large files"))


def check_size(size: tuple[int, int], kind: str, path: Path, remedy: str) -> None:
    """Raises a UsageError for a width or height in pixels that a format does not hold."""
    if max(size) > (most := MOST_SIDE.get(kind, sys.maxsize)):
        raise UsageError(f"{path}: {size[0]}x{size[1]} as {kind}: a side has at most {most} pixels; {remedy}")


def png_info(metadata: Mapping[str, str]) -> PngInfo:
    """Text chunks of a PNG; stray bytes of a text are written as escapes."""
    info = PngInfo()
    for key, value in metadata.items():
        info.add_text(key, value.encode("utf-8", "backslashreplace").decode())
    return info


def save_parameters(kind: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What Pillow's ``save`` takes to write texts into a format: text chunks, or a comment in EXIF as JSON."""
    if not metadata:
        return {}
    if kind == "PNG":
        return {"pnginfo": png_info(metadata)}
    text = json.dumps(dict(metadata))
    if kind == "GIF":
        return {"comment": text.encode()}
    if kind not in FORMATS.values():
        return {}
    if len(text) > _MOST_EXIF:  # prompts of many pages; what repeats an image is of no use in part
        short = {key: value[:1000] for key, value in metadata.items() if key != "repeat"}
        text = json.dumps(short)[:_MOST_EXIF]
    exif = Image.Exif()
    exif.get_ifd(_EXIF)[_USER_COMMENT] = _ASCII + text.encode()
    return {"exif": exif}


class GeneratedImage(Image.Image):
    """A PIL image that writes how it was made into the files that it is saved to.

    Attributes:
        metadata: texts: prompt, seed, model, method, settings, version.
    """

    metadata: Mapping[str, str] = {}

    @classmethod
    def of(cls, pixels: np.ndarray[Any, np.dtype[np.uint8]], metadata: Mapping[str, str]) -> GeneratedImage:
        """From pixels (H, W, 3)."""
        image = cls()
        image.__setstate__([*Image.fromarray(np.ascontiguousarray(pixels)).__getstate__(), metadata])
        return image

    def __getstate__(self) -> list[Any]:
        """For copies and pickles, which keep the texts."""
        return [*super().__getstate__(), dict(self.metadata)]

    def __setstate__(self, state: list[Any]) -> None:
        *image, self.metadata = state
        super().__setstate__(image)

    def copy(self) -> GeneratedImage:
        return deepcopy(self)

    __copy__ = copy

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        name = str(getattr(fp, "name", fp)) if format is None else ""
        kind = (format or FORMATS.get(Path(name).suffix.lower(), "")).upper()
        texts = save_parameters(kind.replace("JPG", "JPEG"), self.metadata)
        super().save(fp, **({"format": format} if format else {}), **{**texts, **params})


def save_image(
    image: Image.Image, path: Path, metadata: Mapping[str, str] | None = None, quality: int | None = None
) -> None:
    """Writes an image, whole or not at all, with texts inside; the ending of the name says how.

    Args:
        metadata: the texts; the quality goes with them.
        quality: of JPEG and WebP, 0 (small) to 100 (large); None: 95 for JPEG, and WebP without loss.

    Raises:
        UsageError: for another ending or quality, or an image that is too large for the format.
        OutputError: if it cannot be written.
    """
    kind = image_format(path)
    quality = None if quality is None else check_quality(quality)
    check_size(image.size, kind, path, "save as .png")
    given: dict[str, Any] = {}
    texts = dict(metadata or {})
    if kind == "JPEG":
        given = {"quality": JPEG_QUALITY if quality is None else quality, "subsampling": 0}
    elif kind == "WEBP":
        given = {"lossless": True} if quality is None else {"quality": quality}
    if texts and "quality" in given:
        texts["quality"] = str(given["quality"])
    with atomic_path(path) as temporary:
        try:
            image.save(temporary, format=kind, **save_parameters(kind, texts), **given)
        except (ValueError, SystemError) as error:
            raise UsageError(f"{path}: {image.size[0]}x{image.size[1]} as {kind}: {error}; save as .png") from None


@contextmanager
def opened(path: Path, name: str = "") -> Iterator[Image.Image]:
    """An image file, open; whatever Pillow raises for what it cannot read is a UsageError that names the file.

    Args:
        name: of the argument, for errors.
    """
    where = f"{name} {str(path)!r}" if name else str(path)
    check_regular(path, where)
    with _explained(where), Image.open(path) as image:
        yield image


def decode_image(data: bytes, name: str = "image") -> Image.Image:
    """The bytes of a PNG, JPEG or WebP file from somebody unknown, as 8-bit RGB, see :func:`as_rgb`.

    Args:
        name: of the argument, for errors.

    Raises:
        UsageError: if they are no such file, or one of more than ``MOST_DECODED`` pixels.
    """
    with _explained(name), Image.open(BytesIO(data), formats=sorted(set(FORMATS.values()))) as image:
        width, height = image.size
        if width * height > MOST_DECODED:
            raise UsageError(f"{name} of {width}x{height} pixels: at most {MOST_DECODED}; make it smaller first")
        return as_rgb(image)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Within it, whatever Pillow raises for what it cannot read is a UsageError.

    Args:
        where: what is read, for errors.
    """
    try:
        yield
    except UsageError:
        raise
    except UnidentifiedImageError:
        raise UsageError(f"{where}: is not an image; give a picture file") from None
    # Broken files make Pillow raise nearly anything.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, MemoryError) as error:
        raise UsageError(f"{where}: cannot be read ({_reason(error)}); give a picture file") from None
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise UsageError(f"{where}: is damaged ({_reason(error)}); write it again") from None
    except Exception as error:  # struct.error, zlib.error and those of its formats
        raise UsageError(f"{where}: is damaged ({_reason(error)}); write it again") from None


def _reason(error: BaseException) -> str:
    return printable(str(error) or type(error).__name__, 200)


def read_image(path: Path, name: str = "") -> Image.Image:
    """An image file as 8-bit RGB, see :func:`as_rgb`; a UsageError if it cannot be read."""
    with opened(path, name) as image:
        return as_rgb(image)


def as_picture(given: Any, name: str = "image") -> Image.Image:
    """An image of a caller's, as a PIL image, a path or an array (H, W, 3) of uint8, in 8-bit RGB.

    Args:
        name: of the argument, for errors.

    Raises:
        UsageError: for anything else, or a file that cannot be read.
    """
    if isinstance(given, (str, Path)):
        return read_image(Path(given), name)
    if isinstance(given, Image.Image):
        return as_rgb(given)
    if not isinstance(given, np.ndarray):
        raise UsageError(f"{name}: a {type(given).__name__}; give a PIL image, a path, or an array (H, W, 3) of uint8")
    if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3 or 0 in given.shape:
        raise UsageError(f"{name} of shape {given.shape} and type {given.dtype}: must be (H, W, 3) uint8")
    return Image.fromarray(np.ascontiguousarray(given))


def as_rgb(image: Image.Image) -> Image.Image:
    """An image as it is meant to be seen, in 8-bit RGB.

    It is turned as its EXIF orientation says; the colours of an embedded ICC profile become those of sRGB; what is
    transparent lies on white; 16-bit levels and floats in [0, 1] become 8-bit levels, rounded.

    Raises:
        UsageError: for floats outside [0, 1], whose white is unknown, or whole numbers above 16 bits.
    """
    profile = image.info.get("icc_profile")
    image = _rounded(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        grey = Image.fromarray(_levels(values, image.mode))
        clear = image.info.get("transparency")  # the one level that is not seen
        if isinstance(clear, int):
            grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        image = grey
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        seen = _in_srgb(image.convert("L" if image.mode in ("L", "LA", "La") else "RGB"), profile)
        seen.putalpha(alpha)
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return _in_srgb(image, profile)


def _rounded(image: Image.Image) -> Image.Image:
    """An image turned upright; a PNG with colours of 16 bits that is not decoded yet with its levels rounded to 8.

    Pillow has no colours of 16 bits and keeps their upper bytes, so the lower ones are decoded on their own.
    """
    tiles, name = getattr(image, "tile", []), getattr(image, "filename", "")
    layout = tiles[0][3] if tiles and image.format == "PNG" else None
    if not name or layout not in ("RGB;16B", "RGBA;16B"):
        return ImageOps.exif_transpose(image)
    upper = ImageOps.exif_transpose(image)
    with Image.open(name) as again:
        lower_tiles: Any = [(*one[:3], layout.replace("16B", "16L")) for one in tiles]  # before Pillow 11 plain tuples
        again.tile = lower_tiles
        lower = ImageOps.exif_transpose(again)
    values = 256 * np.asarray(upper).astype(np.int32) + np.asarray(lower)
    clear = upper.info.get("transparency")  # the one colour that is not seen, in 16 bits
    if isinstance(clear, tuple) and values.shape[2] == 3:
        alpha = np.where((values == clear).all(axis=2, keepdims=True), 0, 65535)
        values = np.concatenate([values, alpha], axis=2)
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


_PROFILED = {"RGB ": ("RGB", "P"), "GRAY": ("L", "1"), "CMYK": ("CMYK",)}
"""By the colour space of an ICC profile: the modes of Pillow that it is for, the one of its levels first."""


def _in_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """An opaque image as RGB, from the colours of its ICC profile; one that is damaged or not for it is passed over."""
    with suppress(ImageCms.PyCMSError, ImportError, OSError, TypeError, ValueError):
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        mode, *others = _PROFILED.get(source.profile.xcolor_space, ("",))
        if image.mode in (mode, *others):
            transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
            if mode == "CMYK" or not _is_srgb(transform, mode):
                return transform.apply(image.convert(mode))
    return image.convert("RGB")


def _is_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform to sRGB does no more than round: then the levels are better left as they are."""
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    levels = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3) if mode == "RGB" else steps[None]
    probe = Image.fromarray(levels)
    change = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe.convert("RGB"))
    return bool(np.abs(change).max() <= 2)


def _levels(values: np.ndarray[Any, np.dtype[Any]], mode: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Levels of 16 bits, or floats in [0, 1], as levels of 8 bits."""
    white = 1.0 if mode == "F" else 65535.0
    unit = values.astype(np.float64) / white
    if not ((unit >= 0) & (unit <= 1)).all():
        raise UsageError(
            f"image of mode {mode} with values from {values.min():g} to {values.max():g}: must be in 0 to {white:g}; "
            "scale it to 8 bits first"
        )
    return np.rint(255 * unit).astype(np.uint8)


def image_metadata(image: Image.Image) -> dict[str, str]:
    """The texts in an open image file: chunks of PNG, the comment of GIF, that in the EXIF data of JPEG and WebP."""
    if image.format == "PNG":
        texts = getattr(image, "text", {})  # to read those behind the pixels, it reads these, too
        return {str(key): str(value) for key, value in texts.items()}
    comment = image.info.get("comment", b"") if image.format == "GIF" else None
    if comment is None:
        comment = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT, b"")
    return comment_texts(comment)


def comment_texts(comment: str | bytes) -> dict[str, str]:
    """The texts in a comment; empty where it is not one of ours."""
    text = comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)
    try:
        found = json.loads(text.removeprefix(_ASCII.decode()))
    except (ValueError, RecursionError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
