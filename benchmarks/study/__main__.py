"""``python -m benchmarks.study --device cuda --out runs/study``: all methods at equal cost on the embedded model.

512 held-out prompts and 2 seeds, every method at three budgets, every setting of StepVAR at one. It goes on where it
was stopped; ``--shard 0/2`` and ``--shard 1/2`` share the work. ``python -m benchmarks.tables`` makes the tables.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.study.candidates import Entry, entries
from benchmarks.study.driver import SET_GROUPS, Driver, Item
from benchmarks.study.gallery import Gallery, kept_maps
from benchmarks.study.storage import Study
from stepvar.core.plan import Plan
from stepvar.errors import OutputError, UsageError
from stepvar.evaluation.costs import counted_flops
from stepvar.evaluation.drawing import Sampling
from stepvar.evaluation.scene_scores import load_judge
from stepvar.evaluation.scenes.grammar import caption, held_out_scenes
from stepvar.methods import Dense, Method
from stepvar.pipeline import Pipeline

SCENES_SEED = 7
TEXT_TOKENS = 16


def main(given: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(given)
    shard, shards = parse_shard(arguments.shard)
    if arguments.out.exists() and not arguments.out.is_dir():
        raise OutputError(f"{arguments.out}: is a file; name a folder")
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("highest" if arguments.exact else "high")
    pipe = Pipeline.from_pretrained(arguments.model, device=arguments.device, dtype=getattr(torch, arguments.dtype))
    plan = Sampling.of(pipe).plan(pipe)
    taking_part = [e for e in entries(counter(pipe, plan)) if not arguments.groups or e.group in arguments.groups]
    for entry in taking_part:
        entry.candidate.method.prepare(plan, pipe.model.info)  # what cannot be drawn fails before anything is
    name = "study.json" if shards == 1 else f"study-{shard}-of-{shards}.json"
    study = opened(arguments.out / name, settings_of(arguments, pipe), taking_part)
    gallery = Gallery([entry for entry in taking_part if entry.group == "methods"])
    scenes = held_out_scenes(arguments.limit or arguments.prompts, seed=SCENES_SEED)
    grid, stride = plan.schedule[-1], pipe.model.config.stride
    driver = Driver(
        pipe, load_judge(arguments.device), plan, taking_part, scenes, (grid.h * stride, grid.w * stride), gallery.look
    )
    todo = [
        b for b in batches(len(scenes), arguments.seeds, arguments.batch, shard, shards) if b[0] not in study.batches
    ]
    run(driver, study, todo, arguments, arguments.out / name)
    gallery.write(arguments.out)
    if shard == 0:
        shown = [caption(scene) for scene in scenes[:2]]
        kept_maps(pipe, plan, shown, gallery.entries, arguments.out / "kept.jpg")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    found.add_argument("--model", default="scenes")
    found.add_argument("--out", type=Path, required=True, help="folder of the results")
    found.add_argument("--device", default="cpu")
    found.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    found.add_argument("--exact", action="store_true", help="no TensorFloat-32 on CUDA")
    found.add_argument("--prompts", type=int, default=512)
    found.add_argument("--seeds", type=int, default=2)
    found.add_argument("--ablation-seeds", type=int, default=1, help="seeds that variants of settings are drawn with")
    found.add_argument("--batch", type=int, default=128)
    found.add_argument("--limit", type=int, help="only so many prompts, to try it out")
    found.add_argument("--groups", nargs="*", help="only these groups of candidates")
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


def counter(pipe: Pipeline, plan: Plan) -> Callable[[Method], float]:
    """How many times fewer operations a method needs than dense, in the loop over scales."""
    model = pipe.model
    dense = counted_flops(model, plan, Dense(), TEXT_TOKENS)
    return lambda method: dense / counted_flops(model, plan, method, TEXT_TOKENS)


def settings_of(arguments: argparse.Namespace, pipe: Pipeline) -> dict[str, Any]:
    """What two runs must share to be joined or continued."""
    names = ("model", "device", "dtype", "exact", "prompts", "seeds", "ablation_seeds", "batch", "limit")
    return {name: getattr(arguments, name) for name in names} | {"defaults": pipe.defaults}


def opened(path: Path, settings: dict[str, Any], taking_part: Sequence[Entry]) -> Study:
    """The study at a path, to be continued, or a new one.

    Raises:
        UsageError: if the one there was made with other settings.
    """
    described = {entry.key: entry.to_dict() for entry in taking_part}
    if path.exists():
        study = Study.read(path)
        if study.info["settings"] != settings or study.entries != described:
            raise UsageError(f"{path}: was made with other settings or methods; name another folder")
        return study
    device = torch.device(settings["device"])
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    info = {"command": command_line(__spec__), "machine": machine, "torch": torch.__version__}
    return Study(info | {"threads": torch.get_num_threads(), "settings": settings}, described)


def batches(prompts: int, seeds: int, size: int, shard: int, shards: int) -> list[tuple[int, list[Item]]]:
    """The batches of a shard: (number, (prompt, seed) of each picture); all prompts of a seed before the next."""
    found, number = [], 0
    for seed in range(seeds):
        for start in range(0, prompts, size):
            items = [(prompt, seed) for prompt in range(start, min(start + size, prompts))]
            if number % shards == shard:
                found.append((number, items))
            number += 1
    return found


def run(
    driver: Driver, study: Study, todo: list[tuple[int, list[Item]]], arguments: argparse.Namespace, path: Path
) -> None:
    """All batches, written one by one."""
    ablated = [b for b in todo if b[1][0][1] < arguments.ablation_seeds]
    main_count = sum(entry.group in SET_GROUPS for entry in driver.entries)
    total = len(todo) * main_count + len(ablated) * (len(driver.entries) - main_count)
    start, slowest = time.monotonic(), 0.0
    if todo:
        driver.warm(todo[0][1])
    with ticking(total) as tick:
        for number, items in todo:
            begun = time.monotonic()
            if begun - start + slowest > 60 * arguments.minutes:
                print(f"stopped before batch {number}: {arguments.minutes:g} minutes would not do", flush=True)
                return
            driver.batch(study, number, items, items[0][1] < arguments.ablation_seeds, tick)
            study.write(path)
            slowest = max(slowest, time.monotonic() - begun)


@contextmanager
def ticking(total: int) -> Iterator[Callable[[], None]]:
    """Prints how much is done and how long the rest will take, about every ten seconds."""
    start = shown = time.monotonic()
    done = 0

    def tick() -> None:
        nonlocal done, shown
        done += 1
        now = time.monotonic()
        if now - shown > 10 or done == total:
            shown = now
            left = (now - start) / done * (total - done)
            print(f"{done} of {total} drawn, {now - start:.0f} s, {left:.0f} s left", flush=True)

    print(f"{total} to draw", flush=True)
    yield tick


if __name__ == "__main__":
    main()
