"""The folder of an evaluation: a manifest with one line per image, written as it goes, so that it can go on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepvar.errors import OutputError, UsageError
from stepvar.utils.files import write_text

Key = tuple[str, str, int]
"""Label of the method, name of the prompt, seed."""


@dataclass
class RunFolder:
    """What an evaluation has written so far.

    Attributes:
        path: the folder: ``run.json`` (the settings), ``manifest.jsonl``, ``timing.jsonl``, ``results.json``,
            ``images/``, and ``kept/`` with maps of kept tokens.
        settings: of the run; it goes on with the same ones only.
        info: machine, versions and command of its first start.
        rows: of the manifest, by method, prompt and seed.
        timing: one row per timed run.
    """

    path: Path
    settings: dict[str, Any]
    info: dict[str, Any] = field(default_factory=dict)
    rows: dict[Key, dict[str, Any]] = field(default_factory=dict)
    timing: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any], info: Mapping[str, Any] | None = None) -> RunFolder:
        """A new folder, or one that a run with the same settings has begun.

        Raises:
            UsageError: if the run in it has other settings; the message names the first that differs.
            OutputError: if it cannot be written, or is no folder of an evaluation.
        """
        wanted = json.loads(json.dumps(settings))
        if (path / "run.json").exists():
            found = cls.read(path)
            for name in wanted.keys() | found.settings.keys():
                if wanted.get(name) != found.settings.get(name):
                    raise UsageError(
                        f"{path}: holds a run with {name}={found.settings.get(name)!r}, not {wanted.get(name)!r}; "
                        "continue it with the same settings, or name another folder"
                    )
            return found
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path}: exists and holds no evaluation; name another folder")
        try:
            (path / "images").mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror or error}; choose another place") from error
        write_text(path / "run.json", json.dumps({**wanted, "info": info or {}}, indent=2) + "\n")
        return cls(path, wanted, dict(info or {}))

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """What a run has written.

        Raises:
            UsageError: if the folder holds no run, or its files are damaged.
        """
        try:
            settings = json.loads((path / "run.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{path}: holds no evaluation; give the folder that 'stepvar eval --out' wrote") from None
        except (OSError, json.JSONDecodeError) as error:
            raise UsageError(f"{path / 'run.json'}: cannot be read ({error}); start again in another folder") from None
        folder = cls(path, settings, settings.pop("info", {}))
        for row in _lines(path / "manifest.jsonl"):
            folder.rows[(row["method"], row["prompt"], row["seed"])] = row
        folder.timing = list(_lines(path / "timing.jsonl"))
        return folder

    def place(self, kind: str, label: str) -> Path:
        """The folder of a method below ``images``, ``kept`` or another."""
        return self.path / kind / slug(label)

    @property
    def next_round(self) -> int:
        """A number that no timed round has."""
        return 1 + max((row["round"] for row in self.timing), default=-1)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """More images, on disk before the next are begun."""
        for row in rows:
            self.rows[(row["method"], row["prompt"], row["seed"])] = row
        self._append("manifest.jsonl", rows)

    def add_timing(self, rows: Sequence[dict[str, Any]]) -> None:
        self.timing += rows
        self._append("timing.jsonl", rows)

    def _append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        lines = [json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n" for row in rows]
        try:
            _end_line(self.path / name)
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            raise OutputError(f"{self.path / name}: {error.strerror or error}; free space, then go on") from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file; a last line that was cut off by an interruption is left out."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines) - 1:
                return
            raise UsageError(
                f"{path}: line {number + 1} is damaged; remove it, and its image is generated again"
            ) from None


def _end_line(path: Path) -> None:
    """Removes a last line that was cut off, so that the next one starts on its own."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.seek(0)
            whole = file.read()
            file.truncate(whole.rfind(b"\n") + 1)


def slug(label: str) -> str:
    """A label as the name of a folder."""
    return re.sub(r"[^a-zA-Z0-9.,=+_-]+", "_", label).strip("_") or "_"
