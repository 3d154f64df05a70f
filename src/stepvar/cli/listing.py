"""Commands that tell what there is: methods, models, the origin of an image."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepvar.errors import StepvarError

if TYPE_CHECKING:
    from rich.table import Table

    from stepvar.models.family import Family


def methods() -> None:
    """List the acceleration methods and their settings."""
    from rich.table import Table

    from stepvar.methods import all_methods

    table = Table("method", "what it does", "settings and defaults", show_lines=True)
    for name, method in all_methods().items():
        summary = inspect.cleandoc(method.__doc__ or "").partition("\n")[0].replace("``", "")
        settings = [f"{field.name}={field.default}" for field in fields(method)]
        settings += [f"preset {method.name}:{preset}" for preset in method.presets]
        table.add_row(name, summary, "\n".join(settings) or "none")
    table.caption = "a class of your own works too: --method package.module:Class"
    print_table(table)


def models() -> None:
    """List the models: those in the package and the released ones of every family."""
    from rich.table import Table

    from stepvar.checkpoints import EMBEDDED, find_model, read_config
    from stepvar.models.registry import FAMILIES

    table = Table("model", "variant", "in the package", "transformer", "tokenizer", "schedule", "image")
    for name in EMBEDDED:
        try:
            config = read_config(find_model(name))
            family = FAMILIES[config["family"]]
            table.add_row(name, "", "yes", *_size(family, family.config(config["model"])))
        except StepvarError:
            table.add_row(name, "", "missing here", *["?"] * 4)
    for family in FAMILIES.values():
        for variant, released in family.variants.items():
            table.add_row(family.repos[0], variant, "no", *_size(family, released.config))
    table.caption = "sizes in parameters (M: million)"
    print_table(table, whole=True)
    print("A local folder or file works too: give its path as --model.")


def _size(family: Family, config: Any) -> tuple[str, ...]:
    """Sizes without any memory for the weights."""
    import torch

    with torch.device("meta"):
        model = family.build(config)
    counts = (sum(weight.numel() for weight in getattr(model, part).parameters()) for part in family.parts)
    schedule = model.schedule(1.0)
    last = schedule[-1]
    pixels = f"{last.w * config.stride}x{last.h * config.stride}"
    return (*(f"{count / 1e6:,.1f} M" for count in counts), schedule.name, pixels)


def info(file: Annotated[Path, typer.Argument(help="A PNG file that stepvar wrote.")]) -> None:
    """Show how an image was made."""
    from stepvar.media.sheets import read_metadata

    metadata = read_metadata(file)
    if "version" not in metadata:
        raise StepvarError(f"{file}: does not say how it was made; it was not written by stepvar")
    width = max(map(len, metadata))
    for key, value in metadata.items():
        print(f"{key:<{width}}  {value}")


def print_table(table: Table, whole: bool = False) -> None:
    """Prints a table; ``whole``: as wide as it needs to be, rather than cut to the terminal."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    if whole:
        needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
        console = Console(width=max(console.width, needed))
    console.print(table)
