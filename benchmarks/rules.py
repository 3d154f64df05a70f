"""What the settings of SparseVAR and SkipVAR do to images: ``python -m benchmarks.rules sparsevar --out FILE``.

The embedded model generates held-out captions, one image at a time, densely and with each row's method, always with the
same random numbers. PSNR is that to the dense image. A difference is paired, image by image, to the row that it names.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import command_line
from stepvar.core.report import Report
from stepvar.evaluation.metrics.fidelity import EQUAL, psnr
from stepvar.evaluation.scenes.grammar import caption, held_out_scenes
from stepvar.evaluation.statistics import bootstrap, paired
from stepvar.methods import METHODS, Method, make_method
from stepvar.pipeline import Pipeline
from stepvar.utils.files import write_text


@dataclass
class Row:
    """One method, and what it gave.

    Attributes:
        label: in the table.
        method: what generates.
        base: the label of the row that it is compared with; None: it is one.
        psnr: of each image.
        reports: of each generation.
    """

    label: str
    method: Method[Any]
    base: str | None = None
    psnr: list[float] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)


FAULTS: dict[str, dict[str, Any]] = {
    "the first four anchors, not the nearest": {"candidates": "first"},
    "scrambled logits, not the cell's": {"features": "scrambled"},
    "anchors may be excluded": {"keep_anchors": False},
    "inputs resampled by area": {"resampling": "area"},
}
"""Differences between the public reproduction of SparseVAR and the rule as meant, each a setting."""


def sparsevar_rows() -> list[Row]:
    """The rule as meant with each fault, and as reproduced with each fault mended."""
    half, threshold, reproduced = "as meant, half kept", "as meant, threshold 0.6", "as reproduced, threshold 0.6"
    meant = {name: getattr(METHODS["sparsevar"](), name) for fault in FAULTS.values() for name in fault}
    every = {name: value for fault in FAULTS.values() for name, value in fault.items()}
    stricter = make_method("sparsevar:threshold", similarity=0.99)
    rows = [Row(half, make_method("sparsevar"))]
    rows += [Row(f"half kept, {label}", make_method("sparsevar", **fault), half) for label, fault in FAULTS.items()]
    rows += [
        Row("half kept, all of these", make_method("sparsevar", **every), half),
        Row("half kept, similarity above 0.99", make_method("sparsevar", similarity=0.99), half),
        Row("half kept, StepVAR at the same scales", make_method("stepvar", last=3), half),
        Row("half kept, random tokens at the same scales", make_method("random", last=3), half),
        Row("nothing excluded, inputs resampled by area", make_method("sparsevar", keep=1.0, resampling="area")),
        Row(threshold, make_method("sparsevar:threshold")),
        Row("as meant, threshold 0.6, similarity above 0.99", stricter, threshold),
        Row(reproduced, make_method("sparsevar:reproduction"), threshold),
    ]
    for label, fault in FAULTS.items():
        mended = make_method("sparsevar:reproduction", **{name: meant[name] for name in fault})
        rows.append(Row(f"as reproduced, without: {label}", mended, reproduced))
    return rows


def skipvar_rows() -> list[Row]:
    """The three published targets, and what they choose from."""
    presets = [Row(f"skipvar:{name}", make_method(f"skipvar:{name}")) for name in METHODS["skipvar"].presets]
    skips = [Row(f"skip-last {count}", make_method("skip-last", count=count)) for count in (1, 2, 3)]
    drops = [Row(f"drop-guidance {last}", make_method("drop-guidance", last=last)) for last in (1, 2, 3)]
    return presets + skips + drops


GROUPS = {"sparsevar": sparsevar_rows, "skipvar": skipvar_rows}


def measure(
    rows: Sequence[Row], images: int, resolution: str | None, path: Path | None, info: dict[str, Any]
) -> dict[str, Any]:
    """Generates caption by caption, so that what is written is whole at any time."""
    pipe = Pipeline.from_pretrained("scenes")
    dense: list[int] = []
    result: dict[str, Any] = {}
    for seed, scene in enumerate(held_out_scenes(images, seed=5)):
        reference, whole = _generate(pipe, caption(scene), seed, Method(), resolution)
        dense.append(whole.flops)
        for row in rows:
            image, report = _generate(pipe, caption(scene), seed, row.method, resolution)
            row.psnr.append(float(psnr(image, reference).clamp(max=EQUAL)))
            row.reports.append(report)
        result = {
            "info": info | {"images": seed + 1},
            "rows": [summary(row, rows, dense, whole.tokens) for row in rows],
        }
        if path is not None:
            write_text(path, json.dumps(result, indent=1) + "\n")
        print(f"{seed + 1} of {images} images", flush=True)
    return result


def _generate(
    pipe: Pipeline, text: str, seed: int, method: Method[Any], resolution: str | None
) -> tuple[Tensor, Report]:
    output = pipe(text, seed=seed, method=method, resolution=resolution, output_type="pt", progress=False)
    return output.images.float(), output.report


def summary(row: Row, rows: Sequence[Row], dense: Sequence[int], whole_tokens: int) -> dict[str, Any]:
    """What goes into the file: means with 95 % intervals, and shares of dense generation.

    Args:
        dense: operations of each dense generation.
        whole_tokens: of one of them.
    """
    found: dict[str, Any] = {"label": row.label, "method": repr(row.method), "psnr": bootstrap(row.psnr).to_dict()}
    found["kept"] = sum(report.kept for report in row.reports) / (len(dense) * whole_tokens)
    if row.method.knows_counts:  # otherwise every image would have to be counted for itself
        found["operations"] = sum(report.flops for report in row.reports) / sum(dense)
    if row.base is not None:
        base = next(one for one in rows if one.label == row.base)
        found |= {"base": row.base, "difference": paired(row.psnr, base.psnr).to_dict()}
    choices = Counter(report.choice for report in row.reports if report.choice is not None)
    return found | ({"choices": dict(choices.most_common())} if choices else {})


def markdown(result: dict[str, Any]) -> str:
    """One row per method."""
    rows, decided = result["rows"], any("choices" in row for row in result["rows"])
    last = "decided" if decided else "difference to"
    lines = [f"| method | tokens | operations | PSNR to dense, dB | {last} |", "|---|---|---|---|---|"]
    for row in rows:
        mean = f"{row['psnr']['mean']:.1f} ({row['psnr']['low']:.1f} to {row['psnr']['high']:.1f})"
        more = ", ".join(f"{name}: {count}" for name, count in row.get("choices", {}).items())
        if "base" in row:
            gap = row["difference"]
            more = f'"{row["base"]}": {gap["mean"]:+.2f} ({gap["low"]:+.2f} to {gap["high"]:+.2f})'
        operations = f"{100 * row['operations']:.0f} %" if "operations" in row else ""
        lines.append(f"| {row['label']} | {100 * row['kept']:.0f} % | {operations} | {mean} | {more} |")
    return "\n".join(lines) + f"\n\nImages in each row: {result['info']['images']}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--resolution", help="such as 0.06M; default: the model's own")
    arguments = parser.parse_args()
    machine = {"device": "cpu", "machine": platform.machine(), "torch": torch.__version__}
    info, rows = {"command": command_line(__spec__), **machine}, GROUPS[arguments.group]()
    result = measure(rows, arguments.images, arguments.resolution, arguments.out, info)
    print(markdown(result))


if __name__ == "__main__":
    main()
