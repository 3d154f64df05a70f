"""The settings that take part, in a file: ``python -m benchmarks.leaderboard.chosen --equal time --out chosen.json``.

Shards of a leaderboard need the same ones. By operations they are counted, which takes a minute and no device; by time
they are measured with CUDA graphs, a batch of dense and one of the method in turn. ``--of`` measures the times of what
a file holds. The leaderboard takes such files with ``--entrants``. The file is written after each method, and the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.leaderboard.clock import Clock
from benchmarks.leaderboard.entrants import BUDGETS, Entrant, distinct, floors, labelled, rows, taking_part
from benchmarks.study.__main__ import parse_shard
from benchmarks.study.match import counted_speedup
from stepvar.core.plan import Settings
from stepvar.cost.dry_run import DryRun
from stepvar.errors import StepvarError, UsageError
from stepvar.evaluation.machine import provenance
from stepvar.methods import Dense, Method
from stepvar.pipeline import Pipeline
from stepvar.text import example_prompt
from stepvar.utils.files import write_text
from stepvar.utils.progress import bar
from stepvar.utils.reading import read_json

SAME_TIME = 0.012
"""Measured times that differ by less than this share are equal."""


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
        machines: that measured them.
    """

    equal: str
    budgets: Sequence[float]
    entrants: Sequence[Entrant]
    batch: int | None = None
    machines: tuple[str, ...] = ()


ABOUT = ("equal", "budgets", "model", "schedule", "batch")
"""What files of one choice have in common; times of several machines may be joined."""


def read_chosen(paths: Sequence[Path], pipe: Pipeline) -> Choice:
    """The choice that some files hold together.

    Raises:
        UsageError: for files that do not belong together or to the model, or cannot be read as such.
    """
    first: dict[str, Any] = {}
    found: list[Entrant] = []
    machines: set[str] = set()
    for path in paths:
        content = read_json(path)
        try:
            about, rows = {name: content[name] for name in ABOUT}, content["entrants"]
            found += from_rows(rows, pipe.settings())
            machines |= {content["info"]["machine"]} if about["batch"] else set()
            left = content["left"]
        except (KeyError, TypeError, AttributeError, ValueError, IndexError):
            raise UsageError(f"{path}: is no choice of entrants; make one with {__spec__.name}") from None
        if left:
            raise UsageError(f"{path}: {left} methods are left; run the command that made it again")
        first = first or about
        differing = [name for name in ABOUT if about[name] != first[name]]
        if differing:
            name = differing[0]
            raise UsageError(f"{path}: {name} {about[name]} is not {first[name]}, that of {paths[0]}; join one choice")
    own = about_model(pipe)
    if {name: first[name] for name in own} != own:
        raise UsageError(f"{paths[0]}: was made for {first['model']}, {first['schedule']}; the model is {pipe.name}")
    return Choice(first["equal"], first["budgets"], distinct(found), first["batch"], tuple(sorted(machines)))


def about_model(pipe: Pipeline) -> dict[str, Any]:
    schedule = pipe.settings().schedule
    return {"model": pipe.name, "schedule": schedule.name}


class ChoiceFile:
    """A file of entrants that is written after each method.

    Attributes:
        searched: labels of the methods that are done.

    Args:
        about: what every part of the file must have been made with.

    Raises:
        UsageError: if there is a file that was made with something else.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], info: Mapping[str, str]) -> None:
        self.path, self.about, self.info = path, json.loads(json.dumps(about)), info
        self.searched, self.entrants = list[str](), list[dict[str, Any]]()
        if not path.exists():
            return
        content = read_json(path)
        try:
            differing = [name for name in self.about if content[name] != self.about[name]]
            self.searched += content["searched"]
            self.entrants += content["entrants"]
        except (KeyError, TypeError):
            raise UsageError(f"{path}: is no choice of entrants that can be continued; give another --out") from None
        if differing:
            name = differing[0]
            raise UsageError(f"{path}: {name} {content[name]} is not {self.about[name]}; give another --out")

    def add(self, label: str, found: Sequence[Entrant], left: int) -> None:
        """Writes what a method gave; ``left`` are still to come."""
        self.searched.append(label)
        self.entrants += to_rows(found)
        self.write(left)

    def write(self, left: int) -> None:
        content = {"info": self.info, **self.about, "entrants": self.entrants, "searched": self.searched, "left": left}
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def choose(pipe: Pipeline, arguments: argparse.Namespace) -> None:
    """Writes the file, method by method.

    Raises:
        UsageError: if no method is meant, or there is a file of another choice.
    """
    settings = pipe.settings()
    about, steps = what_is_asked(pipe, arguments)
    info = provenance(pipe.device, command_line(__spec__))
    batch, prompt = about["batch"], arguments.prompt or example_prompt(pipe.text_encoder)
    if batch is not None:
        about["timed"] = {"prompt": prompt, "machine": info["machine"]}
    file = ChoiceFile(arguments.out, about, info)
    left = [label for label in steps if label not in file.searched]
    clock = Clock(pipe, [prompt] * batch) if batch is not None and left else None
    search = partial(rows, speedup_of=counted_speedup(pipe, settings))
    if arguments.equal == "time" and clock is not None:
        search = partial(rows, speedup_of=clock, tolerance=SAME_TIME)
    with bar("methods", len(left), True) as advance:
        for label in left:
            own, found = steps[label], list[Entrant]()
            if isinstance(own, Entrant):
                found.append(own)
            else:
                found += search(label, own, settings=settings, budgets=arguments.budgets)
            file.add(label, with_costs(pipe, found, settings, clock), len(steps) - len(file.searched) - 1)
            advance()
    file.write(0)


def what_is_asked(pipe: Pipeline, arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Method | Entrant]]:
    """What a file is about, and by label what stands in it: methods to be set to budgets, and what is known."""
    about: dict[str, Any] = {"equal": arguments.equal, "budgets": arguments.budgets, **about_model(pipe)}
    about |= {name: getattr(arguments, name) for name in ("dtype", "methods", "without", "shard")}
    shard, steps = parse_shard(arguments.shard), dict[str, Method | Entrant]()
    if arguments.of:
        known = read_chosen(arguments.of, pipe)
        about |= {"equal": known.equal, "budgets": known.budgets, "of": to_rows(known.entrants)}
        steps |= {own.label: own for own in known.entrants[shard[0] :: shard[1]]}
    else:
        if not taking_part(arguments.methods, arguments.without):
            raise UsageError(f"methods {' '.join(arguments.methods)}: no method's label begins so")
        if not arguments.methods and shard[0] == 0:
            steps |= {own.label: own for own in floors()}
        steps |= taking_part(arguments.methods, arguments.without, shard)
    timed = arguments.of or arguments.equal == "time"
    return about | {"batch": arguments.batch if timed else None}, steps


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
