"""From a manifest to figures: what ``results.json`` holds, and what tables and pages are made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepvar.errors import UsageError
from stepvar.evaluation.candidates import DENSE
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.metrics.distribution import frechet_distance, kernel_distance
from stepvar.evaluation.metrics.scenes import CATEGORIES, decode_features
from stepvar.evaluation.metrics.sets import read_sets
from stepvar.evaluation.run import RENDERS
from stepvar.evaluation.scenes.clips.judge import ATTRIBUTES
from stepvar.evaluation.statistics import bootstrap, paired, percentiles
from stepvar.utils.files import write_text

FIDELITY = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "gmsd": "GMSD",
    "haarpsi": "HaarPSI",
    "lpips": "LPIPS",
    "cvvdp": "ColorVideoVDP, JOD",
    "high_frequency": "detail left",
    "spectrum": "patch spectrum, dB",
    "gram": "Gram distance",
    "flicker": "flicker added",
    "motion": "moves the same way",
}
"""Measures of fidelity and their names in tables; the last two are of videos."""

ASKED = tuple(dict.fromkeys((*CATEGORIES, *ATTRIBUTES)))
"""What is asked of images and of clips."""

Row = Mapping[str, Any]
Rows = dict[tuple[str, int], Row]
"""Of one method: by prompt and seed."""


def summarise(folder: RunFolder) -> dict[str, Any]:
    """All figures of a run, with confidence intervals over prompts, from what is in its manifest so far.

    Raises:
        UsageError: if no dense image was generated yet.
    """
    by_method = rows_by_method(folder)
    dense = by_method.get(DENSE.label)
    if not dense:
        raise UsageError(f"{folder.path}: no dense image yet, to which others could be compared; run stepvar eval")
    renders = by_method.pop(RENDERS, {})
    sets = read_sets(folder)
    settings = folder.described
    described = {entry["label"]: entry for entry in settings["methods"]}
    methods = []
    for label in [DENSE.label, *(name for name in described if name != DENSE.label and name in by_method)]:
        rows = by_method[label]
        entry: dict[str, Any] = {
            **described.get(label, {"label": label, "settings": "", "resampled": 0}),
            "images": len(rows),
        }
        entry["fidelity"] = _fidelity(rows) if label != DENSE.label else {}
        entry["semantics"] = semantics(rows, dense)
        entry["scores"] = _scores(rows, dense)
        entry["sets"] = _sets(rows, renders) | sets.get(label, {})
        entry["cost"] = cost(folder.timing, label)
        methods.append(entry)
    ceiling = {name: _share(renders, name) for name in ASKED} if renders else {}
    return {
        "model": settings["model"],
        "prompts": settings["prompts"],
        "seeds": settings["seeds"],
        "info": folder.info,
        "device": settings["device"],
        "notes": settings["notes"],
        "judge_on_renders": {name: share for name, share in ceiling.items() if share is not None},
        "methods": methods,
    }


def write_results(folder: RunFolder) -> Path:
    """Writes ``results.json`` into the folder of the run."""
    path = folder.path / "results.json"
    write_text(path, json.dumps(summarise(folder), indent=1, allow_nan=False) + "\n")
    return path


def rows_by_method(folder: RunFolder) -> dict[str, Rows]:
    table: dict[str, Rows] = {}
    for (method, prompt, seed), row in folder.rows.items():
        table.setdefault(method, {})[(prompt, seed)] = row
    return table


def _fidelity(rows: Rows) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in FIDELITY:
        measured = {key: row[name] for key, row in rows.items() if name in row}
        if measured:
            found[name] = bootstrap(list(measured.values()), [prompt for prompt, _ in measured]).to_dict()
    return found


def semantics(rows: Rows, dense: Rows) -> dict[str, Any]:
    """Per category the share that is right, and the difference from dense on the same prompts and seeds."""
    return _each(rows, dense, "right", ASKED)


def _scores(rows: Rows, dense: Rows) -> dict[str, Any]:
    return _each(rows, dense, "scores", sorted({name for row in rows.values() for name in row.get("scores", {})}))


def _each(rows: Rows, dense: Rows, kind: str, names: Sequence[str]) -> dict[str, Any]:
    def of(name: str) -> Callable[[Row], float | None]:
        return lambda row: row.get(kind, {}).get(name)

    found = {name: compared(rows, dense, of(name)) for name in names}
    return {name: figures for name, figures in found.items() if figures}


def compared(rows: Rows, dense: Rows, value: Callable[[Row], float | None]) -> dict[str, Any]:
    """The mean of a value with its interval, and that of its difference from dense; empty where no row has it."""
    keys = [key for key, row in rows.items() if key in dense and value(row) is not None]
    keys = [key for key in keys if value(dense[key]) is not None]
    if not keys:
        return {}
    groups = [prompt for prompt, _ in keys]
    own, reference = ([float(value(table[key]) or 0.0) for key in keys] for table in (rows, dense))
    return {**bootstrap(own, groups).to_dict(), "against_dense": paired(own, reference, groups).to_dict()}


def accuracy(row: Row) -> float | None:
    """The share of what is asked about an image that is right; None where nothing is asked."""
    right = row.get("right", {})
    return float(np.mean(list(right.values()))) if right else None


def _sets(rows: Rows, renders: Rows) -> dict[str, float]:
    """Distances between all images of a method and real renders of the same scenes, by the judge's features."""
    if min(len(rows), len(renders)) < 2 or not all("features" in row for row in rows.values()):
        return {}
    if rows.keys() - renders.keys():
        return {}  # the renders of the last batch are not there yet
    own, real = (decode_features([table[key]["features"] for key in rows]) for table in (rows, renders))
    return {
        "judge-FID": frechet_distance(own, real),
        "judge-KID": kernel_distance(own, real, matched=True),
    }


def _share(rows: Rows, name: str) -> float | None:
    values = [float(row["right"][name]) for row in rows.values() if name in row["right"]]
    return float(np.mean(values)) if values else None


def cost(timing: Sequence[Row], label: str, references: Sequence[str] = (DENSE.label,)) -> dict[str, Any]:
    """Times per image and speed-ups, each round compared with the dense run of the same round.

    Args:
        references: labels that are dense; of several in a round the mean counts.
    """
    own, dense = _by_round(timing, (label,)), _by_round(timing, references)
    rounds = sorted(own.keys() & dense.keys())
    if not rounds:
        return {}
    found: dict[str, Any] = {"rounds": len(rounds)}
    for name in ("loop", "decode", "total"):
        found[f"{name}_seconds"] = percentiles([_per_image(own[n], name) for n in rounds])
    for name in ("loop", "total"):
        found[f"{name}_speedup"] = percentiles(speedups(timing, label, references, name))
    flops, dense_flops = _flops(timing, (label,)), _flops(timing, references)
    found["flops"], found["flop_speedup"] = flops, dense_flops / flops
    first, reference = own[rounds[0]][0], dense[rounds[0]][0]
    found["kept_share"] = first["kept"] / reference["kept"]
    found["memory"] = None if first["memory"] is None else max(row["memory"] for n in rounds for row in own[n])
    return found


def speedups(
    timing: Sequence[Row], label: str, references: Sequence[str] = (DENSE.label,), name: str = "loop"
) -> list[float]:
    """How many times as fast as dense each round was, by the time of an image.

    A method that decides by the image generates those of a batch one by one, so that a round has a row for each.

    Args:
        references: labels that are dense; of several in a round the mean counts.
        name: of the time: ``loop``, ``decode`` or ``total``.
    """
    own, dense = _by_round(timing, (label,)), _by_round(timing, references)
    return [_per_image(dense[n], name) / _per_image(own[n], name) for n in sorted(own.keys() & dense.keys())]


def _by_round(timing: Sequence[Row], labels: Sequence[str]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in timing:
        if row["method"] in labels:
            found.setdefault(row["round"], []).append(row)
    return found


def _per_image(rows: Sequence[Row], name: str) -> float:
    return float(sum(row[name] for row in rows) / sum(row["samples"] for row in rows))


def _flops(timing: Sequence[Row], labels: Sequence[str]) -> float:
    """Operations per image, from the run that they were counted of."""
    return next(float(row["flops"] / row["samples"]) for row in timing if row["method"] in labels and "flops" in row)
