"""``stepvar calibrate``: what plans of a speed-up rest on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stepvar.cli.options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    VariantOption,
    load_pipeline,
)

if TYPE_CHECKING:
    from rich.table import Table

    from stepvar.cost.calibration import Calibration


def calibrate(
    model: ModelOption = "scenes",
    variant: VariantOption = None,
    revision: RevisionOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    aspect_ratio: Annotated[str, typer.Option(help="Width to height, such as 3:2.")] = "1:1",
    resolution: Annotated[str | None, typer.Option(help="Name of a schedule, such as 0.25M.")] = None,
    num_images: Annotated[int, typer.Option(help="Pictures drawn at once.")] = 1,
    quiet: QuietOption = False,
) -> None:
    """Measure this device and a model on it anew, for --speedup, and keep the figures."""
    pipe = load_pipeline(model, device, dtype, variant, revision)

    from rich.console import Console

    from stepvar.cost.calibration import calibrate as measure
    from stepvar.cost.store import cache_folder

    plan = pipe.plan(aspect_ratio=aspect_ratio, resolution=resolution)
    done = measure(pipe, plan, num_images, again=True, progress=not quiet)
    if not quiet:
        Console().print(table(pipe.name, done))
        print(f"kept in {cache_folder()}")


def table(name: str, done: Calibration) -> Table:
    """The device's rates, and what a dense generation takes."""
    from rich.table import Table

    rates, profile = done.rates, done.profile
    table = Table(title=f"{name}: one dense generation", caption="measured on few blocks where a model is large")
    table.add_column("part")
    table.add_column("figure", justify="right")
    rows, fastest = max(rates.products, key=lambda measured: measured[1])
    table.add_row(f"products with weights, {rows} rows", f"{fastest / 1e9:,.1f} GFLOP/s")
    table.add_row("attention", f"{rates.attention / 1e9:,.1f} GFLOP/s")
    table.add_row("memory", f"{rates.bandwidth / 1e9:,.1f} GB/s")
    table.add_row("starting an operation", f"{1e6 * rates.launch:.1f} us")
    table.add_section()
    table.add_row("text encoder", f"{1e3 * profile.condition:,.1f} ms")
    table.add_row("preparation", f"{1e3 * profile.prepare:,.1f} ms")
    table.add_row("blocks, all scales", f"{1e3 * sum(profile.stack.values()):,.1f} ms")
    table.add_row("rest of all scales", f"{1e3 * sum(profile.rest.values()):,.1f} ms")
    table.add_row("decoding", f"{1e3 * profile.decode:,.1f} ms")
    return table
