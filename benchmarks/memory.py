"""The memory that a dry run finds beside what a GPU took, and the time it cost, with each way to save memory.

    python -m benchmarks.memory --models 2b,0.7b,480p,8b --out memory.json

Models have random weights, which take as much memory as others. What stands beside the dry run is the peak of PyTorch's
allocator during a generation from text features to pixels; it includes what kernels work in. The time is that of a
second generation. Each case runs in a process of its own; one that fails is shown as such and does not end the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.workload import VARIANTS, random_pipeline, release
from stepvar.cli.options import Memory
from stepvar.engine import Engine
from stepvar.evaluation.machine import provenance
from stepvar.methods import Method, make_method
from stepvar.models.registry import releases_named
from stepvar.pipeline import Pipeline
from stepvar.utils.files import write_text

TEXT = 128
GUIDANCE = 3.0
GIB = 2**30
WAYS = "none,cache_dtype=int8,offload=model,offload=sequential,tile=32"

Row = dict[str, Any]


def parse_way(text: str) -> Memory:
    """``"none"``, or the words of the command line joined: ``offload=sequential+blocks_on_device=20``."""
    given: dict[str, Any] = {}
    for part in text.split("+") if text != "none" else ():
        name, _, value = part.partition("=")
        given[name] = int(value) if value.isdigit() else value or True
    return Memory(**given)


def measure(pipe: Pipeline, method: Method, way: Memory, text: int = TEXT, **settings: Any) -> Row:
    """Two generations; bytes, and seconds of the second one.

    Args:
        text: tokens of the prompt, where their number is free.
        settings: arguments of the generation.
    """
    device = pipe.device
    way.apply(pipe, device)
    pipe.engine = Engine("eager")  # what a dry run runs; graphs keep what their passes work in
    plan = method.plan(pipe.settings(**settings), pipe.model.info, 1)
    expected = pipe.dry_run(plan, method, text)
    example = pipe.inputs.example(text, plan.schedule)
    wanted = {name: given for name, given in vars(example).items() if given is not None} | settings
    peaks, seconds = [], 0.0
    for seed in range(2):
        begun = time.perf_counter()
        output = pipe(**wanted, method=method, seed=seed, output_type="pt", progress=False)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - begun
        peaks.append(output.report.peak_memory)
    parts = {name: size for name, size in asdict(expected).items() if "flops" not in name}
    return {"dry_run": expected.peak, "measured": max(peaks), "seconds": seconds, "parts": parts}


def run_case(case: Row) -> Row:
    """One case in this process."""
    method, way = make_method(case["method"]), parse_way(case["way"])
    device, dtype = torch.device(case["device"]), getattr(torch, case["dtype"])
    family, variant = release(case["model"])
    pipe = random_pipeline(family, variant.config, device, dtype, case["model"])
    return measure(pipe, method, way, guidance_scale=GUIDANCE)


def run_apart(case: Row) -> Row:
    """One case in a process of its own: its row, or why there is none."""
    command = [sys.executable, "-m", "benchmarks.memory", "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return case | json.loads(lines[-1])
    errors = done.stderr.strip().splitlines()
    return case | {"error": errors[-1][:200] if errors else f"exit status {done.returncode}"}


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    columns = ("model", "method", "memory options", "dry run", "measured", "ratio", "seconds")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [row["model"], row["method"], row["way"]]
        if "error" in row:
            cells += [f"failed: {row['error']}", "", "", ""]
        else:
            cells += [f"{row[name] / GIB:.2f} GiB" for name in ("dry_run", "measured")]
            cells += [f"{row['dry_run'] / row['measured']:.3f}", f"{row['seconds']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="2b,0.7b,480p", help="released sizes, separated by commas")
    parser.add_argument("--methods", default="dense,stepvar")
    parser.add_argument("--ways", default=WAYS, help=f"memory options joined by +; default {WAYS}")
    parser.add_argument("--device", default="cuda", help="a GPU: the CPU has no allocator that knows its peak")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.case:
        print(json.dumps(run_case(json.loads(given.case))))
        return
    if torch.device(given.device).type != "cuda":
        parser.error("--device: must be a GPU, cuda")
    names, methods, ways = (text.split(",") for text in (given.models, given.methods, given.ways))
    for name in names:  # what is wrong is found before anything runs
        if not releases_named(name):
            parser.error(f"--models {name}: must be among {', '.join(VARIANTS)}")
    for way in ways:
        parse_way(way)
    rows = []
    for name in names:
        for way in ways:
            for method in methods:
                case = {"model": name, "method": method, "way": way, "device": given.device, "dtype": given.dtype}
                rows.append(run_apart(case))
                print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows))
    if given.out:
        info = provenance(torch.device(given.device), command_line(__spec__)) | {"dtype": given.dtype}
        write_text(given.out, json.dumps({"info": info, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
