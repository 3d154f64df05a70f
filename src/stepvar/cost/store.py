"""Measurements that are kept between runs, in files of the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from stepvar.errors import OutputError
from stepvar.utils.files import write_text

Value = TypeVar("Value")


def cache_folder() -> Path:
    """``$STEPVAR_CACHE``, else ``stepvar`` in the user's cache folder."""
    own = os.environ.get("STEPVAR_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "stepvar"


def cache_file(kind: str, key: Mapping[str, Any]) -> Path:
    """The file of a measurement: its kind, and a digest of all that it depends on."""
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()
    return cache_folder() / f"{kind}-{digest}.json"


def kept(
    kind: str,
    key: Mapping[str, Any],
    measure: Callable[[], Value],
    write: Callable[[Value], dict[str, Any]],
    read: Callable[[dict[str, Any]], Value],
    again: bool = False,
) -> Value:
    """A measurement from its file, or made now and kept.

    A file that is damaged, of something else or unreadable is made anew. Where nothing can be written, the
    measurement is made each time.

    Args:
        again: measure whatever is there.
    """
    path = cache_file(kind, key)
    if not again:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["key"] == dict(key):
                return read(stored["value"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass
    value = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"key": dict(key), "value": write(value)}, indent=1) + "\n")
    except (OSError, OutputError):
        pass
    return value
