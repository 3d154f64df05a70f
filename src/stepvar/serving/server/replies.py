"""Results as OpenAI's clients read them."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from stepvar.media.images import JPEG_QUALITY, save_parameters
from stepvar.serving.server.requests import FileFormat
from stepvar.serving.server.schema import ImageFields
from stepvar.serving.server.worker import Done

PNG_LEVEL = 1
"""Of compression: the default one takes a share of the time of an image on a GPU for a few per cent of its bytes."""


def encode(image: Image.Image, form: FileFormat, texts: dict[str, str]) -> str:
    """An image as base64, with texts inside."""
    kind, file = form.kind.upper(), BytesIO()
    options: dict[str, Any] = {"compress_level": PNG_LEVEL}
    if kind == "JPEG":
        options = {"quality": JPEG_QUALITY if form.quality is None else form.quality, "subsampling": 0}
    elif kind == "WEBP":
        options = {"lossless": True} if form.quality is None else {"quality": form.quality}
    image.save(file, kind, **{**save_parameters(kind, texts), **options})
    return base64.b64encode(file.getvalue()).decode()


def entry(done: Done, encoded: str, form: FileFormat, seed: int) -> dict[str, Any]:
    """One image of an answer; ``seed``, ``report`` and ``warnings`` are our own."""
    given = {"url": f"data:image/{form.kind};base64,{encoded}"} if form.as_url else {"b64_json": encoded}
    return {**given, "seed": seed, "report": report(done), "warnings": done.warnings}


def report(done: Done) -> dict[str, Any]:
    """What an image or video cost; seconds are those of its batch."""
    one = done.report
    return {
        "method": one.method,
        "seconds": round(one.seconds, 4),
        "queued": round(done.waited, 4),
        "batch": done.batch,
        "tokens": one.tokens,
        "kept": one.kept,
    }


def usage(results: Sequence[Done]) -> dict[str, Any]:
    """Tokens of the images that were computed; those of texts are not counted."""
    computed = sum(done.report.kept for done in results)
    return {
        "input_tokens": 0,
        "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
        "output_tokens": computed,
        "total_tokens": computed,
    }


def images_response(fields: ImageFields, results: Sequence[Done], entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answer to an images request."""
    return {
        "created": int(time.time()),
        "data": list(entries),
        "background": "opaque",
        "output_format": fields.output_format,
        "quality": _quality(fields),
        "size": size_of(results[0].result),
        "usage": usage(results),
    }


def event_fields(fields: ImageFields, image: Image.Image, index: int) -> dict[str, Any]:
    """What all events of a stream have; ``image_index`` is our own."""
    return {
        "background": "opaque",
        "created_at": int(time.time()),
        "output_format": fields.output_format,
        "quality": _quality(fields),
        "size": size_of(image),
        "image_index": index,
    }


def size_of(image: Any) -> str:
    return f"{image.size[0]}x{image.size[1]}"


def _quality(fields: ImageFields) -> str:
    """Words of retired models in those of the current ones."""
    return {"standard": "medium", "hd": "high"}.get(fields.quality, fields.quality)
