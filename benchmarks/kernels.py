"""What each fused operation costs and how exact it is: ``python -m benchmarks.kernels --device cuda``.

Every function of :mod:`stepvar.kernels` runs at sizes of the released models, with its kernel and on its plain path.
The error is the relative root mean square against the same formula in float64, the largest of its outcomes. Bandwidth
counts what the function must read and write once, beside what a copy reaches on the same device.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import command_line
from benchmarks.kernel_cases import FULL, GROUPS, HALF, Case, Inputs, Outcome, flattened
from stepvar.kernels import fp8, ops
from stepvar.utils.files import write_text

BOUNDS = {FULL: 2e-5, HALF: 3e-3, fp8.FP8: 4e-2}
"""Largest relative error that rounding to a type explains."""


def relative_error(outcome: Outcome, reference: Outcome) -> float:
    """The largest relative root mean square error of the tensors of an outcome; infinite where one is not finite."""
    errors = []
    for got, expected in zip(flattened(outcome), flattened(reference), strict=True):
        wide = expected.double()
        error = float((got.double() - wide).norm() / wide.norm().clamp(min=1e-30))
        errors.append(error if error == error else float("inf"))
    return max(errors)


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time; on a GPU with cold caches, by events."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, warmup=5, rep=40, return_mode="median"))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def copy_bandwidth(device: torch.device, small: bool) -> float:
    """GB/s that a copy reads and writes."""
    source = torch.ones(2**20 if small else 2**28, dtype=torch.uint8, device=device)
    return 2 * source.nbytes / milliseconds(source.clone, device) / 1e6


def measure(case: Case, device: torch.device, copy: float) -> str:
    """The row of a case in the table."""
    expected = case.reference()
    with ops.kernels("plain"):
        plain_error, plain = relative_error(case.run(), expected), milliseconds(case.run, device)
    error, fused = relative_error(case.run(), expected), milliseconds(case.run, device)
    rate = case.moved / fused / 1e6
    verdict = "" if error <= BOUNDS[case.rounds_to] else " too large"
    return (
        f"| {case.name} | {plain:.3f} | {fused:.3f} | {plain / fused:.1f}x | {rate:.0f} ({rate / copy:.0%}) "
        f"| {plain_error:.1e} | {error:.1e}{verdict} |"
    )


@torch.inference_mode()
def table(device: torch.device, small: bool) -> list[str]:
    """The table in Markdown; a case that fails has its error in its row."""
    copy = copy_bandwidth(device, small)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    lines = [
        f"{name}, PyTorch {torch.__version__}; a copy moves {copy:.0f} GB/s.",
        "",
        "| function | plain, ms | fused, ms | gain | GB/s (of a copy) | error, plain | error, fused |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in GROUPS:
        built = group(Inputs(device, small))
        while True:
            label = group.__name__
            try:
                case = next(built)
                label = case.name
                lines.append(measure(case, device, copy))
            except StopIteration:
                break
            except Exception as error:  # one broken kernel must not hide the figures of the others
                lines.append(f"| {label} | {type(error).__name__}: {' '.join(str(error).split())[:200]} |")
            print(lines[-1], flush=True)
            gc.collect()
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--small", action="store_true", help="few tokens, for machines without a GPU")
    parser.add_argument("--out", type=Path, help="write the table to this file")
    options = parser.parse_args(arguments)
    lines = table(options.device, options.small or options.device.type == "cpu")
    print("\n".join(lines[:4]))
    if options.out:
        write_text(options.out, "\n".join([f"`{command_line(__spec__)}`", "", *lines, ""]))


if __name__ == "__main__":
    main()
