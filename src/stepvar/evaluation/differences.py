"""What differs between the settings of two runs, in a few words."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from stepvar.core.values import shown

MOST_SHOWN = 3
"""Differences that an error names; the rest are counted."""


def describe_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first differences, such as ``stepvar keep: 0.5 there, 0.4 here``; empty if there are none."""
    found = _differences("", there, here)
    first = [f"{name}: {_text(old)} there, {_text(new)} here" for name, old, new in islice(found, MOST_SHOWN)]
    others = sum(1 for _ in found)
    return "; ".join(first) + (f"; and {others} more" if others else "")


def _differences(name: str, there: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    there, here = _opened(there), _opened(here)
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in dict.fromkeys([*there, *here]):
            # Methods go by their labels, and their settings are what an entry is about.
            inner = name if key == "settings" and name else f"{name} {key}".strip()
            yield from _differences("" if inner == "methods" else inner, there.get(key), here.get(key))
    elif there != here:
        yield name, there, here


def _opened(value: Any) -> Any:
    """Methods by their labels, and the text of a method as its settings; all else as it is."""
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and "label" in one for one in value):
        return {one["label"]: {key: given for key, given in one.items() if key != "label"} for one in value}
    if isinstance(value, str) and value.endswith(")"):
        try:
            call = ast.parse(value, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # another text that ends so
            return value
        if isinstance(call, ast.Call) and not call.args and all(word.arg for word in call.keywords):
            return {"method": ast.unparse(call.func)} | {
                str(word.arg): _Plain(ast.unparse(word.value)) for word in call.keywords
            }
    return value


class _Plain(str):
    """The text of a value, to be shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):  # a method that only one of both has
        return "given"
    return "nothing" if value is None else shown(value)
