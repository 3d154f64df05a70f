"""``python -m benchmarks.leaderboard --out runs/leaderboard``: all methods at equal operations, on any model.

It goes on where it was stopped; ``--shard 0/4`` to ``--shard 3/4`` share the work. ``--figures`` makes the figures of
what is there so far (``benchmarks/results/leaderboard-NAME.json``), from which ``python -m benchmarks.tables`` makes
the page.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.auto import update_auto
from benchmarks.leaderboard.chosen import Choice, read_chosen
from benchmarks.leaderboard.entrants import BUDGETS, Entrant, entrants
from benchmarks.leaderboard.figures import RESULTS, ranking, read_folders, write_figures
from benchmarks.study.__main__ import AGAIN, parse_shard
from benchmarks.study.match import counted_speedup
from stepvar.checkpoints.sources import find_outline
from stepvar.engine import ENGINES
from stepvar.errors import StepvarError, UsageError
from stepvar.evaluation.candidates import DENSE
from stepvar.evaluation.folder import RunFolder, slug
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.metrics.learned import Distance, Unavailable, load_cvvdp, load_gram
from stepvar.evaluation.metrics.scenes import domain_of
from stepvar.evaluation.prompts import Prompt, PromptSet, load_prompts
from stepvar.evaluation.run import Evaluation, Measures
from stepvar.methods import Dense, Method
from stepvar.pipeline import Pipeline
from stepvar.utils.progress import bar
from stepvar.utils.require import require

SUITES = ("scenes", "scenes-video")
"""Embedded models that have prompts of their own, as many as wanted, and a judge."""

SMOOTH = ("sky", "sunset", "night", "snow")
"""Backgrounds of scenes without texture."""


def main(given: Sequence[str] | None = None) -> None:
    command = parser()
    arguments = command.parse_args(given)
    if arguments.out is None and not arguments.figures:
        command.error("--out: is needed, the folder of the results")
    if not arguments.results.is_dir():
        raise UsageError(f"results {arguments.results}: no such folder; create it first")
    if arguments.figures is not None:
        path = write_figures(read_folders(arguments.figures or [arguments.out]), arguments.name, arguments.results)
        print(f"{path}: written")
        if arguments.auto:
            result = json.loads(path.read_text(encoding="utf-8"))
            update_auto(arguments.auto, ranking(result), result["info"])
        return
    require("torchmetrics")  # before anything is loaded
    shard = parse_shard(arguments.shard)
    prompts = prompts_of(arguments.prompts, arguments.model)
    prompts.check_images(find_outline(arguments.model).family.edits, arguments.batch)
    pipe = Pipeline.from_pretrained(
        arguments.model, device=arguments.device, dtype=getattr(torch, arguments.dtype), engine=arguments.engine
    )
    evaluation = evaluation_of(pipe, prompts, shard, arguments)
    with bar("leaderboard", evaluation.images_left, True, time_left=True) as advance:
        evaluation.generate(advance, 60 * arguments.minutes)
    if evaluation.images_left:
        print(f"{evaluation.images_left} images are left; the same command goes on", flush=True)
    if shard[1] > 1:
        print(f"{evaluation.folder.path}: a shard; --figures joins what all of them made")
    elif evaluation.folder.rows:
        print(f"{write_figures([evaluation.folder], arguments.name, arguments.results)}: written")


def prompts_of(wanted: str, model: str) -> PromptSet:
    """So many prompts of the model's own suite, or those of a file.

    Raises:
        UsageError: for a number where the model has no suite, or what cannot be read as prompts.
    """
    if not wanted.isdecimal():
        return load_prompts(wanted)
    if model not in SUITES:
        raise UsageError(
            f"prompts {wanted}: {model} has no prompts of its own, only {' and '.join(SUITES)} have; "
            "give a file with --prompts"
        )
    found = load_prompts(f"{model}:{wanted}")
    return replace(found, prompts=tuple(map(by_ground, found.prompts)))


def by_ground(prompt: Prompt) -> Prompt:
    """A scene's prompt in the category of its background; others as they are."""
    if prompt.scene is None:
        return prompt
    return replace(prompt, category="smooth" if prompt.scene.background in SMOOTH else "textured")


def evaluation_of(
    pipe: Pipeline, prompts: PromptSet, shard: tuple[int, int], arguments: argparse.Namespace
) -> Evaluation:
    """All that take part, in a folder that can be continued."""
    choice = who_takes_part(pipe, arguments)
    taking_part = [own for own in choice.entrants if own.label.startswith(tuple(arguments.methods or [""]))]
    if not taking_part:
        raise UsageError(
            f"methods {' '.join(arguments.methods)}: no method's label begins so, or none serves the model"
        )
    measures = measures_of(prompts, pipe.device, arguments)  # first: a folder that is refused is not begun
    folder = RunFolder.open(
        arguments.out if shard[1] == 1 else arguments.out / f"{shard[0]}-of-{shard[1]}",
        described(pipe, prompts, choice, taking_part, arguments),
        provenance(pipe.device, command_line(__spec__)),
    )
    return Evaluation(
        pipe,
        prompts,
        range(arguments.seeds),
        [DENSE, AGAIN, *(entrant.candidate for entrant in taking_part)],
        folder,
        measures,
        batch=arguments.batch,
        images=arguments.images,
        timed=True,
        shard=shard,
    )


def measures_of(prompts: PromptSet, device: torch.device, arguments: argparse.Namespace) -> Measures:
    """What is measured beside fidelity: by a judge, and by networks.

    Raises:
        UsageError: for a judge without its photographs, or a network that is not there.
    """
    if (arguments.judge is None) != (arguments.photographs is None):
        raise UsageError("judge and photographs: one needs the other; give both, or none")
    if arguments.judge is None:
        domain = domain_of(prompts.prompts, device)
    else:
        from training.wardrobe.judge import PhotographJudge

        domain = judge = PhotographJudge.load(arguments.judge, arguments.photographs, device)
        judge.check(prompts.prompts)
    found: dict[str, dict[str, Distance]] = {"gram": {}, "cvvdp": {}}
    for name in arguments.learned:
        distance = load_gram(device) if name == "gram" else load_cvvdp(device, fps=1)
        if isinstance(distance, Unavailable):
            raise UsageError(f"learned {name}: {distance}")
        found[name][name] = distance
    return Measures(domain, distances=found["gram"], clip_distances=found["cvvdp"])


def who_takes_part(pipe: Pipeline, arguments: argparse.Namespace) -> Choice:
    """The entrants of files, else by operations counted here."""
    settings = pipe.settings()
    if arguments.entrants:
        return read_chosen(arguments.entrants, pipe)
    found = entrants(counted_speedup(pipe, settings), settings, arguments.budgets, arguments.methods)
    return Choice("operations", arguments.budgets, found)


def described(
    pipe: Pipeline,
    prompts: PromptSet,
    choice: Choice,
    taking_part: Sequence[Entrant],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """What a folder must have been made with to be gone on with, or joined; nothing in it is of this machine alone."""
    names = ("dtype", "engine", "seeds", "batch", "methods")
    own: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    own |= {"equal": choice.equal, "budgets": list(choice.budgets), "timed_batch": choice.batch}
    own |= {"timed_on": list(choice.machines)} if choice.machines else {}
    own |= {"judge": hashlib.sha256(arguments.judge.read_bytes()).hexdigest()[:16]} if arguments.judge else {}
    own |= {"learned": sorted(arguments.learned)} if arguments.learned else {}
    own["device"] = pipe.device.type  # whichever of several
    own["model"] = arguments.name or slug(Path(arguments.model).name)
    own["prompts"] = {"source": Path(prompts.source).name, "count": len(prompts), "texts": prompts.digest}
    own["cache"] = dense = cache_of(pipe, Dense())
    listed = [entrant.to_dict() | {"cache": _cache(pipe, entrant, dense)} for entrant in taking_part]
    return {"leaderboard": own, "entrants": listed}


def _cache(pipe: Pipeline, entrant: Entrant, dense: int) -> int:
    """In bytes: a file knows the share of dense's, whatever the number format was."""
    share = entrant.more.get("cache_share")
    return cache_of(pipe, entrant.method) if share is None else round(share * dense)


def cache_of(pipe: Pipeline, method: Method) -> int:
    """The largest cache of keys and values of one generation with guidance, in bytes, by a dry run."""
    return pipe.dry_run(method.plan(pipe.settings(), pipe.model.info, 1), method).cache


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.leaderboard", description=__doc__)
    found.add_argument("--model", default="scenes", help="an embedded model, a name on the hub, or a folder")
    found.add_argument("--name", type=slug, help="what the model is called in the figures; default: as its folder")
    found.add_argument("--out", type=Path, help="folder of the results")
    found.add_argument("--device", default="cpu")
    found.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    found.add_argument("--engine", choices=ENGINES, default="eager", help="more take part than graphs are kept of")
    found.add_argument(
        "--prompts", default="64", help="how many of the model's own suite, or a file, as of stepvar eval"
    )
    found.add_argument("--seeds", type=int, default=1)
    found.add_argument("--batch", type=int, default=8)
    found.add_argument("--images", type=int, default=4, help="prompts whose images are kept")
    found.add_argument("--judge", type=Path, help="file of training.wardrobe.judge, which judges pictures of clothes")
    found.add_argument("--photographs", type=Path, help="with --judge: the folder of the photographs")
    found.add_argument("--learned", nargs="*", choices=("gram", "cvvdp"), default=[], help="measures by networks, too")
    found.add_argument("--methods", nargs="*", default=[], help="only labels that begin so")
    found.add_argument("--budgets", type=float, nargs="*", default=list(BUDGETS), help="speed-ups, by operations")
    found.add_argument(
        "--entrants", type=Path, nargs="*", default=[], help="files of python -m benchmarks.leaderboard.chosen"
    )
    found.add_argument("--minutes", type=float, default=1e9, help="begin no batch that would end later than this")
    found.add_argument(
        "--shard", default="0/1", help="i/n: every n-th batch, from the i-th on, in a folder below --out"
    )
    found.add_argument(
        "--figures",
        type=Path,
        nargs="*",
        help="only make figures of what is there, in --out or in several folders, shards and all",
    )
    found.add_argument("--auto", metavar="MODEL", help="with --figures: also what --method auto knows of that model")
    found.add_argument("--results", type=Path, default=RESULTS, help="folder of the figures")
    return found


if __name__ == "__main__":
    try:
        main()
    except StepvarError as error:
        raise SystemExit(str(error)) from None
