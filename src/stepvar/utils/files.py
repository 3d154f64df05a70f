"""Writing results so that nothing half-written is left behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepvar.errors import OutputError


def check_writable(path: Path) -> None:
    """Fails now rather than after the work if a file cannot be written at ``path``.

    Raises:
        OutputError: if the folder does not exist or is not writable, or ``path`` is a folder.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: folder {path.parent} cannot be written; choose another place")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a path to write a file or folder to, renamed to ``path`` at the end, removed on any failure.

    It has the name of ``path`` and lies in a temporary folder beside it.

    Raises:
        OutputError: if writing fails (no space, no permission).
    """
    check_writable(path)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            yield temporary
            temporary.replace(path)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}; free space or choose another place") from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Likewise for a new folder, which is empty at first.

    Raises:
        OutputError: if ``path`` exists, or writing fails (no space, no permission).
    """
    if path.exists():
        raise OutputError(f"{path}: exists; choose another folder or remove it first")
    with atomic_path(path) as temporary:
        temporary.mkdir()
        yield temporary


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
