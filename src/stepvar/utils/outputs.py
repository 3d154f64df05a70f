"""Where the results of a run go, decided before the work: no two are one file, and none replaces another file unasked.

An existing file is replaced only where the caller says so (``--force``); names that nobody gave move on to the next
free one, ``scene-2.png``; in a folder, numbers go on behind those that are there.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from stepvar.errors import OutputError, UsageError
from stepvar.utils.files import FileAppearedError, check_writable, is_stream, keeping_files

MEDIA = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4")
"""Endings of results; a folder with one of them is rather a mistake."""


class Outputs:
    """The files that one run writes.

    Args:
        force: whether files that are there may be replaced.
    """

    def __init__(self, force: bool = False) -> None:
        self.force = force
        self._names: dict[object, str] = {}

    def claim(self, name: str, *paths: Path, own: bool = False) -> None:
        """Checks files that will be written.

        Args:
            name: of the option that they follow from.
            own: whether the run may replace them whatever ``force`` says, since the names are its own.

        Raises:
            UsageError: if one of them is a file that was claimed before.
            OutputError: if one cannot be written, or exists.
        """
        for path in paths:
            if os.path.isdir(path.parent) or not own:  # its own folders may still have to be made
                check_writable(path)
            if is_stream(path):
                continue
            for key in _identities(path):
                if key in self._names:
                    other = self._names[key]
                    raise UsageError(f"{name} and {other}: both would be written to {path}; give different files")
            if os.path.exists(path) and not self.force and not own:
                raise OutputError(f"{path}: exists; replace it with --force, or choose another name")
            self._names.update(dict.fromkeys(_identities(path), f"{name} {str(path)!r}"))


def check_outside(name: str, path: Path, folder: Path) -> None:
    """Checks a file beside a folder that is made only with the results: it cannot lie in it, or be it.

    Raises:
        UsageError: if it does.
    """
    if os.path.isdir(folder):
        return
    place, new = (Path(str(_identities(one)[0])) for one in (path, folder))
    if place == new or new in place.parents:
        raise UsageError(
            f"{name} {str(path)!r}: lies in the folder {folder}, which is made with the results; "
            "name a file outside of it, or create the folder first"
        )


def _identities(path: Path) -> list[object]:
    """By what a file is known to be the same: its place, as file systems that ignore case have it, and its number."""
    real = os.path.realpath(path)
    found: list[object] = [unicodedata.normalize("NFC", real).casefold()]
    if os.path.exists(real):
        status = os.stat(real)
        found.append((status.st_dev, status.st_ino))
    return found


def is_folder_name(path: Path | str) -> bool:
    """Whether a name is that of a folder: it is one, ends in a slash, or has no ending and is not there."""
    if str(path).endswith(("/", os.sep)):
        return True
    place = Path(path)
    if place.suffix.lower() in MEDIA:
        return False
    return os.path.isdir(place) or (not place.suffix and not os.path.lexists(path))


def numbered(path: Path, number: int) -> list[Path]:
    """The path itself for one result, ``name-1.png`` and so on for several."""
    if number == 1:
        return [path]
    digits = len(str(number))
    return [path.with_name(f"{path.stem}-{one:0{digits}}{path.suffix}") for one in range(1, number + 1)]


def free_name(path: Path, number: int = 1, beside: Sequence[str] = ()) -> Path:
    """The path, or ``name-2.png``, ``name-3.png`` ... : the first whose results (and ``beside`` them) are not there.

    Args:
        number: of results, see :func:`numbered`.
        beside: other endings that are written under the same name.
    """
    for attempt in count(1):
        candidate = path if attempt == 1 else path.with_name(f"{path.stem}-{attempt}{path.suffix}")
        files = [*numbered(candidate, number), *(candidate.with_suffix(ending) for ending in beside)]
        if not any(map(os.path.lexists, files)):
            return candidate
    raise AssertionError  # count() does not end


def in_folder(folder: Path, suffix: str, number: int) -> list[Path]:
    """Names in a folder, ``0001.png`` and so on, behind the numbers that are there."""
    taken = [int(path.stem) for path in folder.glob("*") if re.fullmatch(r"[0-9]{1,9}", path.stem)]
    first = 1 + max(taken, default=0)
    return [folder / f"{one:04}{suffix}" for one in range(first, first + number)]


def write_new(path: Path, write: Callable[[Path], object], *, force: bool = False, own: bool = False) -> Path:
    """Writes a result; a file that appeared since its name was checked is not replaced.

    Args:
        write: writes it to the path that it is given, by :func:`stepvar.utils.files.atomic_path`.
        force: whether a file that is there may be replaced.
        own: whether the name is free for the run to choose: the next free one is taken then, and none replaced.

    Returns:
        Where it was written.

    Raises:
        OutputError: if it cannot be written, or the name that the user gave is taken by now.
    """
    while True:
        try:
            with keeping_files(own or not force):
                write(path)
            return path
        except FileAppearedError:
            if not own:
                raise
            numbered_name = re.fullmatch(r"[0-9]{1,9}", path.stem)
            path = in_folder(path.parent, path.suffix, 1)[0] if numbered_name else free_name(path)
