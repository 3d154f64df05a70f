"""Image files: seen as they are meant, damaged ones named, and how they were made inside every format."""

from __future__ import annotations

import copy
import io
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from stepvar.errors import UsageError
from stepvar.media.images import GeneratedImage, as_rgb, read_image, save_image
from stepvar.media.metadata import read_metadata

TEXTS = {"prompt": "a café at night", "seed": "7", "version": "stepvar 1"}
RAMP = np.linspace(0, 1, 5)[None].repeat(4, 0)


def levels(image: Image.Image) -> list[int]:
    return np.asarray(as_rgb(image))[0, :, 0].tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / "phone.jpg", exif=exif)
    assert read_image(tmp_path / "phone.jpg").size == ((60, 40) if orientation < 5 else (40, 60))


def test_16_bits_and_floats_keep_their_levels(tmp_path: Path) -> None:
    Image.fromarray((RAMP * 65535).round().astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("deep.png", "float.tif"):
        assert np.asarray(read_image(tmp_path / name))[0, :, 0].tolist() == [0, 64, 128, 191, 255]
    assert levels(Image.fromarray((RAMP * 65535).round().astype(np.int32))) == [0, 64, 128, 191, 255]


@pytest.mark.parametrize("value", [255.0, -0.5, np.nan, np.inf])
def test_floats_whose_white_is_unknown_are_refused(value: float) -> None:
    with pytest.raises(UsageError, match="mode F"):
        as_rgb(Image.fromarray(np.full((2, 2), value, np.float32)))


def test_what_is_transparent_lies_on_white() -> None:
    clear = Image.new("RGBA", (5, 4), (200, 0, 0, 0))
    clear.putpixel((1, 0), (200, 0, 0, 255))
    assert levels(clear) == [255, 200, 255, 255, 255]
    assert np.asarray(as_rgb(clear))[0, 1].tolist() == [200, 0, 0]
    palette = Image.new("P", (5, 4))
    palette.putpalette([9, 9, 9])
    assert levels(palette) == [9] * 5
    palette.info["transparency"] = 0
    assert levels(palette) == [255] * 5


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.jpeg", "x.webp", "x.PNG"])
def test_every_format_says_how_it_was_made(tmp_path: Path, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    save_image(Image.fromarray(pixels), tmp_path / name, TEXTS)
    quality = {"quality": "95"} if "jp" in name else {}
    assert read_metadata(tmp_path / name) == TEXTS | quality
    exact = np.array_equal(np.asarray(read_image(tmp_path / name)), pixels)
    assert exact or "jp" in name  # PNG, and WebP where no quality is asked for, lose nothing
    GeneratedImage.of(pixels, TEXTS).save(tmp_path / f"python-{name}")
    assert read_metadata(tmp_path / f"python-{name}") == TEXTS


def test_images_saved_into_memory_carry_their_texts() -> None:
    for kind in ("PNG", "jpeg", "webp"):
        buffer = io.BytesIO()
        GeneratedImage.of(np.zeros((4, 4, 3), np.uint8), TEXTS).save(buffer, kind)
        assert b"stepvar 1" in buffer.getvalue()


def test_stray_bytes_and_long_prompts_are_written(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp"):
        texts = {"prompt": "red \udcff" + "x" * 100_000}
        save_image(Image.new("RGB", (4, 4)), tmp_path / f"x.{suffix}", texts)
        assert read_metadata(tmp_path / f"x.{suffix}")["prompt"].startswith("red ")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_damaged_images_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    save_image(Image.fromarray(pixels), path, TEXTS)
    whole = path.read_bytes()
    refused = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        data = bytearray(whole[: random.integers(1, len(whole))] if seed % 2 else whole)
        for place in random.integers(0, len(data), 8):
            data[place] = random.integers(256)
        path.write_bytes(data)
        for read in (read_image, read_metadata):
            try:
                read(path)
            except UsageError as error:
                refused += 1
                assert f"x.{suffix}" in str(error)
    assert refused > 10


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(UsageError, match="device or a pipe"):
            read_image(path)


def test_images_of_a_gigapixel_are_refused(tmp_path: Path) -> None:
    Image.new("1", (20000, 20000)).save(tmp_path / "large.png")
    with pytest.raises(UsageError, match=r"large\.png"):
        read_image(tmp_path / "large.png")


def swapped_profile() -> bytes:
    """An ICC profile whose red is the green of sRGB, and its green the red."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_of_a_profile_become_those_of_srgb(tmp_path: Path, mode: str) -> None:
    red = Image.new("RGB", (4, 3), (250, 20, 90))
    red = red.quantize(2) if mode == "P" else red.convert(mode)
    red.save(tmp_path / "x.png", icc_profile=swapped_profile())
    found = read_image(tmp_path / "x.png")
    assert found.mode == "RGB" and np.abs(np.asarray(found).astype(int) - (20, 250, 90)).max() <= 2
    assert np.array_equal(np.asarray(as_rgb(found)), np.asarray(found))  # once


def test_a_profile_of_srgb_leaves_every_level(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(colours).save(tmp_path / "x.png", icc_profile=profile)
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.png")), colours)


@pytest.mark.parametrize("profile", [b"damaged", swapped_profile()[:200], b""], ids=["no profile", "cut", "empty"])
def test_a_damaged_profile_is_passed_over(tmp_path: Path, profile: bytes) -> None:
    Image.new("RGB", (4, 3), (250, 20, 90)).save(tmp_path / "x.png", icc_profile=profile)
    assert read_image(tmp_path / "x.png").getpixel((0, 0)) == (250, 20, 90)


def test_a_profile_for_other_images_is_passed_over() -> None:
    grey = Image.new("CMYK", (4, 3), (0, 0, 0, 100))
    grey.info["icc_profile"] = swapped_profile()
    assert as_rgb(grey).getpixel((0, 0)) == (155, 155, 155)


def write_png(path: Path, values: np.ndarray[Any, Any], transparent: tuple[int, ...] = ()) -> Path:
    """A PNG of 16 bits per channel, (H, W, C): Pillow writes none with colours."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    clear = chunk(b"tRNS", struct.pack(f">{channels}H", *transparent)) if transparent else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + clear
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_levels_of_16_bits_are_rounded_in_grey_and_in_colour(tmp_path: Path, channels: int) -> None:
    levels = np.array([0, 128, 129, 255, 256, 40_000, 65_406, 65_407, 65_535])
    values = np.repeat(levels[None, :, None], channels, axis=2)
    if channels == 4:
        values[..., 3] = 65_535
    found = np.asarray(read_image(write_png(tmp_path / "x.png", values)))
    assert np.array_equal(found, np.rint(levels / 257)[None, :, None].repeat(3, axis=2))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_level_of_16_bits_is_white(tmp_path: Path, channels: int) -> None:
    values = np.repeat(np.array([1000, 1001, 30_000])[None, :, None], channels, axis=2)
    found = read_image(write_png(tmp_path / "x.png", values, (1000,) * channels))
    assert np.asarray(found)[0, :, 0].tolist() == [255, 4, 117]


def test_copies_and_pickles_keep_the_texts() -> None:
    image = GeneratedImage.of(np.full((4, 5, 3), 7, np.uint8), TEXTS)
    for again in (copy.copy(image), image.copy(), copy.deepcopy(image), pickle.loads(pickle.dumps(image))):
        assert type(again) is GeneratedImage and again.metadata == TEXTS
        assert np.array_equal(np.asarray(again), np.asarray(image))


@pytest.mark.parametrize(("name", "most"), [("x.jpg", 65500), ("x.webp", 16383)])
def test_images_wider_than_a_format_holds_are_refused(tmp_path: Path, name: str, most: int) -> None:
    with pytest.raises(UsageError, match=f"70000x2 as .*: a side has at most {most} pixels; save as .png"):
        save_image(Image.new("RGB", (70_000, 2)), tmp_path / name)


@pytest.mark.parametrize("quality", ["95", [1], True, 101, float("nan")], ids=str)
def test_a_quality_is_a_whole_number(tmp_path: Path, quality: Any) -> None:
    with pytest.raises(UsageError, match=r"quality=.*: must be a whole number from 0 to 100"):
        save_image(Image.new("RGB", (4, 3)), tmp_path / "x.jpg", quality=quality)
