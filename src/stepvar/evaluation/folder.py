"""The folder of an evaluation: a manifest with one line per image, written as it goes, so that it can go on."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from stepvar.errors import OutputError, StepvarError, UsageError
from stepvar.evaluation.differences import describe_differences
from stepvar.evaluation.frames import frame_files
from stepvar.utils.files import TEMPORARY, write_text
from stepvar.utils.reading import check_fields, fits, parse_json, read_json, read_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RUN, MANIFEST, TIMING, LOCK = "run.json", "manifest.jsonl", "timing.jsonl", ".lock"
MOST_ROWS = 8_000_000_000
"""Bytes of a manifest."""

_SETTINGS = {
    "model": str,
    "device": str,
    "dtype": str,
    "prompts": dict,
    "seeds": list,
    "settings": dict,
    "methods": list,
    "notes": dict,
    "info": dict,
    "kind": str,
    "images": dict,
    "scales": list,
}
_PROMPTS = {"source": str, "count": int, "texts": str}
_METHOD = {"label": str, "settings": str, "resampled": int, "tokens": int}
_FIDELITY = ("psnr", "ssim", "gmsd", "haarpsi", "lpips", "cvvdp", "high_frequency", "spectrum", "gram", "flicker")
_MEASURES = dict.fromkeys((*_FIDELITY, "motion"), float | None)
_ROW: dict[str, Any] = {
    "method": str,
    "prompt": str,
    "seed": int,
    "text": str,
    "category": str,
    "image": str,
    "features": str,
}
_ROW |= {"seed": int, "right": dict, "scores": dict, **_MEASURES}
_ROW |= dict.fromkeys(("bits", "divergence"), tuple[float, ...])
_TIMING: dict[str, Any] = {"method": str, "round": int, "loop": float, "decode": float, "total": float, "flops": float}
_TIMING |= {"samples": int, "kept": int, "tokens": int, "memory": float | None}

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
        lock: keeps other processes from writing there.
    """

    path: Path
    settings: dict[str, Any]
    info: dict[str, Any] = field(default_factory=dict)
    rows: dict[Key, dict[str, Any]] = field(default_factory=dict)
    timing: list[dict[str, Any]] = field(default_factory=list)
    lock: FolderLock | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any], info: Mapping[str, Any] | None = None) -> RunFolder:
        """A new folder, or one that a run with the same settings has begun.

        Raises:
            UsageError: if the run in it has other settings; the message names the first that differ.
            OutputError: if it cannot be written, is no folder of an evaluation, or another process writes there.
        """
        wanted = json.loads(json.dumps(settings))
        _make(path)
        lock = FolderLock.of(path)
        for stale in path.rglob(f"{TEMPORARY}*"):  # of a process that was killed: nobody else writes here now
            shutil.rmtree(stale, ignore_errors=True)
        if (path / RUN).exists():
            found = cls.read(path)
            if different := describe_differences(found.settings, wanted):
                raise UsageError(
                    f"{path}: holds a run with other settings ({different}); "
                    "continue it with the same ones, or name another folder"
                )
            found.lock = lock
        else:
            write_text(path / RUN, json.dumps({**wanted, "info": info or {}}, indent=2) + "\n")
            found = cls(path, wanted, dict(info or {}), lock=lock)
        (path / "images").mkdir(exist_ok=True)
        return found

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """What a run has written.

        Raises:
            UsageError: if the folder holds no run, or its files are damaged.
        """
        if not os.path.exists(path / RUN):
            raise UsageError(f"{path}: holds no evaluation; give the folder that 'stepvar eval --out' wrote")
        remedy = "start again in another folder"
        settings = read_json(path / RUN, remedy=remedy)
        check_fields(settings, _SETTINGS, str(path / RUN), UsageError, remedy)
        check_fields(settings.get("prompts", {}), _PROMPTS, f"{path / RUN}: prompts", UsageError, remedy)
        for method in settings.get("methods", []):
            if not fits(method, dict) or "label" not in method:
                raise UsageError(f"{path / RUN}: methods: an entry without a label; {remedy}")
            check_fields(method, _METHOD, f"{path / RUN}: methods", UsageError, remedy)
        folder = cls(path, settings, settings.pop("info", {}))
        for row in _lines(path / MANIFEST, _ROW, ("method", "prompt", "seed")):
            folder.rows[(row["method"], row["prompt"], row["seed"])] = row
        folder.timing = list(_lines(path / TIMING, _TIMING, ("method", "round")))
        return folder

    def image(self, row: Mapping[str, Any]) -> Path | None:
        """The image of a row, or the middle frame of its video, if it was written and is still there."""
        files = frame_files(self.path / row["image"]) if "image" in row else []
        return files[len(files) // 2] if files else None

    @property
    def described(self) -> dict[str, Any]:
        """The settings; what a run that was not made by ``stepvar eval`` does not say follows from its rows."""
        names = list(dict.fromkeys(prompt for _, prompt, _ in self.rows))
        labels = dict.fromkeys(label for label, _, _ in self.rows)
        return {
            "model": "a model",
            "device": "a device",
            "prompts": {"source": "its own", "count": len(names)},
            "seeds": sorted({seed for _, _, seed in self.rows}),
            "notes": {},
            **self.settings,
            "methods": [
                {"settings": "", "resampled": 0, **method}
                for method in self.settings.get("methods") or [{"label": label} for label in labels]
            ],
        }

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
        self._append(MANIFEST, rows)

    def add_timing(self, rows: Sequence[dict[str, Any]]) -> None:
        self.timing += rows
        self._append(TIMING, rows)

    def _append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        lines = [json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n" for row in rows]
        try:
            _end_line(self.path / name)
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            raise OutputError(f"{self.path / name}: {error.strerror or error}; free space, then go on") from error


def _make(path: Path) -> None:
    """The folder, if it is not there; one that holds other things is refused.

    A process that was stopped in its first instants, or by a full disk, has left it empty.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = [one.name for one in path.iterdir() if not one.name.startswith(TEMPORARY)]
    except FileExistsError:
        held = [path.name]
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: {getattr(error, 'strerror', None) or error}; choose another place") from error
    if RUN not in held and not set(held) <= {LOCK}:
        raise OutputError(f"{path}: exists and holds no evaluation; name another folder")


class FolderLock:
    """Keeps other processes out of a folder, for as long as this object lives; the system lets go with the process."""

    _held: ClassVar[WeakValueDictionary[tuple[int, str], FolderLock]] = WeakValueDictionary()

    def __init__(self, path: Path) -> None:
        try:
            self._file = (path / LOCK).open("a")
            if fcntl is not None:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN) or error.filename is not None:
                raise OutputError(f"{path}: {error.strerror}; choose another place") from error
            raise OutputError(f"{path}: another process is writing it; wait until it ends, or name another") from None
        except OSError as error:
            if error.errno != errno.ENOLCK:  # file systems that know no locks
                raise OutputError(f"{path}: {error.strerror}; choose another place") from error

    @classmethod
    def of(cls, path: Path) -> FolderLock:
        """The lock of a folder; within a process there is one. A forked child inherits the object, not the lock."""
        key = (os.getpid(), os.path.realpath(path))
        lock = cls._held.get(key)
        if lock is None:
            lock = cls._held[key] = cls(path)
        return lock

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


@contextmanager
def reading_run(path: Path) -> Iterator[None]:
    """Within it, whatever figures that do not fit together make go wrong is an error in the files of a run."""
    try:
        yield
    except StepvarError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, StopIteration, RuntimeError) as error:
        raise UsageError(f"{path}: its files do not fit together ({error!r}); run 'stepvar eval' again") from error


def _lines(path: Path, kinds: Mapping[str, Any], needed: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file; a last line that was cut off by an interruption is left out."""
    if not path.exists():
        return
    lines = read_text(path, most=MOST_ROWS).split("\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        where = f"{path}: line {number + 1}"
        remedy = "remove it, and its image is generated again"
        try:
            row = parse_json(line)
        except ValueError:
            if number == len(lines) - 1:
                return
            raise UsageError(f"{where} is damaged; {remedy}") from None
        if not isinstance(row, dict) or not all(name in row for name in needed):
            raise UsageError(f"{where} is damaged: it needs {', '.join(needed)}; {remedy}")
        check_fields(row, kinds, where, UsageError, remedy)
        for name in ("right", "scores"):
            if not all(fits(value, float | bool | None) for value in row.get(name, {}).values()):
                raise UsageError(f"{where}: {name} holds what is no number; {remedy}")
        if Path(row.get("image", "")).is_absolute() or ".." in Path(row.get("image", "")).parts:
            raise UsageError(f"{where}: image={row['image']!r} is not in the folder; {remedy}")
        yield row


def _end_line(path: Path) -> None:
    """Ends a last line that lacks only its newline and removes one that was cut off, as :func:`_lines` reads them."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.seek(0)
            whole = file.read()
            start = whole.rfind(b"\n") + 1
            try:
                parse_json(whole[start:].decode("utf-8" if start else "utf-8-sig"))
            except ValueError:
                file.truncate(start)
            else:
                file.write(b"\n")


def check_labels(labels: Sequence[str]) -> None:
    """Raises a UsageError for two labels whose folders are the same, also where file systems ignore case."""
    folders: dict[str, str] = {}
    for label in labels:
        other = folders.setdefault(slug(label).casefold(), label)
        if other != label:
            raise UsageError(
                f"methods {other!r} and {label!r}: both would be written to the folder {slug(label)}; "
                "give them labels that differ in more than such signs"
            )


def slug(label: str) -> str:
    """A label as the name of a folder."""
    return re.sub(r"[^a-zA-Z0-9.,=+_-]+", "_", label).strip("_") or "_"
