"""The file of a study or of one shard of it: whole after every batch, so that an interrupted run is usable.

Per batch and candidate it keeps one number per picture and measure; pictures are not kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepvar.errors import UsageError
from stepvar.evaluation.distribution import Moments
from stepvar.utils.files import write_text

FORMAT = 1


@dataclass
class Study:
    """What was measured so far.

    Attributes:
        info: settings and machine; two files can be joined if their ``settings`` agree.
        entries: candidates by key, as :meth:`benchmarks.study.candidates.Entry.to_dict` gives them.
        batches: by number, the pictures drawn (prompt and seed) and per candidate its figures.
        moments: per candidate the sums over its features, for the distances between sets.
    """

    info: dict[str, Any]
    entries: dict[str, dict[str, Any]]
    batches: dict[int, dict[str, Any]] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)

    def add(self, number: int, items: Sequence[tuple[int, int]], rows: Mapping[str, dict[str, Any]]) -> None:
        """A finished batch: (prompt, seed) of each picture, and the figures of each candidate."""
        self.batches[number] = {"items": [list(item) for item in items], "rows": dict(rows)}

    def add_moments(self, key: str, moments: Moments) -> None:
        self.moments[key] = self.moments[key] + moments if key in self.moments else moments

    def write(self, path: Path) -> None:
        stored = {
            "format": FORMAT,
            "info": self.info,
            "entries": self.entries,
            "moments": {key: moments.encode() for key, moments in self.moments.items()},
            "batches": {str(number): batch for number, batch in sorted(self.batches.items())},
        }
        write_text(path, json.dumps(stored, separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, path: Path) -> Study:
        """What :meth:`write` wrote.

        Raises:
            UsageError: if it is another file.
        """
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["format"] != FORMAT:
                raise UsageError(f"{path}: is of format {stored['format']}, not {FORMAT}; run the study again")
            return cls(
                stored["info"],
                stored["entries"],
                {int(number): batch for number, batch in stored["batches"].items()},
                {key: Moments.decode(moments) for key, moments in stored["moments"].items()},
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: is no result of the study ({error!r}); remove it or name another") from None


def joined(parts: Iterable[Study]) -> Study:
    """Shards of one study as one.

    Raises:
        UsageError: if their settings differ, or a batch is in two of them.
    """
    whole: Study | None = None
    for part in parts:
        if whole is None:
            whole = Study(part.info, part.entries)
        if part.info["settings"] != whole.info["settings"] or part.entries != whole.entries:
            raise UsageError("study: the files come from runs with different settings; join those of one run")
        for number, batch in part.batches.items():
            if number in whole.batches:
                raise UsageError(f"study: batch {number} is in two files; give each shard once")
            whole.batches[number] = batch
        for key, moments in part.moments.items():
            whole.add_moments(key, moments)
    if whole is None:
        raise UsageError("study: no result files; run python -m benchmarks.study first")
    return whole
