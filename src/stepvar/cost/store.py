"""Measurements that are kept between runs, in files of the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepvar.errors import OutputError
from stepvar.utils.files import write_text


def cache_folder() -> Path:
    """``$STEPVAR_CACHE``, else ``stepvar`` in the user's cache folder."""
    own = os.environ.get("STEPVAR_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "stepvar"


def cache_file(kind: str, key: Mapping[str, Any]) -> Path:
    """The file of a measurement: its kind, and a digest of all that it depends on."""
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()
    return cache_folder() / f"{kind}-{digest}.json"


def load(kind: str, key: Mapping[str, Any]) -> Any:
    """What was saved under a key; None if there is nothing, or a file that is damaged or of something else."""
    try:
        stored = json.loads(cache_file(kind, key).read_text(encoding="utf-8"))
        return stored["value"] if stored["key"] == dict(key) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def save(kind: str, key: Mapping[str, Any], value: Any) -> None:
    """Keeps plain data under a key, as far as files can be written."""
    path = cache_file(kind, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"key": dict(key), "value": value}, indent=1) + "\n")
    except (OSError, OutputError):
        pass
