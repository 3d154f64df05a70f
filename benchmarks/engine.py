"""Time of a generation by engine and method, on released sizes with random weights.

``python -m benchmarks.engine --model 2b`` prints medians in milliseconds: the loop over scales, preparation, decoding,
and the whole call from text features on the host to uint8 pixels on the host. Every engine is loaded with the same
random weights, runs are interleaved, and pixels of engines with the same kernels are compared, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.workload import random_pipeline, release
from stepvar.engine import Engine
from stepvar.engine.runner import EngineName
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.run import interleaved
from stepvar.kernels.linear import QUANTIZATIONS
from stepvar.kernels.ops import Kernels, kernels
from stepvar.methods import METHODS, Method, make_method
from stepvar.pipeline import Pipeline
from stepvar.text import PooledFeatures
from stepvar.utils.files import write_text

METHOD_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "stepvar": ("stepvar", {"keep": 0.5, "last": 3}),
    "stepvar-last2": ("stepvar", {"keep": 0.5, "last": 2}),
    "stepvar+drop": ("stepvar+drop-guidance", {"stepvar.keep": 0.5, "stepvar.last": 3, "drop-guidance.last": 2}),
}
ENGINES: dict[str, tuple[EngineName, Kernels]] = {
    "plain": ("eager", "plain"),
    "plain-graphs": ("graphs", "plain"),
    "eager": ("eager", "auto"),
    "graphs": ("graphs", "auto"),
}
"""What is measured: the engine, and whether PyTorch's own kernels run or the fused ones."""
SHARE = 0.6
"""Of the GPU's memory, for captured generations: all of those measured stay."""
TIMES = ("loop", "prepare", "decode", "whole")

Cell = tuple[str, str]
Run = dict[str, Any]


class Cells:
    """Runs of every engine with every method on one pipeline."""

    def __init__(self, pipe: Pipeline, arguments: argparse.Namespace) -> None:
        memory = torch.cuda.get_device_properties(pipe.device).total_memory if pipe.device.type == "cuda" else 0
        self.pipe, self.arguments = pipe, arguments
        self.engines = {name: Engine(ENGINES[name][0], int(SHARE * memory)) for name in arguments.engines}
        self.methods = {label: _method(label) for label in arguments.methods}
        self.pixels: dict[tuple[str, int], Any] = {}
        self.differ: list[str] = []

    def run(self, cell: Cell, index: int) -> Run:
        engine, label = cell
        with kernels(ENGINES[engine][1]):
            found = generate(self.pipe, self.engines[engine], self.methods[label], self.arguments, index)
        self._compare(engine, label, index, found.pop("pixels"))
        return found

    def _compare(self, engine: str, label: str, index: int, pixels: Any) -> None:
        """Engines with the same kernels must agree; float32 has plain kernels alone."""
        same = "plain" if self.pipe.dtype == torch.float32 else ENGINES[engine][1]
        expected = self.pixels.setdefault((f"{same} {label}", index), pixels)
        if not (expected == pixels).all():
            self.differ.append(f"{engine}, {label}, inputs {index}")

    def measure(self, rounds: int) -> list[Run]:
        """A row for each cell: first and second call, and medians of the later ones."""
        cells = [(engine, label) for engine in self.engines for label in self.methods]
        rows: dict[Cell, Run] = {cell: {"engine": cell[0], "method": cell[1]} for cell in cells}
        for cell in cells:  # eager, then captured
            rows[cell]["first"], rows[cell]["second"] = (round(self.run(cell, index)["whole"], 1) for index in (0, 1))
        runs: dict[Cell, list[Run]] = {cell: [] for cell in cells}
        for _, cell, found in interleaved(cells, range(rounds), lambda cell, number: self.run(cell, 2 + number)):
            runs[cell].append(found)
        for cell, measured in runs.items():
            rows[cell] |= summary(measured)
        return list(rows.values())


def _method(label: str) -> Method:
    name, settings = METHOD_SETTINGS.get(label, (label, {}))
    return make_method(name, **settings)


def summary(runs: Sequence[Run]) -> Run:
    """Medians of a cell's runs; the spread is that of the loop, as a share of its median."""
    row: Run = {name: round(median(one[name] for one in runs), 2) for name in (*TIMES, "peak")}
    loops = [one["loop"] for one in runs]
    row["spread"] = round((max(loops) - min(loops)) / row["loop"], 3)
    row["scales"] = [median(values) for values in zip(*(one["scales"] for one in runs), strict=True)]
    row["ran"] = ", ".join(sorted({one["engine"] for one in runs}))
    return row


def inputs_of(pipe: Pipeline, batch: int, index: int) -> dict[str, Any]:
    """Text features on the host, of the sizes that the family measures with, or classes; other ones for every index."""
    example, generator = pipe.inputs.example(), torch.Generator().manual_seed(index)
    if pipe.inputs.argument == "class_labels":
        return {"class_labels": [(7 * index + image) % pipe.model.config.classes for image in range(batch)]}
    sizes = {name: getattr(example, name) for name in ("prompt_embeds", "negative_prompt_embeds")}
    if pipe.family.name == "switti":
        config = pipe.model.config
        tokens = torch.randn(2, batch, 16, config.text_channels, generator=generator)
        pooled = torch.randn(2, batch, config.pooled_channels, generator=generator)
        prompt, negative = map(PooledFeatures.of, tokens, pooled)
        return {"prompt_embeds": prompt, "negative_prompt_embeds": negative}
    texts: dict[str, Any] = {
        name: [torch.randn(features.shape[1:], generator=generator) for _ in range(batch)]
        for name, features in sizes.items()
        if features is not None
    }
    if pipe.family.name != "varedit":
        return texts
    levels = torch.randint(256, (batch, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return texts | {"image": list(levels.numpy())}


def generate(pipe: Pipeline, engine: Engine, method: Method, arguments: argparse.Namespace, index: int) -> Run:
    """One generation: its times in milliseconds, and its pixels."""
    pipe.engine = engine
    inputs = inputs_of(pipe, arguments.batch, index)
    options = {"resolution": arguments.resolution} if arguments.resolution else {}
    if pipe.family.video:
        options["seconds"] = arguments.seconds
    if pipe.device.type == "cuda":
        torch.cuda.synchronize(pipe.device)
    start = time.perf_counter()
    out = pipe(
        **inputs,
        method=method,
        seed=index,
        guidance_scale=arguments.guidance,
        output_type="np",
        progress=False,
        **options,
    )
    whole = time.perf_counter() - start
    report = out.report
    return {
        "loop": 1e3 * report.scale_seconds,
        "prepare": 1e3 * report.stages["prepare"],
        "decode": 1e3 * report.stages.get("decode", 0.0),  # of two processes one alone decodes
        "whole": 1e3 * whole,
        "peak": report.peak_memory / 2**30,
        "scales": [round(1e3 * scale.seconds, 2) for scale in report.scales],
        "engine": report.engine,
        "pixels": out.images if len(out.images) else out.videos,
    }


def check_methods(pipe: Pipeline, arguments: argparse.Namespace) -> bool:
    """Whether every registered method and restoration captures, and is equal to eager to the bit."""
    cases: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in METHODS]
    cases += [("stepvar", {"restore": restore}) for restore in ("blend", "anchors", "cached")]
    cases += [("stepvar", {"scope": scope, "propagate": "update"}) for scope in ("block", "sublayer")]
    cases += [("fastvar:hart", {}), ("magnitude:mean-distance", {}), ("stepvar", {"branches": "separate"})]
    good = True
    for name, settings in cases:
        engine = Engine("graphs")
        try:
            method = make_method(name, **settings)
            eager = generate(pipe, Engine("eager"), method, arguments, 5)["pixels"]
            # Twice as in the eager run: what is decided for it may come for the first time.
            runs = [generate(pipe, engine, method, arguments, index) for index in (3, 4, 5, 5)]
            equal = bool((runs[-1]["pixels"] == eager).all())
            good &= equal and runs[-1]["engine"] == "graphs"
            print(f"{name} {settings}: {runs[-1]['engine']}, {'equal' if equal else 'DIFFERENT'}", flush=True)
        except Exception as error:
            good = False
            print(f"{name} {settings}: {type(error).__name__}: {error}", flush=True)
    return good


def check_repeats(pipe: Pipeline, arguments: argparse.Namespace) -> bool:
    """Whether eager generations of one seed are the same to the bit, with each method."""
    good = True
    for label in arguments.methods:
        name, settings = METHOD_SETTINGS.get(label, (label, {}))
        method, engine = make_method(name, **settings), Engine("eager")
        runs = [generate(pipe, engine, method, arguments, 5)["pixels"] for _ in range(arguments.check_repeats)]
        first, *others = runs
        apart = sorted(count for one in others if (count := int((one != first).sum())))
        good &= not apart
        print(f"{label}: {len(apart)} of {len(others)} differ from the first, by {apart} values", flush=True)
    return good


def markdown(result: Run) -> str:
    """The table of a result: times in ms, peak memory in GiB, gains over dense with the same engine."""
    titles = (
        "engine",
        "method",
        "loop",
        "gain",
        "spread",
        "prepare",
        "decode",
        "whole",
        "gain",
        "first",
        "second",
        "peak",
    )
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    dense = {row["engine"]: row for row in result["rows"] if row["method"] == "dense"}
    for row in result["rows"]:
        gains = {name: f"{dense[row['engine']][name] / row[name]:.2f}x" for name in ("loop", "whole")}
        cells = [row["engine"], row["method"], f"{row['loop']:.0f}", gains["loop"], f"{100 * row['spread']:.1f} %"]
        cells += [f"{row['prepare']:.1f}", f"{row['decode']:.0f}", f"{row['whole']:.0f}", gains["whole"]]
        cells += [f"{row['first']:.0f}", f"{row['second']:.0f}", f"{row['peak']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="2b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="of the weights of the blocks")
    parser.add_argument("--resolution", help="name of a schedule; default: the model's own")
    parser.add_argument("--seconds", type=float, help="length of videos")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["eager", "graphs"])
    parser.add_argument("--methods", nargs="+", default=["dense", "stepvar", "stepvar+drop"])
    parser.add_argument("--check-methods", action="store_true", help="capture every method of the registry instead")
    parser.add_argument(
        "--check-repeats",
        type=int,
        metavar="N",
        help="generate N times with one seed, and compare, instead",
    )
    parser.add_argument("--no-cudnn-attention", action="store_true", help="attention by PyTorch's other kernels")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    arguments = parse(given)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    family, variant = release(arguments.model)
    pipe = random_pipeline(family, variant.config, device, dtype, arguments.model, **variant.defaults)
    if arguments.quantization is not None:
        pipe.model.quantize(arguments.quantization)
    torch.backends.cuda.enable_cudnn_sdp(not arguments.no_cudnn_attention)
    if arguments.check_repeats is not None:
        return 0 if check_repeats(pipe, arguments) else 1
    if arguments.check_methods:
        return 0 if check_methods(pipe, arguments) else 1
    cells = Cells(pipe, arguments)
    formats = arguments.dtype if arguments.quantization is None else f"{arguments.dtype} {arguments.quantization}"
    info = provenance(device, command_line(__spec__)) | {"dtype": formats}
    result = {"info": info, "rows": cells.measure(arguments.rounds), "differ": cells.differ}
    print(markdown(result))
    for row in result["rows"]:
        print(f"{row['engine']}, {row['method']}: {' '.join(f'{ms:.1f}' for ms in row['scales'])} ({row['ran']})")
    for what in cells.differ:
        print(f"pixels DIFFER: {what}")
    if arguments.out is not None:
        write_text(arguments.out, json.dumps(result, indent=1))
    return 1 if cells.differ else 0


if __name__ == "__main__":
    raise SystemExit(main())
