"""Images of any shape as squares, and back, for models that know only those."""

from __future__ import annotations

from PIL import Image


def padded_square(image: Image.Image, side: int) -> Image.Image:
    """An RGB image in the top left corner of a white square, which is resized to a side in pixels (Lanczos)."""
    square = Image.new("RGB", (max(image.size),) * 2, "white")
    square.paste(image, (0, 0))
    return square.resize((side, side), Image.Resampling.LANCZOS)


def cut_from_square(square: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The part of a square that an image of a width and height had in it, at that size."""
    return square.resize((max(size),) * 2, Image.Resampling.LANCZOS).crop((0, 0, *size))
