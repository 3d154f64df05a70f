"""The rows of a batch job, from JSON lines, CSV or Parquet; each is good, or says what is wrong with it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stepvar.core.arguments import SEED, parse_aspect_ratio
from stepvar.core.values import shown, whole_number
from stepvar.errors import StepvarError, UsageError
from stepvar.utils.reading import parse_json, read_text
from stepvar.utils.require import require

FORMATS = (".jsonl", ".csv", ".parquet")
MOST_BYTES = 4_000_000_000
"""Of a file of prompts."""

DEEPEST = 32
"""Levels of a value of a row."""

COLUMNS = ("id", "prompt", "seed", "negative_prompt", "aspect_ratio", "guidance_scale")
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        id: names its file; as the column says, or the hash of its columns, so that it stays where rows move.
        place: where it stands, for errors.
        seed: of its random numbers; follows from the id where the column says none.
        aspect_ratio, guidance_scale, negative_prompt: None: as the job says.
        other: the columns that say nothing here; they go into the manifest.
        error: what is wrong with it; None: it can be tried.
    """

    id: str
    place: str
    prompt: str = ""
    seed: int = 0
    negative_prompt: str | None = None
    aspect_ratio: str | None = None
    guidance_scale: float | None = None
    other: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def read_rows(path: Path, seed: int) -> list[Row]:
    """The rows of a file; no two have the same id.

    Args:
        seed: from which those of the rows follow.

    Raises:
        UsageError: if it cannot be read, has another ending, or has no rows.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"{path}: must end in {', '.join(FORMATS)}")
    read = {".jsonl": _json_lines, ".csv": _csv_lines, ".parquet": _parquet_rows}[suffix]
    rows, seen = [], dict[str, str]()
    for place, found in read(path):
        row = found if isinstance(found, Row) else _row(found, place, seed)
        rows.append(_with_own_id(row, seen, isinstance(found, Mapping) and _given(found, "id"), seed))
    if not rows:
        raise UsageError(f"{path}: has no rows; give one for each image")
    return rows


def row_seed(seed: int, identity: str) -> int:
    """The seed of a row without one: a hash, so that it depends on neither the order of rows nor who generates it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{identity}".encode()).digest()[:8], "big") % 2**31


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | Row]]:
    for number, line in enumerate(read_text(path, most=MOST_BYTES).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            found = parse_json(line)
        except ValueError as error:
            yield place, _bad(place, f"is no JSON ({error})")
            continue
        yield place, found if isinstance(found, dict) else _bad(place, 'is no object; give {"prompt": ...}')


def _csv_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | Row]]:
    reader = csv.DictReader(io.StringIO(read_text(path, most=MOST_BYTES), newline=""), strict=True)
    try:
        _check_columns(path, reader.fieldnames or ())
        for found in reader:
            place = f"line {reader.line_num}"
            if None in found:
                yield (
                    place,
                    _bad(place, f"has more than {len(reader.fieldnames or ())} columns; quote texts with commas"),
                )
            else:
                yield place, {key: value for key, value in found.items() if value not in (None, "")}
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num} is no CSV ({error}); write the file again") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    parquet = require("pyarrow.parquet", "batch", "a Parquet file")
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches():
                for found in batch.to_pylist():
                    number += 1
                    yield f"row {number}", {key: value for key, value in found.items() if value is not None}
    except StepvarError:
        raise
    except Exception as error:  # of its C++ reader, of many kinds
        raise UsageError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())[:200]})") from None


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if "prompt" not in names:
        raise UsageError(
            f"{path}: has no column 'prompt' ({shown(', '.join(names))}); its first line names the columns"
        )
    for name in COLUMNS:
        if list(names).count(name) > 1:
            raise UsageError(f"{path}: has several columns {name!r}; give one")
    for name in names:
        if name not in COLUMNS and name.strip() in COLUMNS:  # it would be no more than an entry of the manifest
            raise UsageError(f"{path}: column {name!r}: has spaces around its name; write {name.strip()!r}")


def _row(found: Mapping[str, Any], place: str, seed: int) -> Row:
    try:
        plain = _plain(found)
        identity = _id(found, plain)
    except UsageError as error:
        return _bad(place, str(error))
    row = Row(identity, place, other={key: value for key, value in plain.items() if key not in COLUMNS})
    try:
        return replace(
            row,
            prompt=_text(found, "prompt") or "",
            seed=row_seed(seed, identity) if found.get("seed") is None else _whole(found["seed"]),
            negative_prompt=_text(found, "negative_prompt"),
            aspect_ratio=_ratio(found.get("aspect_ratio")),
            guidance_scale=_number("guidance_scale", found.get("guidance_scale")),
        )
    except UsageError as error:
        prompt = found.get("prompt")
        return replace(row, prompt=prompt if isinstance(prompt, str) else "", error=str(error))


def _with_own_id(row: Row, seen: dict[str, str], given: bool, seed: int) -> Row:
    """The row with an id that no earlier one has: repetitions are numbered, unless the file names them alike."""
    identity, count = row.id, 1
    while identity.casefold() in seen:  # some file systems ignore case
        count += 1
        identity = f"{row.id}-{count}"
    if count > 1 and given and row.error is None:
        row = replace(row, error=f"id {row.id!r}: is that of {seen[row.id.casefold()]}, too; give each row its own")
    elif count > 1 and row.seed == row_seed(seed, row.id):
        row = replace(row, seed=row_seed(seed, identity))
    seen[identity.casefold()] = row.place
    return replace(row, id=identity)


def _bad(place: str, error: str) -> Row:
    """A row without an id of its own: its place, which no id is, for the space in it."""
    return Row(place, place, error=error)


def _given(found: Mapping[str, Any], name: str) -> bool:
    return found.get(name) not in (None, "")


def _id(found: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    if not _given(found, "id"):
        words = json.dumps(plain, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(words.encode()).hexdigest()[:16]
    given = _unfloated(found["id"])
    text = str(given) if isinstance(given, (str, int)) and not isinstance(given, bool) else ""
    if not _ID.fullmatch(text):
        raise UsageError(f"id={shown(given)}: names a file; use letters, digits, dots, - and _, at most 100")
    return text


def _text(found: Mapping[str, Any], name: str) -> str | None:
    value = found.get(name)
    if name == "prompt" and (value is None or (isinstance(value, str) and not value.strip())):
        raise UsageError("prompt: is missing; say what to generate")
    if value is not None and not isinstance(value, str):
        if name == "prompt" and isinstance(value, int) and not isinstance(value, bool):
            return str(value)  # the number of a class
        raise UsageError(f"{name}={shown(value)}: must be a text")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, str):
        if not re.fullmatch(r"\s*[0-9]{1,19}\s*", value):
            raise UsageError(f"seed={shown(value)}: must be a whole number from 0")
        value = int(value)
    return whole_number("seed", _unfloated(value), SEED)


def _unfloated(value: Any) -> Any:
    """A whole number that Parquet has as a float, since others of its column are missing."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise UsageError(f"{name}={shown(value)}: must be a number")
    return number


def _ratio(value: Any) -> str | None:
    if value is None:
        return None
    parse_aspect_ratio(value)
    return ":".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON has it, and files in UTF-8; others as texts.

    Raises:
        UsageError: for what cannot be written, or is nested so deeply that a worker could not read it.
    """
    if depth > DEEPEST:
        raise UsageError(f"is nested in more than {DEEPEST} levels; make it flat")
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, depth + 1) for one in value]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{shown(value)}: has half of a character, a lone surrogate; write whole ones") from None
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
