"""``stepvar demo``: what the method does, in one image and one table."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from stepvar.cli import options
from stepvar.cli.files import Force
from stepvar.cli.speedup import fit_settings
from stepvar.core.values import COUNT, DEFAULT_MODEL
from stepvar.utils.files import write_text
from stepvar.utils.outputs import Outputs, free_name, write_new


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            parser=options.path,
            metavar="PATH",
            help="Image file; the numbers go beside it, as JSON. Default: the next demo.png.",
        ),
    ] = None,
    force: Force = False,
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 7,
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    quantization: options.Quantization = None,
    speedup: options.Speedup = None,
    runs: options.Runs = 5,
    quiet: options.Quiet = False,
) -> None:
    """Generate an image dense and with StepVAR, write both on one sheet and print what they cost."""
    options.check_counts(runs=(runs, COUNT))
    target = free_name(Path("demo.png"), beside=(".json",)) if out is None else out
    numbers = target.with_suffix(".json")
    claims = Outputs(force)
    options.parse_device(device), options.parse_dtype(dtype)

    from stepvar.checkpoints.examples import EXAMPLES
    from stepvar.cli.comparison import print_comparison, run_comparison, sheet
    from stepvar.cli.generate import sheet_texts
    from stepvar.media.saving import check_results, save_result
    from stepvar.methods import StepVAR
    from stepvar.text import example_prompt

    check_results([target], False, name="out")
    claims.claim("out", target, numbers)
    pipe = options.load_pipeline(model, device, dtype, quantization=quantization)
    known = EXAMPLES.get(pipe.name)
    caption = example_prompt(pipe.text_encoder) if known is None else known.textured[0]
    chosen = StepVAR() if speedup is None else fit_settings(pipe, speedup, "image", StepVAR(), 1, {}, quiet)
    comparison = run_comparison(pipe, [caption], chosen, seed, runs, quiet)
    shown, texts, own = sheet(comparison, [caption]), sheet_texts(comparison.other, [caption]), out is None
    target = write_new(target, partial(save_result, shown, texts=texts, quality=None), force=force, own=own)
    info = {"prompt": caption, "seed": seed} | comparison.to_dict()
    content = json.dumps(info, indent=2) + "\n"
    numbers = write_new(target.with_suffix(".json"), partial(write_text, text=content), force=force, own=own)
    if not quiet:
        print_comparison(comparison)
        print(f"{target}: the images; {numbers}: the numbers")
