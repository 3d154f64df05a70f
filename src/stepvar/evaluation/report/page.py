"""``stepvar report``: one page that needs nothing beside itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from PIL import Image

from stepvar.evaluation.candidates import DENSE
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.metrics.scenes import EVERYTHING
from stepvar.evaluation.report.charts import Point, forest, scatter
from stepvar.evaluation.report.tables import categories, costs, notes, overview, title
from stepvar.evaluation.summary import FIDELITY, Rows, rows_by_method
from stepvar.media.images import read_image

PROMPTS_SHOWN = 4
"""Rows of small images for each group of methods."""

SIDE = 224
"""Pixels of a small image's longer side."""

EMBEDDED = 24_000_000
"""Bytes of images in full size on the page; those of the first prompt are there whatever they take."""

PROMPTS_EMBEDDED = 16
EQUAL_COST = 0.12
"""Methods whose operations differ by less than this share are shown beside each other."""

LOWER_IS_BETTER = frozenset({"gmsd", "lpips", "spectrum", "gram", "flicker"})
Results = Mapping[str, Any]


def page(results: Results, folder: RunFolder) -> str:
    """The HTML page of a run."""
    tables = rows_by_method(folder)
    return render_page(
        "report.html",
        title=title(results),
        info=results["info"],
        overview=overview(results),
        notes=notes(results),
        charts=fidelity_charts(results),
        semantic_chart=semantic_chart(results),
        categories=categories(results),
        costs=costs(results),
        viewer=viewer(results, folder, tables),
        groups=image_groups(results, folder, tables),
        maps=kept_maps(results, folder),
    )


def render_page(template: str, **values: Any) -> str:
    """A page from a template of this package; what goes into it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stepvar.evaluation.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)


def speedup(method: Mapping[str, Any]) -> dict[str, float] | None:
    """Of the loop over scales: measured where it was timed."""
    found: dict[str, float] | None = method["cost"].get("loop_speedup")
    return found


def fidelity_charts(results: Results) -> list[str]:
    """Each measure of fidelity, and the share that is right, against the speed-up."""
    methods = [method for method in results["methods"] if speedup(method)]
    names = [method["label"] for method in results["methods"]]
    floors = [method for method in results["methods"] if method["resampled"]]
    charts = []
    for name, label in FIDELITY.items():
        points = [(method, method["fidelity"][name]) for method in methods if name in method["fidelity"]]
        if points:
            levels = [(m["label"], m["fidelity"][name]["mean"]) for m in floors if name in m["fidelity"]]
            heading = f"{label[0].upper()}{label[1:]}, against the dense image"
            charts.append(quality_chart(heading, label, points, names, levels, name in LOWER_IS_BETTER))
    judged = [(method, mean_share(method["semantics"])) for method in methods if method["semantics"]]
    if judged:
        charts.append(quality_chart("Prompt accuracy (mean of the categories)", "share", judged, names))
    return charts


def mean_share(semantics: Mapping[str, Any]) -> dict[str, float]:
    """Mean over the single categories; the interval is that of the mean of independent ones."""
    categories = [found for name, found in semantics.items() if name != EVERYTHING]
    count = len(categories)
    mean = sum(found["mean"] for found in categories) / count
    below = sum((found["mean"] - found["low"]) ** 2 for found in categories) ** 0.5 / count
    above = sum((found["high"] - found["mean"]) ** 2 for found in categories) ** 0.5 / count
    return {"mean": mean, "low": mean - below, "high": mean + above}


def quality_chart(
    name: str,
    label: str,
    points: Sequence[tuple[Mapping[str, Any], Mapping[str, float]]],
    names: Sequence[str],
    levels: Sequence[tuple[str, float]] = (),
    lower_is_better: bool = False,
) -> str:
    """A scatter of (method, its interval) over speed-up; methods of one name, whatever their settings, share a line.

    Args:
        names: labels of all methods of the page, so that a method has one colour in all charts.
    """
    series: dict[str, list[Point]] = {}
    for method, found in points:
        fast = speedup(method)
        assert fast is not None  # only methods that were timed are given
        point = Point(fast["median"], found["mean"], (fast["p10"], fast["p90"]), (found["low"], found["high"]))
        series.setdefault(_family(method["label"]), []).append(point)
    order = list(dict.fromkeys(_family(name) for name in names))
    return scatter(name, label, series, order, levels, lower_is_better)


def _family(label: str) -> str:
    """A method's name without its settings."""
    return label.split()[0]


def semantic_chart(results: Results) -> str:
    """Per category how far methods are from dense; empty without a judge."""
    methods = [m for m in results["methods"] if m["semantics"] and m["label"] != DENSE.label and not m["resampled"]]
    rows: dict[str, dict[str, tuple[float, float, float]]] = {}
    for method in methods:
        for name in methods[0]["semantics"]:
            change = method["semantics"][name]["against_dense"]
            rows.setdefault(name, {})[method["label"]] = (
                100 * change["low"], 100 * change["mean"], 100 * change["high"],
            )  # fmt: skip
    label = "percentage points, on the same prompts and seeds"
    return forest("Difference from dense", label, rows) if rows else ""


def viewer(results: Results, folder: RunFolder, tables: Mapping[str, Rows]) -> dict[str, Any]:
    """Images in full size, by prompt and method, as they are on disk, for the first prompts that there is room for."""
    labels = [method["label"] for method in results["methods"]]
    prompts: list[dict[str, Any]] = []
    taken = 0
    for key, dense in list(tables[DENSE.label].items())[:PROMPTS_EMBEDDED]:
        rows = {label: tables[label].get(key, {}) for label in labels}
        files = {label: file.read_bytes() for label, row in rows.items() if (file := folder.image(row)) is not None}
        taken += sum(map(len, files.values()))
        if not files or (prompts and taken > EMBEDDED):
            break
        prompts.append(
            {
                "text": f"{dense.get('text', key[0])}, seed {key[1]}",
                "images": {label: _data_uri(content, "png") for label, content in files.items()},
                "psnr": {label: rows[label]["psnr"] for label in files if "psnr" in rows[label]},
            }
        )
    return {"labels": labels, "prompts": prompts}


def image_groups(results: Results, folder: RunFolder, tables: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """For each group of methods of equal cost: a row of small images per prompt, dense first."""
    keys = [key for key, row in tables[DENSE.label].items() if folder.image(row) is not None][:PROMPTS_SHOWN]
    groups = []
    for name, labels in equal_cost(results["methods"]):
        rows = []
        for key in keys:
            shown = {label: tables.get(label, {}).get(key, {}) for label in [DENSE.label, *labels]}
            images = [
                small_image(read_image(file), _caption(label, row))
                for label, row in shown.items()
                if (file := folder.image(row)) is not None
            ]
            rows.append({"text": f"{tables[DENSE.label][key].get('text', key[0])}, seed {key[1]}", "images": images})
        groups.append({"name": name, "rows": rows})
    return groups if keys else []


def equal_cost(methods: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Methods grouped by their operations, cheapest last; without timed runs, which count them, all are one group."""
    others = [method for method in methods if method["label"] != DENSE.label]
    counted = sorted((m["cost"]["flop_speedup"], m["label"]) for m in others if m["cost"])
    if not counted:
        return [("All methods (not timed)", [method["label"] for method in others])] if others else []
    groups: list[list[tuple[float, str]]] = []
    for times, label in counted:
        if groups and times <= groups[-1][0][0] * (1 + EQUAL_COST):
            groups[-1].append((times, label))
        else:
            groups.append([(times, label)])
    named = []
    for group in groups:
        low, high = f"{group[0][0]:.2f}", f"{group[-1][0]:.2f}"
        span = low if low == high else f"{low} to {high}"
        named.append((f"{span} times fewer operations in the loop than dense", [label for _, label in group]))
    return named


def kept_maps(results: Results, folder: RunFolder) -> list[list[dict[str, str]]]:
    """Of the first prompts: what each method kept at the last pruned scale, over its image."""
    rows: dict[str, list[dict[str, str]]] = {}
    for method in results["methods"]:
        for file in sorted(folder.place("kept", method["label"]).glob("*.png")):
            rows.setdefault(file.stem, []).append(small_image(read_image(file), method["label"]))
    return list(rows.values())


def _caption(label: str, row: Mapping[str, Any]) -> str:
    return f"{label}, {row['psnr']:.1f} dB" if "psnr" in row else label


def small_image(small: Image.Image, caption: str) -> dict[str, str]:
    """An image as a page holds it, made small in place."""
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=88)
    return {"uri": _data_uri(buffer.getvalue(), "jpeg"), "caption": caption}


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
