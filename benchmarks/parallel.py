"""Several GPUs: one image by two of them (guidance branches apart), and images per second on 1, 2, 4 ... of them.

    python -m benchmarks.parallel                       # both, on as many GPUs as there are
    python -m benchmarks.parallel --only guidance --engine eager

Models have random weights of a released size. The command starts its own processes. For one image, both ways run in the
same two processes in turn, so that they meet the same machine: alone on the first GPU while the second waits, then
together. For throughput each GPU has a process of its own, and all begin at once.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks import command_line
from benchmarks.engine import METHOD_SETTINGS, generate
from benchmarks.workload import random_pipeline, release
from stepvar.core.report import peak_memory
from stepvar.engine import Engine
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.run import interleaved
from stepvar.methods import Method, make_method
from stepvar.pipeline import Pipeline
from stepvar.pipeline.parallel import GuidanceProcesses
from stepvar.utils.files import write_text

WAYS = ("one", "two")
"""One process runs both guidance branches, or two run one each."""

Row = dict[str, Any]


def method_of(label: str) -> Method:
    name, settings = METHOD_SETTINGS.get(label, (label, {}))
    return make_method(name, **settings)


def device_of(arguments: argparse.Namespace, rank: int) -> torch.device:
    return torch.device("cuda", rank) if arguments.device == "cuda" else torch.device(arguments.device)


def pipeline(arguments: argparse.Namespace, device: torch.device) -> Pipeline:
    family, variant = release(arguments.model)
    dtype = getattr(torch, arguments.dtype)
    pipe = random_pipeline(family, variant.config, device, dtype, arguments.model, **variant.defaults)
    pipe.engine = Engine(arguments.engine)
    return pipe


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# One image on two devices.


def guidance_process(rank: int, port: int, arguments: argparse.Namespace, path: str) -> None:
    """One of the two processes; the first writes what it measured."""
    join(rank, 2, port)
    device = device_of(arguments, rank)
    processes = GuidanceProcesses(device)
    pipes = {way: pipeline(arguments, device) for way in WAYS[rank:]}
    pipes["two"].processes = processes
    methods = {label: method_of(label) for label in arguments.methods}
    cells = [(way, label) for label in methods for way in WAYS]
    one = argparse.Namespace(**{**vars(arguments), "batch": 1})

    def run(cell: tuple[str, str], index: int) -> Row | None:
        way, label = cell
        processes.wait()
        found = generate(pipes[way], pipes[way].engine, methods[label], one, index) if way in pipes else None
        wait_for(device)
        processes.wait()
        return found

    for cell in cells:  # eager, then captured, then replayed once
        for index in range(3):
            run(cell, index)
    runs: dict[tuple[str, str], list[Row]] = {cell: [] for cell in cells}
    for _, cell, found in interleaved(cells, range(arguments.rounds), lambda cell, number: run(cell, 3 + number)):
        if found is not None:
            runs[cell].append(found)
    if rank == 0:
        rows = [compared(label, runs["one", label], runs["two", label]) for label in methods]
        write_text(Path(path), json.dumps(rows))
    for pipe in pipes.values():
        pipe.engine.clear()
    processes.close()
    dist.destroy_process_group()


def compared(label: str, one: Sequence[Row], two: Sequence[Row]) -> Row:
    """Medians in ms, the ratios of each round (median, least and most), and how far pixels differ."""
    row: Row = {"method": label, "ran": sorted({run["engine"] for run in (*one, *two)})}
    for name in ("loop", "whole"):
        ratios = [a[name] / b[name] for a, b in zip(one, two, strict=True)]
        row[name] = {"one": median(run[name] for run in one), "two": median(run[name] for run in two)}
        row[name] |= {"gain": median(ratios), "least": min(ratios), "most": max(ratios)}
    apart = [abs(a["pixels"].astype(int) - b["pixels"].astype(int)) for a, b in zip(one, two, strict=True)]
    row["equal images"] = sum(not difference.any() for difference in apart)
    row["images"] = len(apart)
    row["mean difference"] = float(sum(difference.mean() for difference in apart) / len(apart))
    return row


def guidance_table(rows: Sequence[Row]) -> str:
    lines = ["| method | loop, 1 GPU | 2 GPUs | gain (least to most) | image, 1 GPU | 2 GPUs | gain | equal images |"]
    lines.append("|---" * 8 + "|")
    for row in rows:
        loop, whole = row["loop"], row["whole"]
        lines.append(
            f"| {row['method']} | {loop['one']:.1f} ms | {loop['two']:.1f} ms | {loop['gain']:.2f}x "
            f"({loop['least']:.2f} to {loop['most']:.2f}) | {whole['one']:.1f} ms | {whole['two']:.1f} ms | "
            f"{whole['gain']:.2f}x ({whole['least']:.2f} to {whole['most']:.2f}) | "
            f"{row['equal images']} of {row['images']}, mean difference {row['mean difference']:.3f} of 255 |"
        )
    return "\n".join(lines)


# Images per second on several devices.


def throughput_process(rank: int, count: int, port: int, arguments: argparse.Namespace, path: str) -> None:
    """One of ``count`` processes that generate at once; the first writes images per second of all."""
    join(rank, count, port)
    device = device_of(arguments, rank)
    pipe, rows = pipeline(arguments, device), []
    for label in arguments.methods:
        method = method_of(label)
        for index in range(3):
            generate(pipe, pipe.engine, method, arguments, index)
        rates = []
        for _ in range(arguments.repeats):
            dist.barrier()
            start = time.perf_counter()
            for index in range(arguments.calls):
                generate(pipe, pipe.engine, method, arguments, 3 + index + rank * arguments.calls)
            dist.barrier()  # all have ended: the slowest counts
            rates.append(count * arguments.calls * arguments.batch / (time.perf_counter() - start))
        rows.append({"method": label, "gpus": count, "rate": median(rates), "least": min(rates), "most": max(rates)})
        rows[-1]["peak"] = peak_memory(device) / 2**30
    if rank == 0:
        write_text(Path(path), json.dumps(rows))
    pipe.engine.clear()
    dist.destroy_process_group()


def throughput_table(rows: Sequence[Row], batch: int) -> str:
    lines = [f"| method | GPUs | images/s, {batch} at once (least to most) | times one GPU |", "|---" * 4 + "|"]
    alone = {row["method"]: row["rate"] for row in rows if row["gpus"] == 1}
    for row in sorted(rows, key=lambda row: (row["method"], row["gpus"])):
        times = f"{row['rate'] / alone[row['method']]:.2f}x" if row["method"] in alone else ""
        rate = f"{row['rate']:.2f} ({row['least']:.2f} to {row['most']:.2f})"
        lines.append(f"| {row['method']} | {row['gpus']} | {rate} | {times} |")
    return "\n".join(lines)


# Processes.


def join(rank: int, count: int, port: int) -> None:
    """Makes a process group as torchrun would have it made; only hosts talk in it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    dist.init_process_group("gloo")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def started(work: Any, count: int, *arguments: Any) -> list[Row]:
    """What the first of several processes wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rows.json")
        spawn(work, args=(*arguments[:-1], free_port(), arguments[-1], path), nprocs=count)
        rows: list[Row] = json.loads(Path(path).read_text(encoding="utf-8"))
    return rows


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=("guidance", "throughput"), help="one of the two; default: both")
    parser.add_argument("--model", default="2b")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try it")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--engine", choices=("auto", "eager"), default="auto")
    parser.add_argument("--resolution", help="name of a schedule; default: the model's own")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--methods", nargs="+", default=["dense", "stepvar", "stepvar+drop"])
    parser.add_argument("--rounds", type=int, default=9, help="of one image")
    parser.add_argument("--gpus", type=int, nargs="+", help="of throughput; default: 1, 2, 4 ... as there are")
    parser.add_argument("--batch", type=int, default=1, help="images at once on each GPU, of throughput")
    parser.add_argument("--calls", type=int, default=8, help="generations of each GPU in a measurement of throughput")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of throughput")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.set_defaults(seconds=None)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    arguments = parse(given)
    found = torch.cuda.device_count() if arguments.device == "cuda" else (os.cpu_count() or 1)
    gpus = arguments.gpus or [count for count in (1, 2, 4, 8) if count <= found]
    most = max(max(gpus) if arguments.only != "guidance" else 1, 2 if arguments.only != "throughput" else 1)
    if arguments.device == "cuda" and most > found:
        print(f"needs {most} GPUs, and there are {found}; give --only throughput --gpus {found}", file=sys.stderr)
        return 2
    result: Row = {"info": provenance(device_of(arguments, 0), command_line(__spec__)) | {"dtype": arguments.dtype}}
    if arguments.only != "throughput":
        result["guidance"] = started(guidance_process, 2, arguments)
        print(
            guidance_table(result["guidance"]),
            *(f"{row['method']}: {row['ran']}" for row in result["guidance"]),
            sep="\n",
            flush=True,
        )
    if arguments.only != "guidance":
        result["throughput"] = [row for count in gpus for row in started(throughput_process, count, count, arguments)]
        print(throughput_table(result["throughput"], arguments.batch), flush=True)
    if arguments.out is not None:
        write_text(arguments.out, json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
