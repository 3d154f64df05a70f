"""``stepvar report``: one page that needs nothing beside itself; pictures are data URIs, plots inline SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from stepvar.evaluation.charts import Point, Series, forest, scatter
from stepvar.evaluation.drawing import DENSE
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.frames import read_frames
from stepvar.evaluation.results import FIDELITY, Rows, rows_by_method
from stepvar.evaluation.statistics import pareto_front
from stepvar.evaluation.tables import categories, costs, notes, overview, title, to_html

PROMPTS_SHOWN = 4
SIDE = 224
"""Pixels of a picture's longer side on the page."""

EQUAL_COST = 0.12
"""Methods whose operations differ by less than this share are shown beside each other."""

LOWER_IS_BETTER = frozenset({"lpips", "flicker"})

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap }
th:first-child { text-align: left } svg { max-width: 100%; height: auto; border-radius: 6px }
figure { margin: 0; display: inline-block; vertical-align: top; width: 168px }
figure img { width: 100%; display: block; border-radius: 4px }
figcaption { font-size: 12px; overflow-wrap: anywhere; margin: .2rem 0 .6rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(560px, 1fr)); gap: 12px }
.row { display: flex; gap: 8px; overflow-x: auto; margin-bottom: .4rem }
.prompt, .note { color: #777; font-size: 13px }
"""


def page(results: Mapping[str, Any], folder: RunFolder) -> str:
    """The HTML page of a run."""
    parts = [
        "<h1>Accelerated generation, compared with dense</h1>",
        f'<p class="note">{escape(title(results))}</p>',
        to_html(overview(results)),
        *(f'<p class="note">{escape(note)}</p>' for note in notes(results)),
        *_section("Quality against speed-up", [f'<div class="charts">{"".join(_charts(results))}</div>']),
        *_section("What the prompts ask for", [_semantic_chart(results), to_html(categories(results))]),
        *_section("Time and memory", [to_html(costs(results))]),
        *_section("Pictures at equal cost", _grids(results, folder)),
        *_section("Tokens that were kept", _maps(results, folder)),
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>stepvar report</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _section(name: str, parts: Sequence[str]) -> list[str]:
    """A heading and its parts; nothing if all are empty."""
    shown = [part for part in parts if part]
    return [f"<h2>{name}</h2>", *shown] if shown else []


def speedup(method: Mapping[str, Any]) -> dict[str, float] | None:
    """Of the loop over scales: measured where it was timed."""
    found: dict[str, float] | None = method["cost"].get("loop_speedup")
    return found


def _charts(results: Mapping[str, Any]) -> list[str]:
    methods = [method for method in results["methods"] if speedup(method)]
    names = [method["label"] for method in results["methods"]]
    floors = [method for method in results["methods"] if method["redrawn"]]
    charts = []
    for name, label in FIDELITY.items():
        measured = [method for method in methods if name in method["fidelity"]]
        if measured:
            levels = [(m["label"], m["fidelity"][name]["mean"]) for m in floors if name in m["fidelity"]]
            points = [(method, method["fidelity"][name]) for method in measured]
            heading = f"{label}, against the dense picture"
            charts.append(quality_chart(heading, label, points, names, levels, name in LOWER_IS_BETTER))
    judged = [method for method in methods if method["semantics"]]
    if judged:
        points = [(method, mean_share(method["semantics"])) for method in judged]
        charts.append(quality_chart("What is asked for is right (mean of the categories)", "share", points, names))
    return charts


def mean_share(semantics: Mapping[str, Any]) -> dict[str, float]:
    """Mean over the categories; the interval is that of the mean of independent ones."""
    count = len(semantics)
    mean = sum(found["mean"] for found in semantics.values()) / count
    below = sum((found["mean"] - found["low"]) ** 2 for found in semantics.values()) ** 0.5 / count
    above = sum((found["high"] - found["mean"]) ** 2 for found in semantics.values()) ** 0.5 / count
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
    families: dict[str, list[Point]] = {}
    for method, found in points:
        fast = speedup(method)
        assert fast is not None
        text = f"{method['label']}: {fast['median']:.2f}x, {found['mean']:.4g}"
        point = Point(fast["median"], found["mean"], (fast["p10"], fast["p90"]), (found["low"], found["high"]), text)
        families.setdefault(family_of(method["label"]), []).append(point)
    order = list(dict.fromkeys(family_of(name) for name in names))
    every = [point for own in families.values() for point in own]
    sign = -1 if lower_is_better else 1
    front = [every[i] for i in pareto_front([(-point.x, sign * point.y) for point in every])]
    return scatter(
        name,
        "speed-up of the loop over scales, measured",
        label,
        [Series(family, own, order.index(family)) for family, own in families.items()],
        sorted((point.x, point.y) for point in front),
        levels,
    )


def family_of(label: str) -> str:
    """A method's name without its settings."""
    return label.split()[0]


def _semantic_chart(results: Mapping[str, Any]) -> str:
    methods = [m for m in results["methods"] if m["semantics"] and m["label"] != DENSE.label and not m["redrawn"]]
    if not methods:
        return ""
    rows = []
    for name in methods[0]["semantics"]:
        points = []
        for method in methods:
            change = method["semantics"][name]["against_dense"]
            low, mean, high = (100 * change[key] for key in ("low", "mean", "high"))
            text = f"{method['label']}: {mean:+.1f} ({low:+.1f} to {high:+.1f})"
            points.append(Point(mean, 0.0, (low, high), (0.0, 0.0), text))
        rows.append((name, points))
    labels = [method["label"] for method in methods]
    return forest("Difference from dense on the same prompts and seeds", "percentage points", rows, labels)


def _grids(results: Mapping[str, Any], folder: RunFolder) -> list[str]:
    """For each group of methods of equal cost: a row per prompt, dense first."""
    tables = rows_by_method(folder)
    keys = list(tables[DENSE.label])[:PROMPTS_SHOWN]
    parts = []
    for name, labels in equal_cost(results["methods"]):
        parts.append(f"<h3>{escape(name)}</h3>")
        for key in keys:
            shown = [label for label in [DENSE.label, *labels] if key in tables.get(label, {})]
            figures = [_figure(folder, tables[label], key, label) for label in shown]
            text = escape(f"{tables[DENSE.label][key].get('text', key[0])}, seed {key[1]}")
            parts.append(f'<p class="prompt">{text}</p><div class="row">{"".join(figures)}</div>')
    return parts


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


def _figure(folder: RunFolder, rows: Rows, key: tuple[str, int], label: str) -> str:
    row = rows[key]
    frames = read_frames(folder.path / row["image"])
    measured = f", {row['psnr']:.1f} dB" if "psnr" in row else ""
    return _captioned(Image.fromarray(frames[len(frames) // 2]), f"{label}{measured}")


def _maps(results: Mapping[str, Any], folder: RunFolder) -> list[str]:
    """Of the first prompts: what each method kept at the last pruned scale, over its picture."""
    files: dict[str, list[tuple[str, Path]]] = {}
    for method in results["methods"]:
        place = folder.place("kept", method["label"])
        for file in sorted(place.glob("*.png")):
            files.setdefault(file.stem, []).append((method["label"], file))
    parts = []
    for own in files.values():
        figures = []
        for label, file in own:
            with Image.open(file) as image:
                figures.append(_captioned(image.convert("RGB"), label))
        parts.append(f'<div class="row">{"".join(figures)}</div>')
    return parts


def _captioned(image: Image.Image, caption: str) -> str:
    text = escape(caption)
    return f'<figure><img alt="{text}" src="{data_uri(image)}"><figcaption>{text}</figcaption></figure>'


def data_uri(image: Image.Image) -> str:
    """A picture inside a page, at the size that is shown there."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
