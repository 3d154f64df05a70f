"""Writing results: whole or not at all, through links, and with the modes that files have or should have."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from stepvar.errors import OutputError

TEMPORARY = ".stepvar-"
"""What the names of temporary folders begin with; short, so that names of any length can be written beside them."""

_STREAMS = ("/dev/std", "/dev/fd/", "/proc/")
_WRITE_BITS = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK)
_keeping: ContextVar[bool] = ContextVar("keeping", default=False)


class FileAppearedError(OutputError):
    """A file that was not there before the work is there now, and may not be replaced."""


@contextmanager
def keeping_files(keep: bool = True) -> Iterator[None]:
    """Within it, :func:`atomic_path` replaces no file: one that is there at the end is a FileAppearedError.

    A check before the work alone does not do: other processes write to the same folder meanwhile.
    """
    token = _keeping.set(keep)
    try:
        yield
    finally:
        _keeping.reset(token)


def is_stream(path: Path) -> bool:
    """Whether a path is a device such as ``/dev/null`` or an open file such as ``/dev/stdout``: written to in place."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    named = os.path.normpath(path.absolute()).startswith(_STREAMS)
    return stat.S_ISCHR(mode) or (named and not stat.S_ISDIR(mode))


def check_writable(path: Path) -> None:
    """Fails now rather than after the work if a file cannot be written at ``path``, or through it if it is a link.

    Raises:
        OutputError: if the folder does not exist or is not writable, ``path`` is a folder or write-protected, or its
            name is too long.
    """
    if "\0" in str(path):
        raise OutputError(f"{path}: a name cannot hold a null character")
    if is_stream(path):
        return
    target = _target(path)
    place = target.parent if os.path.islink(path) else path.parent
    if not os.path.isdir(target.parent):
        raise OutputError(f"{path}: folder {place} does not exist; create it first")
    longest = os.pathconf(target.parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    if len(os.fsencode(target.name)) > longest:
        raise OutputError(f"{path}: a name of {len(os.fsencode(target.name))} bytes; at most {longest} are possible")
    if os.path.islink(target):
        raise OutputError(f"{path}: is a link that leads back to itself; remove it, or choose another name")
    if os.path.isdir(target):
        raise OutputError(f"{path}: is a folder; name a file in it")
    mode = target.stat().st_mode if os.path.exists(target) else stat.S_IFREG | _WRITE_BITS
    if not stat.S_ISREG(mode):  # a pipe without a reader would wait for ever
        raise OutputError(f"{path}: is a pipe, a socket or a disk; name a file, or /dev/stdout")
    # The superuser may write everything, but a file without any such bit is meant to stay as it is.
    if not mode & _WRITE_BITS or (os.path.exists(target) and not os.access(target, os.W_OK)):
        raise OutputError(f"{path}: is write-protected; allow writing to it (chmod u+w) or choose another name")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{path}: folder {place} cannot be written; choose another place")


def check_folder(folder: Path) -> None:
    """Fails if files cannot be written into a folder, which may not be there yet.

    Raises:
        OutputError: if it cannot be made, or cannot be written.
    """
    check_writable(folder / f"{TEMPORARY}file" if os.path.isdir(folder) else folder)


def _target(path: Path) -> Path:
    """The file that is written: what a link points to, also where that does not exist yet."""
    return Path(os.path.realpath(path))


def _failed(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: {error.strerror or error}; free space or choose another place")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a path to write a file or folder to, renamed to ``path`` at the end, removed on any failure.

    It has the name of ``path`` and lies in a temporary folder beside it. A link stays one: what it points to is
    replaced. A file that was there passes its mode on; a new one gets that of the umask. Devices are written to.

    Raises:
        OutputError: if writing fails (no space, no permission), or files are kept and there is one at the end.
    """
    check_writable(path)
    stream, target = is_stream(path), _target(path)
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=None if stream else target.parent) as folder:
            temporary = Path(folder) / target.name
            yield temporary
            if stream:
                with temporary.open("rb") as written, path.open("ab") as sink:
                    shutil.copyfileobj(written, sink)  # appended: a file behind /dev/stdout holds more
            else:
                _set_modes(temporary, target)
                if _keeping.get() or os.path.isdir(temporary):
                    _place_new(temporary, target, path)
                else:
                    temporary.replace(target)
    except OutputError:
        raise
    except OSError as error:
        raise _failed(path, error) from error


def _place_new(written: Path, target: Path, path: Path) -> None:
    """Gives what was written its name, unless the name is taken; no other process can take it in between."""
    try:
        if os.path.isdir(written):
            target.mkdir()  # an empty folder is replaced by the whole one at once
            _replace_claimed(written, target)
            return
        try:
            os.link(written, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            _replace_claimed(written, target)
    except FileExistsError:
        remedy = "choose another name" if os.path.isdir(written) else "replace it with --force, or choose another name"
        raise FileAppearedError(
            f"{path}: appeared during the work and stays as it is, the result is not saved; {remedy}"
        ) from None


def _replace_claimed(written: Path, target: Path) -> None:
    """Replaces the empty file or folder that claims a name; if that fails, the name is free again."""
    try:
        written.replace(target)
    except OSError:
        if os.path.isdir(target):
            target.rmdir()
        else:
            target.unlink()
        raise


def _set_modes(written: Path, target: Path) -> None:
    """Libraries that write files choose modes of their own."""
    usual = written.parent / f"{TEMPORARY}mode"
    usual.touch()
    mode = stat.S_IMODE(usual.stat().st_mode)
    if os.path.isdir(written):
        for file in (path for path in written.rglob("*") if path.is_file()):
            file.chmod(mode)
    else:
        written.chmod(stat.S_IMODE(target.stat().st_mode) if os.path.exists(target) else mode)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Likewise for a new folder, which is empty at first.

    Raises:
        OutputError: if ``path`` exists, or writing fails (no space, no permission).
    """
    if os.path.lexists(path):
        raise OutputError(f"{path}: exists; choose another folder or remove it first")
    with atomic_path(path) as temporary:
        temporary.mkdir()
        yield temporary


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all; stray bytes of the text are written as they came."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
