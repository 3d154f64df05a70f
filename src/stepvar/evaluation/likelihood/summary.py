"""From a manifest of likelihoods to figures with intervals, tables and a chart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepvar.errors import UsageError
from stepvar.evaluation.candidates import DENSE
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.report.charts import forest
from stepvar.evaluation.report.tables import Cells, is_certain, to_markdown
from stepvar.evaluation.statistics import bootstrap, paired
from stepvar.evaluation.summary import Rows, rows_by_method
from stepvar.utils.files import write_text

Results = Mapping[str, Any]

NOTE = (
    "Bits per image are those of the codes that the tokenizer gives for it, under teacher forcing: each scale is "
    "predicted from the real coarser ones, and pruned as in a generation. Fewer is better. Intervals are 95 % "
    "bootstrap intervals over images, of the difference from dense on the same images. The divergence is "
    "Kullback-Leibler's, of the method's logits from the dense ones, in bits per image: 0 means that the method "
    "predicts what dense predicts, whatever the image. Tokens are those that run through the blocks."
)


def summarise(folder: RunFolder) -> dict[str, Any]:
    """All figures of a run, from what is in its manifest so far.

    Raises:
        UsageError: if no image was measured densely yet.
    """
    tables, settings = rows_by_method(folder), folder.settings
    dense = tables.get(DENSE.label)
    if not dense:
        raise UsageError(f"{folder.path}: no image measured yet; run stepvar eval --likelihood")
    most = next(entry["tokens"] for entry in settings["methods"] if entry["label"] == DENSE.label)
    methods = [
        {**entry, "share": entry["tokens"] / most, **_figures(tables[entry["label"]], dense, settings["scales"])}
        for entry in settings["methods"]
        if entry["label"] in tables
    ]
    kept = ("model", "device", "dtype", "images", "scales", "settings", "notes")
    return {"info": folder.info, **{name: settings[name] for name in kept}, "methods": methods}


def _figures(rows: Rows, dense: Rows, scales: Sequence[str]) -> dict[str, Any]:
    compared = rows is not dense
    return {
        "count": len(rows),
        **_sums(rows, dense, slice(None), compared),
        "by_scale": [
            {"scale": name, **_sums(rows, dense, slice(place, place + 1), compared)}
            for place, name in enumerate(scales)
        ],
    }


def _sums(rows: Rows, dense: Rows, scales: slice, compared: bool) -> dict[str, Any]:
    """Bits over some scales; if it is not dense itself, their change from dense and the divergence, too."""
    keys = [key for key in rows if key in dense]
    groups = [name for name, _ in keys]
    own, other = ([sum(table[key]["bits"][scales]) for key in keys] for table in (rows, dense))
    found = {"bits": bootstrap(own, groups).to_dict()}
    if compared:
        found["against_dense"] = paired(own, other, groups).to_dict()
        found["divergence"] = bootstrap([sum(rows[key]["divergence"][scales]) for key in keys], groups).to_dict()
    return found


def write_results(folder: RunFolder) -> Path:
    """Writes ``results.json`` into the folder of the run."""
    path = folder.path / "results.json"
    write_text(path, json.dumps(summarise(folder), indent=1, allow_nan=False) + "\n")
    return path


def title(results: Results) -> str:
    images, settings = results["images"], results["settings"]
    given = "with captions" if images["captioned"] else "unconditional"
    guidance = settings["guidance_scale"]
    if images["captioned"] and guidance != 1:
        given += f", guidance {guidance}"
    count = results["methods"][-1]["count"]  # of a run that is not finished, fewer than there are
    return f"{results['model']}: likelihood of {count} images of {images['source']}, {given}"


def overview(results: Results) -> Cells:
    """One row per method: tokens, bits per image, the change from dense, and the divergence."""
    head = ["method", "tokens", "bits per image", "change from dense, bits", "change", "divergence from dense, bits"]
    rows = []
    dense = results["methods"][0]["bits"]["mean"]
    for method in results["methods"]:
        row = [method["label"], f"{100 * method['share']:.0f} %", f"{method['bits']['mean']:,.0f}"]
        change = method.get("against_dense")
        if change is None:
            row += ["reference", "", ""]
        else:
            row += [_signed(change), f"{100 * change['mean'] / dense:+.2f} %", _plain(method["divergence"])]
        rows.append(row)
    return [head, *rows]


def by_scale(results: Results) -> Cells:
    """Bits of dense per scale, and of every method the change where it is certain."""
    scales = results["scales"]
    rows = []
    for method in results["methods"]:
        cells = []
        for one in method["by_scale"]:
            change = one.get("against_dense")
            if change is None:
                cells.append(f"{one['bits']['mean']:,.1f}")
            else:
                cells.append(f"{change['mean']:+,.1f}" if is_certain(change) else "")
        rows.append([method["label"], *cells])
    return [["change by scale, bits", *scales], *rows]


def divergence_by_scale(results: Results) -> Cells:
    """Divergence from dense per scale, where there is any."""
    rows = [
        [method["label"], *(_some(one["divergence"]["mean"]) for one in method["by_scale"])]
        for method in results["methods"]
        if "divergence" in method
    ]
    return [["divergence by scale, bits", *results["scales"]], *rows] if rows else []


def chart(results: Results) -> str:
    """Change from dense by scale, with intervals, for the scales where some method changes anything; SVG."""
    methods = [method for method in results["methods"] if "against_dense" in method]
    rows: dict[str, dict[str, tuple[float, float, float]]] = {}
    for place, scale in enumerate(results["scales"]):
        changes = {method["label"]: method["by_scale"][place]["against_dense"] for method in methods}
        if any(change["low"] or change["high"] for change in changes.values()):
            rows[f"{scale} tokens"] = {label: (one["low"], one["mean"], one["high"]) for label, one in changes.items()}
    return forest("Bits per image beyond dense, by scale", "bits, on the same images", rows) if rows else ""


def notes(results: Results) -> list[str]:
    return [NOTE, *(f"{name}: {text}" for name, text in results["notes"].items())]


def markdown(results: Results) -> str:
    """All tables, with their notes."""
    return "\n".join([f"# {title(results)}\n", tables(results), *(f"{note}\n" for note in notes(results))])


def tables(results: Results) -> str:
    """All figures: over all scales, and by scale."""
    cells = (overview(results), by_scale(results), divergence_by_scale(results))
    return "\n".join(filter(None, map(to_markdown, cells)))


def _signed(found: Mapping[str, float]) -> str:
    return f"{found['mean']:+,.1f} ({found['low']:+,.1f} to {found['high']:+,.1f})"


def _plain(found: Mapping[str, float]) -> str:
    return f"{found['mean']:,.1f} ({found['low']:,.1f}-{found['high']:,.1f})"


def _some(value: float) -> str:
    return f"{value:,.1f}" if value >= 0.05 else ""
