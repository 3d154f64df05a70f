"""``python -m benchmarks.leaderboard --out runs/leaderboard``: all methods at equal operations, on an embedded model.

It goes on where it was stopped. ``--figures`` makes the figures of what is there so far
(``benchmarks/results/leaderboard-MODEL.json``), from which ``python -m benchmarks.tables`` makes the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.leaderboard.entrants import BUDGETS, entrants
from benchmarks.leaderboard.figures import write_figures
from benchmarks.study.match import counted_speedup
from stepvar.evaluation.candidates import DENSE
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.metrics.scenes import domain_of
from stepvar.evaluation.prompts import load_prompts
from stepvar.evaluation.run import Evaluation, Measures
from stepvar.methods import Dense, Method
from stepvar.pipeline import Pipeline
from stepvar.utils.progress import bar


def main(given: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(given)
    if arguments.figures:
        print(f"{write_figures(RunFolder.read(arguments.out), arguments.model)}: written")
        return
    pipe = Pipeline.from_pretrained(arguments.model, device=arguments.device, dtype=getattr(torch, arguments.dtype))
    settings = pipe.settings()
    taking_part = entrants(counted_speedup(pipe, settings), settings, arguments.budgets, arguments.methods)
    prompts = load_prompts(f"{arguments.model}:{arguments.prompts}")
    names = ("model", "device", "dtype", "prompts", "seeds", "batch", "budgets", "methods")
    described: dict[str, Any] = {name: getattr(arguments, name) for name in names} | {"cache": cache_of(pipe, Dense())}
    listed = [entrant.to_dict() | {"cache": cache_of(pipe, entrant.method)} for entrant in taking_part]
    folder = RunFolder.open(
        arguments.out,
        {"leaderboard": described, "entrants": listed},
        provenance(pipe.device, command_line(__spec__)),
    )
    evaluation = Evaluation(
        pipe,
        prompts,
        range(arguments.seeds),
        [DENSE, *(entrant.candidate for entrant in taking_part)],
        folder,
        Measures(domain_of(prompts.prompts, pipe.device)),
        batch=arguments.batch,
        images=arguments.images,
        timed=False,
    )
    with bar("leaderboard", evaluation.images_left, True, time_left=True) as advance:
        evaluation.generate(advance, 60 * arguments.minutes)
    if evaluation.images_left:
        print(f"{evaluation.images_left} images are left; the same command goes on", flush=True)
    print(f"{write_figures(folder, arguments.model)}: written")


def cache_of(pipe: Pipeline, method: Method) -> int:
    """The largest cache of keys and values of one generation with guidance, in bytes, by a dry run."""
    return pipe.dry_run(method.plan(pipe.settings(), pipe.model.info, 1), method).cache


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.leaderboard", description=__doc__)
    found.add_argument("--model", choices=("scenes", "scenes-video"), default="scenes")
    found.add_argument("--out", type=Path, required=True, help="folder of the results")
    found.add_argument("--device", default="cpu")
    found.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    found.add_argument("--prompts", type=int, default=64)
    found.add_argument("--seeds", type=int, default=1)
    found.add_argument("--batch", type=int, default=8)
    found.add_argument("--images", type=int, default=4, help="prompts whose images are kept")
    found.add_argument("--methods", nargs="*", default=[], help="only labels that begin so")
    found.add_argument("--budgets", type=float, nargs="*", default=list(BUDGETS), help="speed-ups, by operations")
    found.add_argument("--minutes", type=float, default=1e9, help="begin no batch that would end later than this")
    found.add_argument("--figures", action="store_true", help="only make figures of what is there")
    return found


if __name__ == "__main__":
    main()
