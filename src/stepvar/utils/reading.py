"""Reading what others wrote: regular files of bounded size, JSON of the shape that is asked for."""

from __future__ import annotations

import json
import stat
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from stepvar.errors import StepvarError, UsageError, printable

MOST_TEXT = 64_000_000
"""Bytes of a text file: the index of a large model, or a manifest of many images, has a few millions."""


def check_regular(path: Path, where: str = "", error: type[StepvarError] = UsageError) -> int:
    """The size of a regular file; devices and pipes may never end.

    Args:
        where: how errors name it; default: by its path.
        error: what to raise.
    """
    where = where or str(path)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise error(f"{where}: there is no such file; check the path") from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{where}: cannot be read ({reason}); check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise error(f"{where}: is a folder; name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{where}: is a device or a pipe; give a regular file")
    return status.st_size


def read_text(path: Path, error: type[StepvarError] = UsageError, most: int = MOST_TEXT) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        error: if it is missing, no regular file, too large, or no text.
    """
    size = check_regular(path, error=error)
    if size > most:
        raise error(f"{path}: has {size / 1e6:.0f} MB; at most {most / 1e6:.0f} MB are read, give a smaller file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: is no text in UTF-8 (byte {problem.start}); write it again") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror or problem})") from None


def parse_json(text: str) -> Any:
    """JSON without NaN and infinities; a ValueError for anything else, also for what is nested too deeply."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def read_json(path: Path, error: type[StepvarError] = UsageError, remedy: str = "write it again") -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        error: if it cannot be read, or holds something else.
    """
    try:
        found = parse_json(read_text(path, error))
    except ValueError as problem:
        if isinstance(problem, StepvarError):
            raise
        raise error(f"{path}: cannot be read ({printable(str(problem), 200)}); {remedy}") from None
    if not isinstance(found, dict):
        raise error(f"{path}: holds a {type(found).__name__}, not an object; {remedy}")
    return found


def check_fields(
    values: Mapping[str, Any], kinds: Mapping[str, Any], where: str, error: type[StepvarError], remedy: str
) -> None:
    """Checks the types of entries; those that are not named are left alone, and those that are missing, too.

    Args:
        kinds: a type by name, as annotations have them: ``int``, ``float | None``, ``tuple[int, ...]``, ``Literal``.

    Raises:
        error: naming the entry, its value and its type.
    """
    for name, value in values.items():
        if name in kinds and not fits(value, kinds[name]):
            kind = getattr(kinds[name], "__name__", None) if get_origin(kinds[name]) is None else None
            shown = printable(repr(value), 100)
            raise error(f"{where}: {name}={shown} must be {kind or printable(str(kinds[name]), 80)}; {remedy}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type as annotations write it; numbers must be finite."""
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inside)
    if origin is Literal:
        return isinstance(value, (str, int)) and value in inside
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        each = inside[:1] * len(value) if inside[-1] is Ellipsis else inside
        return len(value) == len(each) and all(map(fits, value, each))
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if kind is int:
            return whole
        return (whole or isinstance(value, float)) and abs(value) < float("inf")
    return isinstance(value, origin or kind)
