"""The folder of a batch job: images or Parquet files, and a manifest with a line for each row that has ended.

A result is on disk, whole, before its line is: a job that was killed at any moment has lines for nothing but what is
there, and generates the rest when it is started again.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepvar.errors import OutputError, UsageError
from stepvar.evaluation.differences import describe_differences
from stepvar.evaluation.folder import LOCK, FolderLock
from stepvar.serving.batch.rows import Row
from stepvar.utils.files import TEMPORARY, atomic_path, write_text
from stepvar.utils.reading import parse_json, read_json, read_text
from stepvar.utils.require import require

JOB, MANIFEST, IMAGES = "batch.json", "manifest.jsonl", "images"
PARQUET = "parquet"
PART_ROWS = 64
"""Rows of a Parquet file; those of one that was not finished are generated again."""
_PART = re.compile(r"part-(\d+)\.parquet")
MOST_BYTES = 8_000_000_000

DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Result:
    """What became of a row.

    Attributes:
        row: the row.
        data: the bytes of its file; empty if it failed.
        suffix: the ending of the file's name.
        facts: what the manifest says of it: seconds, size, warnings; or the error.
    """

    row: Row
    data: bytes = b""
    suffix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def line(self, file: str | None) -> dict[str, Any]:
        """Its line of the manifest."""
        row = self.row
        line = {"id": row.id, "status": FAILED if file is None else DONE, "prompt": row.prompt, "seed": row.seed}
        names = ("negative_prompt", "aspect_ratio", "guidance_scale")
        line |= {name: getattr(row, name) for name in names if getattr(row, name) is not None}
        line |= {"file": file} if file is not None else {}
        return line | self.facts | {"place": row.place} | ({"other": row.other} if row.other else {})


@dataclass
class BatchFolder:
    """What a job has written so far.

    Attributes:
        path: the folder.
        format: ``"parquet"``, or the ending of image or video files.
        done: ids of the rows that are done.
        lock: keeps other jobs from writing there.
    """

    path: Path
    format: str
    done: set[str]
    lock: FolderLock = field(repr=False)
    _waiting: list[Result] = field(default_factory=list)
    _parts: int = 0

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any], kind: str) -> BatchFolder:
        """A new folder, or one that a job with the same settings has begun: rows that failed are tried again.

        Args:
            settings: all that images depend on beside their rows.
            kind: see :attr:`format`.

        Raises:
            UsageError: if the job in it has other settings; the message names the first that differ.
            OutputError: if it cannot be written, holds other things, or another process writes there.
        """
        wanted = json.loads(json.dumps(settings))
        _make(path)
        lock = FolderLock.of(path)
        for stale in path.rglob(f"{TEMPORARY}*"):  # of a process that was killed: nobody else writes here now
            shutil.rmtree(stale, ignore_errors=True)
        lines = _read_manifest(path / MANIFEST)
        kept = [line for line in lines.values() if line["status"] == DONE and _is_there(path, line["file"])]
        kept = _of_whole_parts(path, kept)
        there = read_json(path / JOB, remedy="name another folder") if (path / JOB).exists() else {}
        different = describe_differences(there, wanted)
        if different and kept:
            raise UsageError(
                f"{path}: holds a job with other settings ({different}); continue it with the same ones, or name "
                "another folder"
            )
        if different:
            write_text(path / JOB, json.dumps(wanted, indent=2) + "\n")
        _write_lines(path / MANIFEST, kept)
        folder = cls(path, kind, {line["id"] for line in kept}, lock)
        folder._clear_parts({line["file"] for line in kept})
        return folder

    def _clear_parts(self, known: set[str]) -> None:
        """Removes Parquet files whose rows have no lines: they will be generated again."""
        for part in self.path.glob(f"part-*.{PARQUET}"):
            if part.name not in known:
                part.unlink()
        self._parts = max((int(found[1]) for found in map(_PART.fullmatch, known) if found), default=0)

    def add(self, result: Result) -> None:
        """One more row, on disk when this returns; of Parquet files when :data:`PART_ROWS` are there."""
        if result.data and self.format == PARQUET:
            self._waiting.append(result)
            if len(self._waiting) == PART_ROWS:
                self.flush()
            return
        file = None
        if result.data:
            (self.path / IMAGES).mkdir(exist_ok=True)
            file = f"{IMAGES}/{result.row.id}{result.suffix}"
            with atomic_path(self.path / file) as temporary:
                temporary.write_bytes(result.data)
        self._append([result.line(file)])

    def flush(self) -> None:
        """Writes the rows that wait for a Parquet file."""
        if not self._waiting:
            return
        self._parts += 1
        file, waiting = f"part-{self._parts:05d}.{PARQUET}", self._waiting
        write_parquet(self.path / file, waiting)
        self._append([result.line(file) for result in waiting])
        self._waiting = []

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        try:
            with (self.path / MANIFEST).open("a", encoding="utf-8") as file:
                file.writelines(_json_line(line) for line in lines)
        except OSError as error:
            raise OutputError(f"{self.path / MANIFEST}: {error.strerror or error}; free space, then go on") from error


def write_parquet(path: Path, results: Sequence[Result]) -> None:
    """A Parquet file with the rows' columns and the bytes of their images or videos."""
    arrow, parquet = (require(name, "batch", "a Parquet file") for name in ("pyarrow", "pyarrow.parquet"))
    columns: dict[str, Any] = {
        "id": [result.row.id for result in results],
        "prompt": [result.row.prompt for result in results],
        "seed": [result.row.seed for result in results],
        "format": [result.suffix.removeprefix(".") for result in results],
        "bytes": arrow.array([result.data for result in results], arrow.large_binary()),
        "other": [json.dumps(result.row.other, ensure_ascii=False) for result in results],
    }
    with atomic_path(path) as temporary:
        parquet.write_table(arrow.table(columns), temporary, compression="none")  # images are compressed already


def _make(path: Path) -> None:
    """The folder, if it is not there; one that holds other things is refused."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = {one.name for one in path.iterdir() if not one.name.startswith(TEMPORARY)}
    except FileExistsError:
        held = {path.name}
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: {getattr(error, 'strerror', None) or error}; choose another place") from error
    if JOB not in held and not held <= {LOCK}:
        raise OutputError(f"{path}: exists and holds no batch job; name another folder")


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """The lines by the ids of their rows; a last one that was cut off is left out."""
    found: dict[str, dict[str, Any]] = {}
    lines = read_text(path, most=MOST_BYTES).split("\n") if path.exists() else []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = parse_json(text)
            whole = isinstance(line["id"], str) and (line["status"] == FAILED or isinstance(line["file"], str))
        except (ValueError, LookupError, TypeError):
            whole = False
        if whole:
            found[line["id"]] = line
        elif number < len(lines):
            raise UsageError(f"{path}: line {number} is damaged; remove it, and its row is generated again")
    return found


def _is_there(path: Path, file: str) -> bool:
    """Whether the file of a line is still in the folder."""
    place = Path(file)
    return not place.is_absolute() and ".." not in place.parts and (path / place).is_file()


def _of_whole_parts(path: Path, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the lines of a Parquet file if some of its rows have none: those would come into another file, too."""
    counts = Counter(line["file"] for line in lines if line["file"].endswith(f".{PARQUET}"))
    if not counts:
        return list(lines)
    parquet = require("pyarrow.parquet", "batch", "a Parquet file")
    cut = set()
    for name, count in counts.items():
        try:
            whole = parquet.read_metadata(path / name).num_rows == count
        except Exception:  # of its C++ reader, of many kinds: the file is damaged
            whole = False
        cut |= set() if whole else {name}
    return [line for line in lines if line["file"] not in cut]


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(map(_json_line, lines)))


def _json_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
