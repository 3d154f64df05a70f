"""From the folder of a study to its figures: ``python -m benchmarks.study.summary runs/study``.

Reads all parts and shards and writes ``benchmarks/results/study.json``, from which ``python -m benchmarks.tables``
makes the tables and charts of the documentation; sheets of images go to ``docs/images``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.joined import join
from benchmarks.study.__main__ import AGAIN, SET_GROUPS
from benchmarks.study.candidates import ABLATED
from benchmarks.study.contrasts import contrasts, default_of
from benchmarks.study.gallery import write_sheets
from stepvar.evaluation.candidates import DENSE
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.metrics.distribution import frechet_distance, kernel_distance
from stepvar.evaluation.metrics.scenes import EVERYTHING, decode_features
from stepvar.evaluation.run import RENDERS
from stepvar.evaluation.statistics import Interval, bootstrap, paired
from stepvar.evaluation.summary import Row, Rows, compared, cost, semantics
from stepvar.utils.files import write_text

ROOT = Path(__file__).parents[2]
DENSE_KEY = "dense/dense"
MEASURES = {
    "psnr": "psnr",
    "ssim": "ssim",
    "share": "high_frequency",
    "gmsd": "gmsd",
    "haarpsi": "haarpsi",
    "spectrum": "spectrum",
    "questions": "questions",
}
"""What is compared, by its name in the figures, and where it is in the manifest."""

OF_EQUAL = {"psnr": 99.0, "gmsd": 0.0, "spectrum": 0.0}
"""What a measure is for dense itself; 1 for the others."""


@dataclass
class Study:
    """What was measured in all parts and shards.

    Attributes:
        settings: of the study; those of all parts are the same.
        info: machine and command of the first part.
        entries: candidates by key, as :meth:`benchmarks.study.candidates.Entry.to_dict` gives them.
        rows: of the manifests, by candidate.
        timing: one row per timed batch; rounds are numbered across the parts.
    """

    settings: dict[str, Any]
    info: dict[str, Any]
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)
    timing: list[Row] = field(default_factory=list)

    @classmethod
    def read(cls, folders: Sequence[RunFolder]) -> Study:
        """All folders as one study.

        Raises:
            UsageError: if there are none, or they come from runs with other settings.
        """
        joined = join(folders, "study")
        entries = {key: entry for folder in folders for key, entry in folder.settings["entries"].items()}
        return cls(joined.settings, joined.info, entries, joined.rows, joined.timing)

    @property
    def dense(self) -> Rows:
        return self.rows[DENSE.label]

    def values(self, key: str, name: str, chosen: Sequence[tuple[str, int]] = ()) -> list[float]:
        """One number per image: a measure, or ``questions``, the share of what is asked that is right."""
        rows = self.rows[key]
        return [value_of(rows[image], name) for image in (chosen or rows)]


def value_of(row: Row, name: str) -> float:
    """A measure of one image; dense is equal to itself."""
    if name == "questions":
        return float(np.mean([right for name, right in row["right"].items() if name != EVERYTHING]))
    return float(row[MEASURES[name]] if "psnr" in row else OF_EQUAL.get(name, 1.0))


def summarise(study: Study) -> dict[str, Any]:
    """All figures of a study that the documentation needs."""
    dense = {"group": "dense", "label": "dense", "budget": None, "knob": None, "speedup": 1.0}
    entries = {key: entry for key, entry in study.entries.items() if key in study.rows}
    return {
        "info": {**study.info, "settings": study.settings} | _checks(study),
        "renders": semantics(study.rows[RENDERS], study.dense),
        "entries": {DENSE_KEY: _entry(study, DENSE.label, dense)}
        | {key: _entry(study, key, entry) for key, entry in entries.items()},
        "contrasts": [
            _contrast(study, question, one, other)
            for question, one, other in contrasts()
            if one in entries and other in entries
        ],
    }


def _checks(study: Study) -> dict[str, Any]:
    """How many images there are, and what dense generated twice says about clock and random numbers."""
    again = cost(study.timing, AGAIN.label)
    ratios = again["loop_speedup"]
    return {
        "images": len(study.dense),
        "prompts_done": len({prompt for prompt, _ in study.dense}),
        "variant_images": max((len(study.rows[key]) for key in _variants(study)), default=0),
        "rounds": again["rounds"],
        "seeds_done": sorted({seed for _, seed in study.dense}),
        "same_method": _same_method(study),
        "dense_again_psnr": min(study.values(AGAIN.label, "psnr")),
        "dense_again_time": {"median": 1 / ratios["median"], "p10": 1 / ratios["p90"], "p90": 1 / ratios["p10"]},
        "dense_image_ms": _milliseconds(again["loop_seconds"]),
        "decode_image_ms": _milliseconds(again["decode_seconds"]),
    }


def _variants(study: Study) -> list[str]:
    """Candidates that vary a setting and have run."""
    return [key for key, entry in study.entries.items() if entry["group"] not in SET_GROUPS and key in study.rows]


def _milliseconds(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: 1e3 * value for name, value in seconds.items()}


def _measured(study: Study, key: str) -> dict[str, Any]:
    """Speed-up of the loop, batch by batch, over the mean of both dense runs of the batch."""
    return cost(study.timing, key, (DENSE.label, AGAIN.label))


def _same_method(study: Study) -> dict[str, Any]:
    """StepVAR as it is by default stands in several groups: what the clock says of one and the same work."""
    wanted = study.entries.get(f"methods/stepvar@{ABLATED}", {}).get("settings")
    keys = [key for key, entry in study.entries.items() if entry["settings"] == wanted and key in study.rows]
    medians = [_measured(study, key)["loop_speedup"]["median"] for key in keys]
    return {"times": len(keys), "lowest": min(medians), "highest": max(medians)} if keys else {"times": 0}


def _entry(study: Study, key: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    rows, timed = study.rows[key], _measured(study, key)
    prompts = [prompt for prompt, _ in rows]
    found = {name: entry[name] for name in ("group", "label", "budget", "knob", "speedup")}
    found["images"] = len(rows)
    for name in MEASURES:
        found[name] = bootstrap(study.values(key, name), prompts).to_dict()
    found["worst_tenth"] = float(np.quantile(study.values(key, "psnr"), 0.1))
    found["measured"] = timed["loop_speedup"]
    found["categories"] = semantics(rows, study.dense)
    accuracy = compared(rows, study.dense, lambda row: value_of(row, "questions"))
    found["questions_against_dense"] = accuracy["against_dense"]
    if entry["group"] in (*SET_GROUPS, "dense") and len(rows) > 1:
        own, real = (
            decode_features([table[name]["features"] for name in rows]) for table in (rows, study.rows[RENDERS])
        )
        found["judge_fid"] = frechet_distance(own, real)
        found["judge_kid"] = kernel_distance(own, real, matched=True)
    default = default_of(entry["group"])
    if entry["group"] not in (*SET_GROUPS, "dense") and default in study.rows:
        found["psnr_against_default"] = _difference(study, "psnr", key, default).to_dict()
    return found | ({} if timed["memory"] is None else {"memory": timed["memory"]})


def _contrast(study: Study, question: str, one: str, other: str) -> dict[str, Any]:
    """All differences of a pair."""
    differences = {name: _difference(study, name, one, other) for name in MEASURES}
    found: dict[str, Any] = {"question": question, "one": one, "other": other, "images": differences["psnr"].count}
    return found | {name: difference.to_dict() for name, difference in differences.items()}


def _difference(study: Study, name: str, one: str, other: str) -> Interval:
    """Of one measure, on the images that both have."""
    shared = [image for image in study.rows[one] if image in study.rows[other]]
    first, second = (study.values(key, name, shared) for key in (one, other))
    return paired(first, second, [prompt for prompt, _ in shared])


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.summary", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "study.json")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args(given)
    folders = [RunFolder.read(path.parent) for path in sorted(arguments.folder.glob("*/run.json"))]
    text = json.dumps(_rounded(summarise(Study.read(folders))), indent=1, allow_nan=False)
    write_text(arguments.out, text + "\n")
    for folder in folders:
        write_sheets(folder, arguments.images)
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
