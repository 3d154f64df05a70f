"""Time of a generation by engine and method, on released sizes with random weights.

``python -m benchmarks.engine --model 2b`` prints medians in milliseconds: the loop over scales, preparation, decoding,
and the whole call from text features on the host to uint8 pixels on the host. Engines and methods are interleaved round
by round; graphs are compared to eager, bit by bit.
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

from benchmarks.workload import random_pipeline
from stepvar.methods import METHODS, make_method
from stepvar.models.registry import families_of_variant
from stepvar.pipeline import Pipeline

METHOD_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "stepvar": ("stepvar", {"keep": 0.5, "last": 3}),
    "stepvar+drop": ("stepvar+drop-guidance", {"stepvar.keep": 0.5, "stepvar.last": 3, "drop-guidance.last": 2}),
}
ENGINES = ("eager", "graphs")


def inputs_of(pipe: Pipeline, batch: int, index: int) -> dict[str, Any]:
    """Text features on the host, or classes; other ones for every index."""
    config, generator = pipe.model.config, torch.Generator().manual_seed(index)
    if pipe.inputs.argument == "class_labels":
        return {"class_labels": [(7 * index + image) % config.classes for image in range(batch)]}
    if pipe.family.name == "hart":
        size = (batch, config.context_tokens, config.context_channels)
        return {"prompt_embeds": torch.randn(size, generator=generator)}
    return {"prompt_embeds": [torch.randn(16, config.text_channels, generator=generator) for _ in range(batch)]}


def run(pipe: Pipeline, engine: Any, method: Any, arguments: argparse.Namespace, index: int) -> dict[str, Any]:
    """One generation: its times in milliseconds, and its pixels."""
    pipe.engine = engine
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    options = {"resolution": arguments.resolution} if arguments.resolution else {}
    if pipe.family.video:
        options["seconds"] = arguments.seconds
    out = pipe(
        **inputs_of(pipe, arguments.batch, index),
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
        "decode": 1e3 * report.stages["decode"],
        "whole": 1e3 * whole,
        "peak": report.peak_memory / 2**30,
        "scales": [round(1e3 * scale.seconds, 2) for scale in report.scales],
        "engine": report.engine,
        "pixels": out.images if len(out.images) else out.videos,
    }


def measure(pipe: Pipeline, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians over the rounds of every engine and method, interleaved."""
    from stepvar.engine import Engine

    engines = {name: Engine(name) for name in arguments.engines}
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    first: dict[tuple[str, str], list[float]] = {}
    for round_ in range(arguments.rounds + 2):  # two to warm up: the first runs eagerly, the second is captured
        for label in arguments.methods:
            name, settings = METHOD_SETTINGS.get(label, (label, {}))
            method, pixels = make_method(name, **settings), {}
            for engine_name, engine in engines.items():
                one = run(pipe, engine, method, arguments, round_)
                pixels[engine_name] = one.pop("pixels")
                if round_ < 2:
                    first.setdefault((engine_name, label), []).append(one["whole"])
                else:
                    cells.setdefault((engine_name, label), []).append(one)
            if len(pixels) > 1:
                a, b, *_ = pixels.values()
                equal = bool((a == b).all())
                cells.setdefault((arguments.engines[-1], label), [])
                if not equal:
                    print(f"round {round_}, {label}: the engines' pixels differ", flush=True)
    rows = []
    for (engine_name, label), runs in cells.items():
        row: dict[str, Any] = {"engine": engine_name, "method": label, "ran": runs[-1]["engine"]}
        for key in ("loop", "prepare", "decode", "whole", "peak"):
            row[key] = round(median(one[key] for one in runs), 2)
        loops = [one["loop"] for one in runs]
        row["spread"] = round((max(loops) - min(loops)) / row["loop"], 3)
        row["first"], row["second"] = (round(value, 1) for value in first[(engine_name, label)])
        row["scales"] = [median(values) for values in zip(*(one["scales"] for one in runs), strict=True)]
        rows.append(row)
    return rows


def check_methods(pipe: Pipeline, arguments: argparse.Namespace) -> None:
    """Whether every registered method and restoration captures, and is equal to eager to the bit."""
    from stepvar.engine import Engine

    cases: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in METHODS]
    cases += [("stepvar", {"restore": restore}) for restore in ("blend", "anchors", "cached")]
    cases += [("stepvar", {"scope": scope, "propagate": "update"}) for scope in ("block", "sublayer")]
    cases += [("fastvar:hart", {}), ("magnitude:mean-distance", {}), ("stepvar", {"branches": "separate"})]
    for name, settings in cases:
        engine = Engine("graphs")
        try:
            method = make_method(name, **settings)
            eager = run(pipe, Engine("eager"), method, arguments, 5)["pixels"]
            runs = [run(pipe, engine, method, arguments, index) for index in (3, 4, 5)]
            equal = bool((runs[-1]["pixels"] == eager).all())
            print(f"{name} {settings}: {runs[-1]['engine']}, {'equal' if equal else 'DIFFERENT'}", flush=True)
        except Exception as error:
            print(f"{name} {settings}: {type(error).__name__}: {error}", flush=True)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="2b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--resolution", help="name of a schedule; default: the model's own")
    parser.add_argument("--seconds", type=float, help="length of videos")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--methods", nargs="+", default=list(METHOD_SETTINGS))
    parser.add_argument("--check-methods", action="store_true", help="capture every method of the registry instead")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args(given)
    family, device = families_of_variant(arguments.model)[0], torch.device(arguments.device)
    variant, dtype = family.variants[arguments.model], getattr(torch, arguments.dtype)
    pipe = random_pipeline(family, variant.config, device, dtype, arguments.model, **variant.defaults)
    if arguments.check_methods:
        check_methods(pipe, arguments)
        return
    rows = measure(pipe, arguments)
    machine = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "cpu"
    print(f"{arguments.model}, batch {arguments.batch}, {arguments.dtype}, {machine}, torch {torch.__version__}")
    columns = ("engine", "method", "loop", "spread", "prepare", "decode", "whole", "peak", "first", "second", "ran")
    print(" | ".join(columns))
    for row in rows:
        print(" | ".join(str(row[name]) for name in columns))
        print("    scales:", " ".join(f"{value:.1f}" for value in row["scales"]))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(vars(arguments) | {"out": str(arguments.out), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
