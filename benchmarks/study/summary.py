"""From the pictures of a study to its figures: ``python -m benchmarks.study.summary runs/study``.

Reads all ``study*.json`` of the folder and writes ``benchmarks/results/study.json``, from which ``python -m
benchmarks.tables`` makes the tables and plots of the documentation; sheets of pictures go to ``docs/images``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.study.__main__ import SCENES_SEED
from benchmarks.study.candidates import ABLATED
from benchmarks.study.contrasts import contrasts, default_of
from benchmarks.study.driver import SET_GROUPS
from benchmarks.study.gallery import save_jpeg
from benchmarks.study.storage import Study, joined
from stepvar.evaluation.distribution import frechet_distance
from stepvar.evaluation.scene_scores import CATEGORIES, Questions
from stepvar.evaluation.scenes.grammar import held_out_scenes
from stepvar.evaluation.statistics import Interval, bootstrap, paired, percentiles
from stepvar.utils.files import write_text

ROOT = Path(__file__).parents[2]
DENSE, AGAIN, RENDERS = "dense/dense", "dense/dense again", "real/renders"
MEASURES = ("psnr", "ssim", "share", "questions")
LONGEST = 2400
"""Pixels of the longer side of a sheet in the documentation."""

SHEETS = ("pictures-2.0.jpg", "kept.jpg")


@dataclass(frozen=True)
class Figures:
    """A study's numbers, picture by picture.

    Attributes:
        study: of all shards.
    """

    study: Study

    @cached_property
    def batches(self) -> list[Mapping[str, Any]]:
        return [batch for _, batch in sorted(self.study.batches.items())]

    @cached_property
    def asked(self) -> NDArray[np.bool_]:
        """(prompts, categories): what each caption says."""
        settings = self.study.info["settings"]
        scenes = held_out_scenes(settings["limit"] or settings["prompts"], seed=SCENES_SEED)
        asked: NDArray[np.bool_] = Questions.of(scenes).asked.numpy()
        return asked

    def items(self, key: str) -> list[tuple[int, int]]:
        """(prompt, seed) of each picture of a candidate."""
        return [(item[0], item[1]) for batch in self.batches if key in batch["rows"] for item in batch["items"]]

    def prompts(self, key: str) -> list[int]:
        return [prompt for prompt, _ in self.items(key)]

    def values(self, key: str, name: str) -> NDArray[np.float64]:
        """One number per picture: a stored measure, or ``questions``, the share of what is asked that is right."""
        if name == "questions":
            asked = self.asked[self.prompts(key)]
            share: NDArray[np.float64] = (self.right(key) & asked).sum(axis=1) / asked.sum(axis=1)
            return share
        return np.array([v for batch in self.batches if key in batch["rows"] for v in batch["rows"][key][name]], float)

    def right(self, key: str) -> NDArray[np.bool_]:
        """(pictures, categories)."""
        bits = self.values(key, "right").astype(np.int64)
        return (bits[:, None] >> np.arange(len(CATEGORIES))) % 2 == 1

    def per_batch(self, key: str, name: str) -> list[float]:
        return [batch["rows"][key][name] for batch in self.batches if key in batch["rows"]]

    def speedups(self, key: str) -> list[float]:
        """Dense time of the loop over the candidate's, batch by batch; dense ran at both ends of each batch."""
        found = []
        for batch in self.batches:
            rows = batch["rows"]
            if key in rows:
                found.append((rows[DENSE]["loop"] + rows[AGAIN]["loop"]) / 2 / rows[key]["loop"])
        return found


def summarise(study: Study) -> dict[str, Any]:
    """All figures of a study that the documentation needs."""
    figures = Figures(study)
    keys = {DENSE: {"group": "dense", "label": "dense", "budget": None, "knob": None, "speedup": 1.0}} | study.entries
    drawn = {key: entry for key, entry in keys.items() if figures.items(key)}
    return {
        "info": study.info | _checks(figures),
        "renders": _categories(figures, RENDERS),
        "entries": {key: _entry(figures, key, entry) for key, entry in drawn.items()},
        "contrasts": [
            _contrast(figures, question, one, other)
            for question, one, other in contrasts()
            if one in drawn and other in drawn
        ],
    }


def _checks(figures: Figures) -> dict[str, Any]:
    """How many pictures there are, and what the dense run behind all others says about clock and draws."""
    loops = [
        again / first for first, again in zip(*(figures.per_batch(k, "loop") for k in (DENSE, AGAIN)), strict=True)
    ]
    return {
        "pictures": len(figures.items(DENSE)),
        "batches": len(figures.batches),
        "seeds_drawn": sorted({seed for _, seed in figures.items(DENSE)}),
        "same_method": _same_method(figures),
        "dense_again_psnr": float(figures.values(AGAIN, "psnr").min()),
        "dense_again_time": percentiles(loops),
        "dense_picture_ms": percentiles([
            1e3 * seconds / len(batch["items"])
            for batch, seconds in zip(figures.batches, figures.per_batch(AGAIN, "loop"), strict=True)
        ]),
        "decode_picture_ms": percentiles([
            1e3 * seconds / len(batch["items"])
            for batch, seconds in zip(figures.batches, figures.per_batch(AGAIN, "decode"), strict=True)
        ]),
    }  # fmt: skip


def _same_method(figures: Figures) -> dict[str, Any]:
    """StepVAR as it is by default stands in several groups: what the clock says of one and the same work."""
    wanted = figures.study.entries.get(f"methods/stepvar@{ABLATED}", {}).get("settings")
    keys = [key for key, entry in figures.study.entries.items() if entry["settings"] == wanted and figures.items(key)]
    medians = [float(np.median(figures.speedups(key))) for key in keys]
    return {"times": len(keys), "lowest": min(medians), "highest": max(medians)} if keys else {"times": 0}


def _entry(figures: Figures, key: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    prompts = figures.prompts(key)
    found = {name: entry[name] for name in ("group", "label", "budget", "knob", "speedup")}
    found["pictures"] = len(prompts)
    for name in MEASURES:
        found[name] = bootstrap(figures.values(key, name), prompts).to_dict()
    found["worst_tenth"] = float(np.quantile(figures.values(key, "psnr"), 0.1))
    same = [key, AGAIN] if key == DENSE else [key]
    found["measured"] = percentiles([ratio for one in same for ratio in figures.speedups(one)])
    found["categories"] = _categories(figures, key)
    own = set(figures.items(key))
    shared = [index for index, item in enumerate(figures.items(DENSE)) if item in own]
    reference = figures.values(DENSE, "questions")[shared]
    found["questions_against_dense"] = paired(figures.values(key, "questions"), reference, prompts).to_dict()
    study = figures.study
    if key in study.moments and study.moments[key].count > 1:
        found["judge_fid"] = frechet_distance(study.moments[key], study.moments[RENDERS])
    default = default_of(entry["group"])
    if entry["group"] not in SET_GROUPS and figures.items(default):
        found["psnr_against_default"] = _difference(figures, "psnr", key, default).to_dict()
    kids = [kid for kid in _kids(figures, key) if kid is not None]
    if kids:
        found["judge_kid"] = {"mean": float(np.mean(kids)), "spread": float(np.std(kids))}
    memory = [batch["rows"][key]["memory"] for batch in figures.batches if "memory" in batch["rows"].get(key, {})]
    if memory:
        found["memory"] = max(memory)
    return found


def _kids(figures: Figures, key: str) -> list[float | None]:
    return [batch["rows"][key].get("kid") for batch in figures.batches if key in batch["rows"]]


def _categories(figures: Figures, key: str) -> dict[str, Any]:
    """Per category the share that is right, with its interval, and its difference from dense."""
    prompts, right = np.array(figures.prompts(key)), figures.right(key)
    dense = dict(zip(figures.items(DENSE), figures.right(DENSE), strict=True))
    found = {}
    for column, name in enumerate(CATEGORIES):
        chosen = figures.asked[prompts][:, column]
        if not chosen.any():
            continue
        values, groups = right[chosen, column].astype(float), prompts[chosen].tolist()
        reference = [float(dense[item][column]) for item, c in zip(figures.items(key), chosen, strict=True) if c]
        change = paired(values, reference, groups).to_dict()
        found[name] = {**bootstrap(values, groups).to_dict(), "against_dense": change}
    return found


def _contrast(figures: Figures, question: str, one: str, other: str) -> dict[str, Any]:
    """All differences of a pair."""
    differences = {name: _difference(figures, name, one, other) for name in MEASURES}
    pictures = differences[MEASURES[0]].count
    found: dict[str, Any] = {"question": question, "one": one, "other": other, "pictures": pictures}
    return found | {name: difference.to_dict() for name, difference in differences.items()}


def _difference(figures: Figures, name: str, one: str, other: str) -> Interval:
    """Of one measure, on the pictures that both drew."""
    shared = set(figures.items(one)) & set(figures.items(other))
    places = [[i for i, item in enumerate(figures.items(key)) if item in shared] for key in (one, other)]
    first, second = (figures.values(key, name)[place] for key, place in zip((one, other), places, strict=True))
    return paired(first, second, [figures.items(one)[place][0] for place in places[0]])


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.summary", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "study.json")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args(given)
    study = joined(Study.read(path) for path in sorted(arguments.folder.glob("study*.json")))
    text = json.dumps(_rounded(summarise(study)), indent=1, allow_nan=False)
    write_text(arguments.out, text + "\n")
    for name in SHEETS:
        if (arguments.folder / name).exists():
            with Image.open(arguments.folder / name) as sheet:
                save_jpeg(sheet, arguments.images / f"study-{name}", LONGEST)
    print(f"{arguments.out}: written", flush=True)


def _rounded(value: Any) -> Any:
    """Five digits are more than the figures are worth."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
