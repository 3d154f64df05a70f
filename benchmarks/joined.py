"""The folders of one run as one: its parts, and the shards that several machines made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stepvar.errors import UsageError
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.summary import Row, Rows, rows_by_method


@dataclass
class Joined:
    """What was measured in all folders.

    Attributes:
        settings: of the run; those of all folders are the same.
        info: machine and command of the first folder.
        rows: of the manifests, by candidate, in the order of prompts and seeds, whoever made them.
        timing: one row per timed batch; rounds are told apart by their folder.
    """

    settings: dict[str, Any]
    info: dict[str, Any]
    rows: dict[str, Rows] = field(default_factory=dict)
    timing: list[Row] = field(default_factory=list)


def join(folders: Sequence[RunFolder], run: str) -> Joined:
    """All folders as one.

    Args:
        run: the benchmark that made them, under whose name their settings lie.

    Raises:
        UsageError: if there are none, or they come from runs with other settings.
    """
    if not folders:
        raise UsageError(f"{run}: no results; run python -m benchmarks.{run} first")
    found = Joined(folders[0].settings.get(run, {}), folders[0].info)
    for number, folder in enumerate(folders):
        if not found.settings or folder.settings.get(run) != found.settings:
            raise UsageError(f"{folder.path}: was made with other settings; join the parts of one {run}")
        for label, rows in rows_by_method(folder).items():
            found.rows[label] = {**found.rows.get(label, {}), **rows}
        found.timing += [{**row, "round": (number, row["round"])} for row in folder.timing]
    found.rows = {label: dict(sorted(rows.items())) for label, rows in found.rows.items()}
    return found
