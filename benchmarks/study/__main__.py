"""``python -m benchmarks.study --device cuda --out runs/study``: all methods at equal cost on the embedded model.

512 held-out prompts and 2 seeds, every method at three budgets, every setting of StepVAR at one. It goes on where it
was stopped; ``--shard 0/2`` and ``--shard 1/2`` share the work. ``python -m benchmarks.study.summary`` makes figures of
it, ``python -m benchmarks.tables`` the tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.study.candidates import BUDGETS, Entry, entries
from benchmarks.study.match import counted_speedup
from stepvar.errors import OutputError, UsageError
from stepvar.evaluation.candidates import DENSE, Candidate
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.metrics.scenes import domain_of
from stepvar.evaluation.prompts import PromptSet, load_prompts
from stepvar.evaluation.run import Evaluation, Measures
from stepvar.methods import Dense
from stepvar.pipeline import Pipeline
from stepvar.utils.progress import bar
from stepvar.utils.require import require

AGAIN = Candidate("dense again", Dense())
"""Generated somewhere among the others: what the clock and the random numbers are worth."""

SET_GROUPS = ("floor", "methods")
"""Groups that are generated with all seeds and compared as sets; the others vary a setting."""

SHOWN = 4
"""Prompts whose images are kept."""


def main(given: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(given)
    require("torchmetrics")  # before anything is loaded
    shard = parse_shard(arguments.shard)
    if arguments.out.exists() and not arguments.out.is_dir():
        raise OutputError(f"{arguments.out}: is a file; name a folder")
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("highest" if arguments.exact else "high")
    pipe = Pipeline.from_pretrained(arguments.model, device=arguments.device, dtype=getattr(torch, arguments.dtype))
    taking_part = entries(counted_speedup(pipe, pipe.settings()), arguments.groups, arguments.budgets)
    prompts = load_prompts(f"scenes:{arguments.limit or arguments.prompts}")
    seconds = 60 * arguments.minutes
    for name, seeds in (("methods", arguments.seeds), ("settings", arguments.ablation_seeds)):
        chosen = [entry for entry in taking_part if (entry.group in SET_GROUPS) == (name == "methods")]
        if chosen:
            evaluation = evaluation_of(name, chosen, pipe, prompts, seeds, shard, arguments)
            with bar(name, evaluation.images_left, True, time_left=True) as advance:
                seconds -= evaluation.generate(advance, seconds)
            if evaluation.images_left:
                print(f"{name}: {evaluation.images_left} images are left; the same command goes on", flush=True)
                return


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    found.add_argument("--model", default="scenes")
    found.add_argument("--out", type=Path, required=True, help="folder of the results")
    found.add_argument("--device", default="cpu")
    found.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    found.add_argument("--exact", action="store_true", help="no TensorFloat-32 on CUDA")
    found.add_argument("--prompts", type=int, default=512)
    found.add_argument("--seeds", type=int, default=2)
    found.add_argument("--ablation-seeds", type=int, default=1, help="seeds that variants of settings take")
    found.add_argument("--batch", type=int, default=128)
    found.add_argument("--limit", type=int, help="only so many prompts, to try it out")
    found.add_argument("--groups", nargs="*", default=[], help="only these groups of candidates")
    found.add_argument("--budgets", type=float, nargs="*", default=list(BUDGETS), help="speed-ups, by operations")
    found.add_argument("--minutes", type=float, default=1e9, help="begin no batch that would end later than this")
    found.add_argument("--shard", default="0/1", help="i/n: every n-th batch, from the i-th on")
    return found


def parse_shard(text: str) -> tuple[int, int]:
    """``i/n``.

    Raises:
        UsageError: if it is none.
    """
    try:
        shard, shards = map(int, text.split("/"))
    except ValueError:
        shard, shards = 0, 0
    if not 0 <= shard < shards:
        raise UsageError(f"shard {text!r}: give i/n with i from 0 to n - 1, such as 0/2")
    return shard, shards


def evaluation_of(
    name: str,
    chosen: Sequence[Entry],
    pipe: Pipeline,
    prompts: PromptSet,
    seeds: int,
    shard: tuple[int, int],
    arguments: argparse.Namespace,
) -> Evaluation:
    """One part of the study, in a folder of its own that can be continued."""
    names = ("model", "device", "dtype", "exact", "prompts", "seeds", "ablation_seeds", "batch", "limit")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in names} | {"defaults": pipe.defaults}
    described = {entry.key: entry.to_dict() for entry in chosen}
    folder = RunFolder.open(
        arguments.out / (name if shard[1] == 1 else f"{name}-{shard[0]}-of-{shard[1]}"),
        {"study": settings, "entries": described},
        provenance(pipe.device, command_line(__spec__)),
    )
    return Evaluation(
        pipe,
        prompts,
        range(seeds),
        [DENSE, AGAIN, *(entry.candidate for entry in chosen)],
        folder,
        Measures(domain_of(prompts.prompts, pipe.device)),
        batch=arguments.batch,
        images=SHOWN,
        timed=True,
        shard=shard,
    )


if __name__ == "__main__":
    main()
