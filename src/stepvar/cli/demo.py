"""``stepvar demo``: what the method does, in one image and one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stepvar.cli import options
from stepvar.cli.speedup import fit_settings
from stepvar.core.values import COUNT
from stepvar.utils.files import check_writable, write_text

CAPTION = "a large red striped circle left of a small blue star on grass"


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file; the numbers go beside it, as JSON.")] = Path(
        "demo.png"
    ),
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 7,
    model: options.Model = "scenes",
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    quantization: options.Quantization = None,
    speedup: options.Speedup = None,
    runs: options.Runs = 5,
    quiet: options.Quiet = False,
) -> None:
    """Generate a scene dense and with StepVAR, write both on one sheet and print what they cost."""
    options.check_counts(runs=(runs, COUNT))
    numbers = options.output_path("out", out, ".png").with_suffix(".json")
    check_writable(numbers)
    pipe = options.load_pipeline(model, device, dtype, quantization=quantization)

    from stepvar.cli.comparison import print_comparison, run_comparison, sheet
    from stepvar.cli.generate import describe
    from stepvar.media.sheets import save_png
    from stepvar.methods import StepVAR

    chosen = StepVAR() if speedup is None else fit_settings(pipe, speedup, "image", StepVAR(), 1, {}, quiet)
    comparison = run_comparison(pipe, [CAPTION], chosen, seed, runs, quiet)
    save_png(sheet(comparison, [CAPTION]), out, describe(pipe, CAPTION, seed, comparison.method, {}))
    info = {"prompt": CAPTION, "seed": seed} | comparison.to_dict()
    write_text(numbers, json.dumps(info, indent=2) + "\n")
    if not quiet:
        print_comparison(comparison)
        print(f"{out}: the images; {numbers}: the numbers")
