"""The settings that take part, in a file: ``python -m benchmarks.leaderboard.chosen --equal time --out chosen.json``.

Shards of a leaderboard need the same ones. By operations they are counted, which takes a minute and no device; by time
they are measured with CUDA graphs, a batch of dense and one of the method in turn. ``--of`` measures the times of what
a file holds. The leaderboard takes such files with ``--entrants``. The file is written after each method, and the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.leaderboard.entrants import BUDGETS, Entrant, distinct, floors, labelled, rows, taking_part
from benchmarks.study.__main__ import parse_shard
from benchmarks.study.match import TOLERANCE, SpeedupOf, counted_speedup
from stepvar.core.plan import Settings
from stepvar.cost.dry_run import DryRun
from stepvar.engine import Engine
from stepvar.errors import StepvarError, UsageError
from stepvar.evaluation.machine import provenance
from stepvar.methods import Dense, Method
from stepvar.pipeline import Pipeline
from stepvar.text import example_prompt
from stepvar.utils.files import write_text
from stepvar.utils.progress import bar
from stepvar.utils.reading import read_json

ROUNDS, WARM_UP = 3, 2
"""Timed batches, and those in front of them: eager, then captured."""

SAME_TIME = 0.012
"""Measured times that differ by less than this share are equal."""


class Clock:
    """How many times as fast as dense a method's loop over scales is, measured once for each method."""

    def __init__(self, pipe: Pipeline, prompts: Sequence[str]) -> None:
        self.pipe, self.prompts = pipe, list(prompts)
        self.found: dict[str, dict[str, float]] = {}
        self.dense, self.own = Engine("auto"), Engine("auto")
        for _ in range(WARM_UP):
            self._run(self.dense, Dense())

    def __call__(self, method: Method) -> float:
        return self.times(method)["median"]

    def times(self, method: Method) -> dict[str, float]:
        """The least, the median and the most of a few rounds.

        Raises:
            UsageError: for a method that decides by the image, whose time is not one number.
        """
        if not method.static:
            raise UsageError(f"method {str(method)!r}: decides by the image; it has no time of its own")
        key = repr(method)
        if key not in self.found:
            self.own.clear()
            for _ in range(WARM_UP):
                self._run(self.own, method)
            ratios = [self._run(self.dense, Dense()) / self._run(self.own, method) for _ in range(ROUNDS)]
            self.found[key] = {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
        return self.found[key]

    def _run(self, engine: Engine, method: Method) -> float:
        self.pipe.engine = engine
        return self.pipe(self.prompts, method=method, seed=1, output_type="latent", progress=False).report.scale_seconds


def with_costs(pipe: Pipeline, found: Sequence[Entrant], settings: Settings, clock: Clock | None) -> list[Entrant]:
    """The same with their operations, cache as a share of that of dense and, with a clock, times."""
    known, dense = [], _dry_run(pipe, Dense(), settings)
    for entrant in found:
        method = entrant.method
        own = _dry_run(pipe, method, settings)
        operations = sum(dense.flops.values()) / sum(own.flops.values())
        more: dict[str, Any] = {"operations": operations, "cache_share": own.cache / dense.cache}
        if clock is not None and method.static and not entrant.resampled:
            more["measured"] = clock.times(method)
        known.append(replace(entrant, more=more))
    return known


def _dry_run(pipe: Pipeline, method: Method, settings: Settings) -> DryRun:
    return pipe.dry_run(method.plan(settings, pipe.model.info, 1), method)


def to_rows(found: Sequence[Entrant]) -> list[dict[str, Any]]:
    return [entrant.to_dict() | {"setting": entrant.setting, "resampled": entrant.resampled} for entrant in found]


def from_rows(given: Sequence[Mapping[str, Any]], settings: Settings) -> list[Entrant]:
    """What :func:`to_rows` wrote.

    Raises:
        UsageError: for a method that is not what it was when the file was written.
    """
    methods = labelled()
    found = []
    for row in given:
        method = methods.get(row["label"].partition("@")[0], Dense())
        if row["setting"] is not None:
            stage, left = row["setting"]
            method = method.speedup_schedule(settings)[stage](1 - left)
        if repr(method) != row["settings"]:
            raise UsageError(f"entrant {row['label']}: is {method!r} now, and was {row['settings']}; choose them again")
        more = {name: row[name] for name in ("operations", "cache_share", "measured") if name in row}
        setting = None if row["setting"] is None else (row["setting"][0], row["setting"][1])
        found.append(Entrant(row["label"], method, row["budget"], row["speedup"], row["resampled"], setting, more))
    return distinct(found)


@dataclass(frozen=True)
class Choice:
    """What a leaderboard compares.

    Attributes:
        equal: "operations" or "time".
        budgets: how many times fewer, or as fast.
        entrants: who takes part.
        batch: images of a timed batch; None: no times were measured with the choice.
    """

    equal: str
    budgets: Sequence[float]
    entrants: Sequence[Entrant]
    batch: int | None = None


ABOUT = ("equal", "budgets", "model", "schedule", "batch")
"""What files of one choice have in common; times of several machines may be joined."""


def read_chosen(paths: Sequence[Path], pipe: Pipeline) -> Choice:
    """The choice that some files hold together.

    Raises:
        UsageError: for files that do not belong together or to the model, or cannot be read as such.
    """
    first: dict[str, Any] = {}
    found: list[Entrant] = []
    for path in paths:
        content = read_json(path)
        try:
            about, rows = {name: content[name] for name in ABOUT}, content["entrants"]
            found += from_rows(rows, pipe.settings())
        except (KeyError, TypeError, AttributeError, ValueError, IndexError):
            raise UsageError(f"{path}: is no choice of entrants; make one with {__spec__.name}") from None
        first = first or about
        differing = [name for name in ABOUT if about[name] != first[name]]
        if differing:
            name = differing[0]
            raise UsageError(f"{path}: {name} {about[name]} is not {first[name]}, that of {paths[0]}; join one choice")
    own = about_model(pipe)
    if {name: first[name] for name in own} != own:
        raise UsageError(f"{paths[0]}: was made for {first['model']}, {first['schedule']}; the model is {pipe.name}")
    return Choice(first["equal"], first["budgets"], distinct(found), first["batch"])


def about_model(pipe: Pipeline) -> dict[str, Any]:
    schedule = pipe.settings().schedule
    return {"model": pipe.family.name, "schedule": schedule.name}


def choose(pipe: Pipeline, arguments: argparse.Namespace) -> None:
    """Writes the file, method by method.

    Raises:
        UsageError: if there is a file of another choice.
    """
    settings, shard = pipe.settings(), parse_shard(arguments.shard)
    by_time = arguments.equal == "time"
    clock = None
    if by_time or arguments.of:
        clock = Clock(pipe, [arguments.prompt or example_prompt(pipe.text_encoder)] * arguments.batch)
    speedup_of: SpeedupOf = clock if by_time and clock is not None else counted_speedup(pipe, settings)
    about: dict[str, Any] = {"equal": arguments.equal, "budgets": list(arguments.budgets)}
    steps: dict[str, Callable[[], Iterable[Entrant]]] = {}
    if arguments.of:
        known = read_chosen(arguments.of, pipe)
        about = {"equal": known.equal, "budgets": list(known.budgets)}
        steps = {own.label: partial(iter, [own]) for own in known.entrants[shard[0] :: shard[1]]}
    else:
        tolerance = SAME_TIME if by_time else TOLERANCE
        if not arguments.methods and shard[0] == 0:
            steps = {own.label: partial(iter, [own]) for own in floors()}
        wanted = taking_part(arguments.methods, arguments.without, shard)
        settled = (speedup_of, settings, arguments.budgets, tolerance)
        steps |= {label: partial(rows, label, method, *settled) for label, method in wanted.items()}
    about |= about_model(pipe) | {"batch": None if clock is None else arguments.batch}
    found = _begun(arguments.out, about)
    with bar("methods", len(steps), True) as advance:
        for label, step in steps.items():
            if label not in found:
                found[label] = to_rows(with_costs(pipe, list(step()), settings, clock))
                info = provenance(pipe.device, command_line(__spec__)) | {"dtype": arguments.dtype}
                content = {"info": info, **about, "entrants": [row for own in found.values() for row in own]}
                write_text(arguments.out, json.dumps(content | {"searched": list(found)}, indent=1) + "\n")
            advance()


def _begun(path: Path, about: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By label, the rows that a file has already."""
    if not path.exists():
        return {}
    content = read_json(path)
    try:
        differing = [name for name in about if content[name] != about[name]]
        found: dict[str, list[dict[str, Any]]] = {label: [] for label in content["searched"]}
        for row in content["entrants"]:
            found[row["label"] if row["label"] in found else row["label"].partition("@")[0]].append(row)
    except (KeyError, TypeError):
        raise UsageError(f"{path}: is no choice of entrants that can be gone on with; give another --out") from None
    if differing:
        name = differing[0]
        raise UsageError(f"{path}: {name} {content[name]} is not {about[name]}; give another --out")
    return found


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaderboard.chosen", description=__doc__)
    parser.add_argument("--model", default="scenes", help="an embedded model, a name on the hub, or a folder")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--equal", choices=("operations", "time"), default="operations")
    parser.add_argument("--of", type=Path, nargs="*", default=[], help="measure the times of these files' entrants")
    parser.add_argument("--budgets", type=float, nargs="*", default=list(BUDGETS))
    parser.add_argument("--methods", nargs="*", default=[], help="only labels that begin so")
    parser.add_argument("--without", nargs="*", default=[], help="no labels that begin so")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=32, help="images of a timed batch")
    parser.add_argument("--prompt", help="that they show; default: the model's own example")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th method, from the i-th on")
    arguments = parser.parse_args(given)
    pipe = Pipeline.from_pretrained(
        arguments.model, device=arguments.device, dtype=getattr(torch, arguments.dtype), engine="eager"
    )
    choose(pipe, arguments)
    print(f"{arguments.out}: written")


if __name__ == "__main__":
    try:
        main()
    except StepvarError as error:
        raise SystemExit(str(error)) from None
