"""The 1000 classes of ImageNet by name."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

from stepvar.core.values import shown
from stepvar.errors import UsageError

CLASSES = 1000


@cache
def class_names() -> tuple[tuple[str, ...], ...]:
    """Per class its name, in lower case, and after it other names that it goes by."""
    text = (files("stepvar.models.var") / "imagenet.txt").read_text(encoding="utf-8")
    return tuple(tuple(line.split(", ")) for line in text.splitlines())


@cache
def _by_name() -> dict[str, list[int]]:
    """The classes that go by each name; first names belong to one class alone."""
    found: dict[str, list[int]] = {}
    for index, names in enumerate(class_names()):
        for name in names:
            found.setdefault(_plain(name), []).append(index)
    return found | {_plain(names[0]): [index] for index, names in enumerate(class_names())}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.casefold()).strip()


def class_index(name_or_id: str | int) -> int:
    """The index of a class from its name, any of its other names, or the index itself.

    Case does not matter, nor whether words are joined by spaces, hyphens or underscores.

    Raises:
        UsageError: for an unknown name, with the names most like it, for a name of several classes, or for an
            index that is not in 0..999.
    """
    if isinstance(name_or_id, int) or re.fullmatch(r"\s*-?[0-9]{1,18}\s*", name_or_id):
        index = int(name_or_id)
        if not 0 <= index < CLASSES:
            raise UsageError(f"class {index}: must be between 0 and {CLASSES - 1}")
        return index
    name = _plain(name_or_id)
    found = _by_name().get(name, [])
    if len(found) == 1:
        return found[0]
    if found:
        several = " or ".join(f"{class_names()[index][0]!r} ({index})" for index in found)
        raise UsageError(f"class {shown(name_or_id)}: is several classes; say {several}")
    near = get_close_matches(name, _by_name(), n=3, cutoff=0.5)
    near = near or [known for known in _by_name() if name and name in known][:3]
    hint = f"; did you mean {', '.join(map(repr, near))}?" if near else "; see class_names() for all"
    raise UsageError(f"class {shown(name_or_id)}: unknown{hint}")
