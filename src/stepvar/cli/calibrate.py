"""``stepvar calibrate``: measures ahead what ``--speedup`` needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stepvar.cli import options
from stepvar.core.values import COUNT, DEFAULT_MODEL

if TYPE_CHECKING:
    from rich.table import Table

    from stepvar.cost.speedup import Search


def calibrate(
    model: options.Model = DEFAULT_MODEL,
    variant: options.Variant = None,
    revision: options.Revision = None,
    method: Annotated[
        str, typer.Option("--method", help="Method whose settings are measured; see 'methods'.")
    ] = "stepvar",
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    quantization: options.Quantization = None,
    aspect_ratio: options.AspectRatio = None,
    resolution: options.Resolution = None,
    num_images: Annotated[int, typer.Option(help="Images generated at once.")] = 1,
    quiet: options.Quiet = False,
) -> None:
    """Measure a method on a model and this device again, for --speedup, and keep the figures."""
    options.check_counts(num_images=(num_images, COUNT))
    chosen = options.parse_method(method, {}, [])
    pipe = options.load_pipeline(model, device, dtype, variant, revision, quantization=quantization)

    from rich.console import Console

    from stepvar.cost.speedup import measure_ahead
    from stepvar.cost.store import cache_folder

    settings = pipe.settings(aspect_ratio=aspect_ratio, resolution=resolution)
    search = measure_ahead(pipe, chosen, settings, num_images, progress=not quiet)
    if not quiet:
        Console().print(table(pipe.name, search))
        print(f"kept in {cache_folder()}")


def table(name: str, search: Search) -> Table:
    """What a dense generation takes, and the method with its harshest settings."""
    from rich.table import Table

    table = Table(title=f"{name}: one generation")
    for column in ("part", "dense", f"{search.method}, at most"):
        table.add_column(column, justify="right")
    harshest = search.stages[-1](1.0)
    loops = [search.timings.seconds(search.plan(method)) for method in (search.dense, harshest)]
    table.add_row("all scales", *(f"{1e3 * seconds:,.1f} ms" for seconds in loops))
    for stage, words in (("condition", "text encoder"), ("prepare", "preparation"), ("decode", "decoding")):
        table.add_row(words, *[f"{1e3 * search.timings.stages[stage]:,.1f} ms"] * 2)
    table.add_section()
    table.add_row("speed-up", "1.00", f"{search.speedup(harshest):.2f}")
    return table
