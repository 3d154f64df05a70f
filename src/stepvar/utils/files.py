"""Writing results so that nothing half-written is left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    """Gives a temporary name beside ``path``, renamed to ``path`` at the end, removed on any failure.

    Raises:
        OutputError: if writing fails (no space, no permission).
    """
    check_writable(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}; free space or choose another place") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside ``path``, renamed to ``path`` at the end, removed on any failure.

    Raises:
        OutputError: if ``path`` exists, or writing fails (no space, no permission).
    """
    if path.exists():
        raise OutputError(f"{path}: exists; choose another folder or remove it first")
    check_writable(path)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}; free space or choose another place") from error
