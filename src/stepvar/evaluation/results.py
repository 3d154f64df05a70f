"""From a manifest to figures: what ``results.json`` holds, and what tables and pages are made from."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.evaluation.distribution import Moments, frechet_distance, kernel_distance
from stepvar.evaluation.drawing import DENSE
from stepvar.evaluation.evaluate import RENDERS
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.scene_scores import CATEGORIES
from stepvar.evaluation.scenes.clips.judge import ATTRIBUTES
from stepvar.evaluation.sets import read_sets
from stepvar.evaluation.statistics import bootstrap, paired, percentiles
from stepvar.utils.files import write_text

FIDELITY = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "high_frequency": "detail left",
    "flicker": "flicker added",
    "motion": "moves the same way",
}
"""Measures of fidelity and their names in tables; the last two are of videos."""

ASKED = tuple(dict.fromkeys((*CATEGORIES, *ATTRIBUTES)))
"""What is asked of pictures and of clips."""

Row = Mapping[str, Any]
Rows = dict[tuple[str, int], Row]
"""Of one method: by prompt and seed."""


def summarise(folder: RunFolder) -> dict[str, Any]:
    """All figures of a run, with confidence intervals over prompts, from what is in its manifest so far.

    Raises:
        UsageError: if no dense picture was drawn yet.
    """
    by_method = rows_by_method(folder)
    dense = by_method.get(DENSE.label)
    if not dense:
        raise UsageError(f"{folder.path}: no dense picture yet, to which others could be compared; run stepvar eval")
    renders = by_method.pop(RENDERS, {})
    sets = read_sets(folder)
    described = {entry["label"]: entry for entry in folder.settings["methods"]}
    methods = []
    for label in [DENSE.label, *(name for name in described if name != DENSE.label and name in by_method)]:
        rows = by_method[label]
        entry: dict[str, Any] = {**described[label], "pictures": len(rows)}
        entry["fidelity"] = _fidelity(rows) if label != DENSE.label else {}
        entry["semantics"] = semantics(rows, dense)
        entry["scores"] = _scores(rows, dense)
        entry["sets"] = _sets(rows, renders) | sets.get(label, {})
        entry["cost"] = cost(folder.timing, label)
        methods.append(entry)
    ceiling = {name: _share(renders, name) for name in ASKED} if renders else {}
    return {
        "model": folder.settings["model"],
        "prompts": folder.settings["prompts"],
        "seeds": folder.settings["seeds"],
        "device": folder.settings["device"],
        "notes": folder.settings["notes"],
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
    found = {}
    for name in ASKED:
        keys = [key for key, row in rows.items() if name in row.get("right", {}) and key in dense]
        if not keys:
            continue
        groups = [prompt for prompt, _ in keys]
        values = [float(rows[key]["right"][name]) for key in keys]
        reference = [float(dense[key]["right"][name]) for key in keys]
        found[name] = {
            **bootstrap(values, groups).to_dict(),
            "against_dense": paired(values, reference, groups).to_dict(),
        }
    return found


def _scores(rows: Rows, dense: Rows) -> dict[str, Any]:
    names = sorted({name for row in rows.values() for name in row.get("scores", {})})
    found = {}
    for name in names:
        keys = [key for key in rows if key in dense and all(name in t[key].get("scores", {}) for t in (rows, dense))]
        if not keys:
            continue
        groups = [prompt for prompt, _ in keys]
        values, reference = ([table[key]["scores"][name] for key in keys] for table in (rows, dense))
        found[name] = {
            **bootstrap(values, groups).to_dict(),
            "against_dense": paired(values, reference, groups).to_dict(),
        }
    return found


def _sets(rows: Rows, renders: Rows) -> dict[str, float]:
    """Distances between all pictures of a method and real renders of the same scenes, by the judge's features."""
    if min(len(rows), len(renders)) < 2 or not all("features" in row for row in rows.values()):
        return {}
    if rows.keys() - renders.keys():
        return {}  # the renders of the last batch are not there yet
    own, real = features_of(rows), features_of({key: renders[key] for key in rows})
    return {
        "judge-FID": frechet_distance(Moments.of(own), Moments.of(real)),
        "judge-KID": kernel_distance(own, real, matched=True),
    }


def features_of(rows: Rows) -> Tensor:
    """(pictures, features), as they are stored."""
    stored = [np.frombuffer(base64.b64decode(row["features"]), dtype="<f2") for row in rows.values()]
    return torch.from_numpy(np.stack(stored).astype(np.float64))


def _share(rows: Rows, name: str) -> float | None:
    values = [float(row["right"][name]) for row in rows.values() if name in row["right"]]
    return float(np.mean(values)) if values else None


def cost(timing: Sequence[Row], label: str) -> dict[str, Any]:
    """Times per picture and speed-ups, each round compared with the dense run of the same round."""
    own = {row["round"]: row for row in timing if row["method"] == label}
    dense = {row["round"]: row for row in timing if row["method"] == DENSE.label}
    rounds = sorted(own.keys() & dense.keys())
    if not rounds:
        return {}
    found: dict[str, Any] = {"rounds": len(rounds)}
    for name in ("loop", "decode", "total"):
        found[f"{name}_seconds"] = percentiles([own[n][name] / own[n]["samples"] for n in rounds])
    for name in ("loop", "total"):
        found[f"{name}_speedup"] = percentiles([dense[n][name] / own[n][name] for n in rounds])
    first, reference = own[rounds[0]], dense[rounds[0]]
    found["flops"] = first["flops"] / first["samples"]
    found["flop_speedup"] = reference["flops"] / first["flops"]
    found["kept_share"] = first["kept"] / reference["kept"]
    found["memory"] = None if first["memory"] is None else max(own[n]["memory"] for n in rounds)
    return found
