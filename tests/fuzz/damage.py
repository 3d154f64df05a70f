"""Damage by chance: bytes that are cut off, changed or repeated, and values of JSON that are something else."""

from __future__ import annotations

import json
import random
from typing import Any

ODD: list[Any] = [
    None, True, -1, 0, 1.5, 10**9, 10**30, 1e308, "", "x", "\x1b[31m\x07", "../../etc/passwd", [], {}, [[]], [None],
    [1, "x"], {"x": {}}, "9" * 5000, ["x"] * 3000,
]  # fmt: skip


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A file with some of its bytes cut off, changed, doubled or zeroed."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 4])):
        if not data:
            break
        start = chance.randrange(len(data))
        end = min(len(data), start + chance.choice([1, 4, 64, 4096]))
        kind = chance.randrange(6)
        if kind == 0:
            del data[start:]
        elif kind == 1:
            data[start:end] = chance.randbytes(end - start)
        elif kind == 2:
            data[start:end] = bytes(end - start)
        elif kind == 3:
            data[start:start] = data[start:end]
        elif kind == 4:
            del data[start:end]
        else:
            head = min(200, len(data))  # headers are where it matters
            data[chance.randrange(head)] = chance.randrange(256)
    return bytes(data)


def damaged_json(content: bytes, chance: random.Random) -> bytes:
    """A JSON file in which one value is another, is missing, or is nested deeply."""
    found = json.loads(content)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        for key in keys:
            places.append((value, key))
            walk(value[key])

    walk(found)
    if not places or chance.random() < 0.05:
        return chance.choice([b"[" * 50_000, b'{"a":' * 50_000, b"", b"null", b"NaN", b"\xff\xfe", b"9" * 6000])
    for _ in range(chance.choice([1, 1, 3])):
        where, key = chance.choice(places)
        if isinstance(where, dict) and key in where and chance.random() < 0.2:
            del where[key]
        elif isinstance(where, dict) or key < len(where):
            where[key] = chance.choice(ODD)
    return json.dumps(found).encode()
