"""``python -m benchmarks.stepvar_plus judge --out runs/stepvar-plus``: StepVAR+ and its rivals at equal cost.

``codes`` measures how many codes that are sampled from restored features differ from dense ones. ``choose`` measures
the settings of StepVAR+ on captions that ``judge`` never sees. ``judge`` compares methods on captions that no setting
was chosen by. All go on where they were stopped, with all methods on the same images at any time. ``summary`` writes
the results; ``python -m benchmarks.tables`` then writes the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks import command_line
from benchmarks.stepvar_plus.candidates import (
    BUDGETS,
    CHOSEN_AT,
    Entry,
    plus_at,
    pruned_at_half,
    rivals_at,
    variants_at,
)
from benchmarks.stepvar_plus.shared import SharedImages
from benchmarks.stepvar_plus.summary import summarise
from benchmarks.study.match import counted_speedup
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.metrics.fidelity import fidelity
from stepvar.evaluation.metrics.scenes import domain_of
from stepvar.evaluation.prompts import Prompt, load_prompts
from stepvar.methods import Dense
from stepvar.pipeline import Pipeline
from stepvar.utils.files import write_text

CAPTIONS = {"codes": (256, 16), "choose": (256, 64), "judge": (0, 64)}
"""Of the held-out suite: the first one, and how many; those of ``judge`` are what ``stepvar eval`` begins with."""

SEEDS = {"codes": 500_000, "choose": 500_000, "judge": 0}
"""Added to a caption's number."""

DENSE = Dense()

Row = dict[str, Any]
Measure = Callable[[SharedImages, Entry, Sequence[Prompt]], list[Row]]


def main(given: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(given)
    if arguments.part == "summary":
        summarise(arguments.out)
        return
    pipe = Pipeline.from_pretrained(arguments.model, device=arguments.device, dtype=arguments.dtype)
    first, usual = CAPTIONS[arguments.part]
    count = usual if arguments.captions is None else arguments.captions
    prompts = load_prompts(f"scenes:{first + count}").prompts[first:]
    settings, speedup_of = pipe.settings(), counted_speedup(pipe, pipe.settings())
    measure: Measure
    if arguments.part == "codes":
        entries, measure = pruned_at_half(), changed_codes
    elif arguments.part == "choose":
        entries, measure = variants_at(CHOSEN_AT, speedup_of), fidelity_rows
    else:
        entries = [Entry("dense", 1.0, DENSE, 1.0)]
        for budget in arguments.budgets:
            entries += [plus_at(budget, speedup_of, settings), *rivals_at(budget, speedup_of)]
        measure = judged(domain_of(prompts, pipe.device))
    kept = Kept.open(arguments.out / f"{arguments.part}.json", entries, {
        **provenance(pipe.device, command_line(__spec__)),
        "model": pipe.name,
        "dtype": arguments.dtype,
        "captions": f"{first} to {first + count - 1}",
    })  # fmt: skip
    seeds = [SEEDS[arguments.part] + first + index for index in range(count)]
    run(pipe, prompts, seeds, entries, measure, kept, arguments.batch)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.stepvar_plus", description=__doc__)
    found.add_argument("part", choices=("codes", "choose", "judge", "summary"))
    found.add_argument("--out", type=Path, default=Path("runs/stepvar-plus"), help="folder of the measurements")
    found.add_argument("--model", default="scenes")
    found.add_argument("--device", default="cpu")
    found.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    found.add_argument("--captions", type=int, help="how many; usually 64")
    found.add_argument("--budgets", type=float, nargs="*", default=list(BUDGETS))
    found.add_argument("--batch", type=int, default=8)
    return found


class Kept:
    """Measurements in a file, written after every batch.

    Attributes:
        rows: of each candidate, by caption.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content
        self.rows: dict[str, dict[str, Row]] = content["rows"]

    @classmethod
    def open(cls, path: Path, entries: Sequence[Entry], info: dict[str, Any]) -> Kept:
        """What was measured so far; what no longer takes part is left out."""
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": {}, "entries": {}}
        described = {entry.key: describe(entry) for entry in entries}
        same = [key for key, own in described.items() if before["entries"].get(key) == own]
        rows = {key: before["rows"].get(key, {}) if key in same else {} for key in described}
        return cls(path, {"info": info, "entries": described, "rows": rows})

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.content) + "\n")


def describe(entry: Entry) -> dict[str, Any]:
    """A candidate as it is kept: settings as text, since restorations are objects."""
    own = {"label": entry.label, "budget": entry.budget, "speedup": round(entry.speedup, 4)}
    return own | {"method": repr(entry.method)}


def run(
    pipe: Pipeline,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    entries: Sequence[Entry],
    measure: Measure,
    kept: Kept,
    size: int,
) -> None:
    """Measures every candidate on every batch that it lacks."""
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        missing = [entry for entry in entries if any(prompt.name not in kept.rows[entry.key] for prompt in part)]
        if not missing:
            continue
        images = SharedImages.of(pipe, [prompt.text for prompt in part], seeds[start : start + size])
        for entry in missing:
            for prompt, row in zip(part, measure(images, entry, part), strict=True):
                kept.rows[entry.key][prompt.name] = row
        kept.write()
        print(f"{start + len(part)} of {len(prompts)} captions", flush=True)


def changed_codes(images: SharedImages, entry: Entry, prompts: Sequence[Prompt]) -> list[Row]:
    """The share of codes that a method would change; see :meth:`SharedImages.flips`."""
    return [{"flips": round(share, 6)} for share in images.flips(entry.method).tolist()]


def judged(domain: Any) -> Measure:
    """Fidelity to the dense image, and what the judge sees of what the caption asks for."""

    def measure(images: SharedImages, entry: Entry, prompts: Sequence[Prompt]) -> list[Row]:
        own: Tensor = images.images if entry.method == DENSE else images.generate(entry.method)
        videos, reference = own.unsqueeze(1), images.images.unsqueeze(1)
        verdicts = domain.judge(prompts, videos)
        rows = zip(fidelity(videos, reference), verdicts, strict=True)
        return [fidelity_row | {"right": verdict["right"]} for fidelity_row, verdict in rows]

    return measure


def fidelity_rows(images: SharedImages, entry: Entry, prompts: Sequence[Prompt]) -> list[Row]:
    """Fidelity to the dense image."""
    return fidelity(images.generate(entry.method).unsqueeze(1), images.images.unsqueeze(1))


if __name__ == "__main__":
    main()
