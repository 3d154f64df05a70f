"""How a server is set up: its limits, and who may use it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from stepvar.core.values import Range, check_fields
from stepvar.errors import UsageError
from stepvar.utils.reading import check_regular

KEY_VARIABLE = "STEPVAR_API_KEY"
SHORTEST_KEY = 16
"""Characters of an API key."""

MIB = 2**20


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server.

    Attributes:
        name: of the model, as clients give it; empty: the model's own.
        method: what requests run that name neither a method nor a quality.
        max_batch: images that run as one batch at most.
        max_wait: seconds that a batch waits for others to join, where requests came together before.
        max_queue: images and videos that wait at most; more are answered with 429.
        max_images: of one request.
        max_prompt: characters of a prompt, and of a negative prompt.
        max_pixels: width times height of a result at most; None: whatever the model generates.
        max_seconds: of a video.
        max_body: bytes of a request that is JSON.
        max_upload: bytes of a request with an image.
        body_seconds: time in which a request has to arrive.
        max_videos: finished videos that are kept; the oldest goes first.
        keep_seconds: how long a finished video is kept.
        drain_seconds: how long a server that was told to end waits for finished videos to be downloaded.
        warm_up: whether images are generated before the server says that it is ready.
    """

    name: str = ""
    method: str = "dense"
    max_batch: Annotated[int, Range(1, 256)] = 4
    max_wait: Annotated[float, Range(0, 60)] = 0.01
    max_queue: Annotated[int, Range(1, 10_000)] = 64
    max_images: Annotated[int, Range(1, 100)] = 10
    max_prompt: Annotated[int, Range(1, 100_000)] = 4000
    max_pixels: Annotated[int, Range(1)] | None = None
    max_seconds: Annotated[float, Range(0, 3600)] = 60.0
    max_body: Annotated[int, Range(1024)] = MIB
    max_upload: Annotated[int, Range(1024)] = 32 * MIB
    body_seconds: Annotated[float, Range(above=0)] = 30.0
    max_videos: Annotated[int, Range(1, 10_000)] = 100
    keep_seconds: Annotated[float, Range(above=0)] = 3600.0
    drain_seconds: Annotated[float, Range(0)] = 30.0
    warm_up: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_images > self.max_queue:
            raise UsageError(
                f"max-images={self.max_images}: a request with so many never fits into max-queue={self.max_queue}; "
                "raise the one or lower the other"
            )


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The API keys of a server: the lines of a file, else the variable ``STEPVAR_API_KEY``; none: everybody may use it.

    Raises:
        UsageError: if the file cannot be read, has no key, or a key is too short to be secret.
    """
    if file is None:
        given, where = [os.environ.get(KEY_VARIABLE, "")], KEY_VARIABLE
        if not given[0]:
            return ()
    else:
        check_regular(file, where := f"api-key-file {str(file)!r}")
        try:
            given = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise UsageError(f"{where}: cannot be read as text; give a file with one key per line") from None
    return _checked([key.strip() for key in given if key.strip()], where)


def _checked(keys: Sequence[str], where: str) -> tuple[str, ...]:
    if not keys:
        raise UsageError(f"{where}: has no key; write one per line")
    for key in keys:
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(
                f"{where}: a key has at least {SHORTEST_KEY} characters, ASCII without spaces; "
                "'openssl rand -hex 32' makes one"
            )
    return tuple(keys)
