"""The forms of requests that bring an image: its bytes are data, never a path or an address to read from."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any

from fastapi import Request
from PIL import Image
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from typing_extensions import TypeVar

from stepvar.core.values import shown
from stepvar.errors import UsageError
from stepvar.media.images import decode_image
from stepvar.serving.server.errors import invalid_fields
from stepvar.serving.server.schema import Fields

MOST_FIELDS = 64
LONGEST_FIELD = 2**20
"""Bytes of a field that is no file."""

Body = TypeVar("Body", bound=Fields)


async def read_form(request: Request, kind: type[Body], image_name: str) -> tuple[Body, Image.Image | None]:
    """The fields of a request, and its image, if it has one.

    Args:
        kind: of the fields.
        image_name: of the field with the image; also ``name[]``.

    Raises:
        RequestError: for other fields.
        UsageError: for what is no image, or for several.
    """
    form_type, options = parse_options_header(request.headers.get("content-type", ""))
    if form_type == b"application/json":
        return await _read_json(request, kind, image_name)
    if (charset := options.get(b"charset", b"utf-8")).lower() not in (b"utf-8", b"utf8"):  # others can be slow, or fail
        raise UsageError(f"charset={shown(charset.decode('latin-1'))}: forms are read as utf-8; leave it out")
    fields: dict[str, Any] = {}
    images = []
    async with request.form(max_files=2, max_fields=MOST_FIELDS, max_part_size=LONGEST_FIELD) as form:
        for name, value in form.multi_items():
            plain = name.removesuffix("[]")
            if plain in fields and isinstance(fields[plain], list) == (plain == name):
                raise UsageError(f"{plain}: is given as one value, and as a list as '{plain}[]'; send one of them")
            if isinstance(value, UploadFile):
                if plain != image_name:
                    raise UsageError(f"{name}: this server takes no such file; leave it out")
                images.append(await value.read())
            elif plain == name:
                fields[name] = value
            else:
                fields.setdefault(plain, []).append(value)
    return await _read(fields, images, kind, image_name)


async def _read_json(request: Request, kind: type[Body], image_name: str) -> tuple[Body, Image.Image | None]:
    try:
        fields = await request.json()
    except (ValueError, RecursionError) as error:
        raise UsageError(f"body: is not JSON ({type(error).__name__}); send an object, or a form") from None
    if not isinstance(fields, dict):
        raise UsageError("body: must be a JSON object, or a form")
    return await _read(fields, [], kind, image_name)


async def _read(
    fields: dict[str, Any], images: list[bytes], kind: type[Body], image_name: str
) -> tuple[Body, Image.Image | None]:
    for name in [name for name in fields if name == image_name or name.startswith(f"{image_name}[")]:
        given = fields.pop(name)
        if given is not None:
            images.append(_from_url(given, name))
    if len(images) > 1:
        raise UsageError(f"{image_name}: {len(images)} given; send one")
    try:
        body = kind.model_validate(fields)
    except ValidationError as error:
        raise invalid_fields(error.errors(include_url=False)) from None
    if not images:
        return body, None
    return body, await asyncio.to_thread(decode_image, images[0], image_name)


def _from_url(given: Any, name: str) -> bytes:
    """The bytes of a ``data:`` URL; nothing is fetched from any other."""
    if isinstance(given, dict):
        given = given.get("image_url")
    head, comma, data = given.partition(",") if isinstance(given, str) else ("", "", "")
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        raise UsageError(f"{name}: must be a file of the form, or a data: URL in base64; nothing else is read")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError(f"{name}: its data: URL is not base64; send the file") from None
