"""Commands that tell what there is: methods, models, the origin of an image."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Hashable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from stepvar.cli import options
from stepvar.errors import StepvarError, printable

if TYPE_CHECKING:
    from rich.table import Table

    from stepvar.methods import Method
    from stepvar.models.family import Family


Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")]


def methods(
    name: Annotated[str | None, typer.Argument(help="Show all of this method: settings, bounds, presets.")] = None,
    as_json: Json = False,
) -> None:
    """List the acceleration methods, or show one of them with its settings."""
    from rich.table import Table

    from stepvar.methods import all_methods
    from stepvar.methods.registry import summary_of

    if name is not None:
        show_method(name, as_json)
        return
    if as_json:
        print_json({name: describe_method(method) for name, method in all_methods().items()})
        return
    table = Table("method", "what it does", "presets")
    for known, method in all_methods().items():
        table.add_row(known, summary_of(method), ", ".join(method.presets))
    table.caption = "'stepvar methods NAME' shows settings; your own class: --method package.module:Class"
    print_table(table)


def show_method(name: str, as_json: bool) -> None:
    """One method with its settings."""
    from rich.table import Table

    from stepvar.cli.options import find_own_classes
    from stepvar.methods.registry import parse_names

    find_own_classes(name)
    (named,) = parse_names(name)[:1]
    described = describe_method(named.method)
    if as_json:
        print_json(described)
        return
    print(f"{described['name']}\n\n{described['description']}\n")
    table = Table("setting", "default", "must be")
    for setting in described["settings"]:
        table.add_row(setting["name"], brief(setting["default"]), setting["allowed"])
    if described["settings"]:
        print_table(table, whole=True)
    for preset, values in described["presets"].items():
        given = ", ".join(f"{key}={brief(value)}" for key, value in values.items())
        print(f"preset {described['name']}:{preset} is {given}")


def brief(value: Any) -> str:
    """A setting in one line; of a long list the first entries."""
    from stepvar.core.values import LONGEST_SHOWN

    text = str(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN].rpartition(',')[0]}, ...)"


def describe_method(method: type[Method]) -> dict[str, Any]:
    """A method with its settings, for JSON."""
    from stepvar.core.values import describe_kind, field_kinds
    from stepvar.methods.registry import summary_of

    kinds = field_kinds(cast(Hashable, method))
    settings = [
        {"name": one.name, "default": plain(one.default), "allowed": describe_kind(kinds.get(one.name, Any))}
        for one in fields(method)
    ]
    documents = [
        inspect.cleandoc(base.__doc__ or "") for base in method.__mro__ if "__dataclass_params__" in vars(base)
    ]
    return {
        "name": method.name,
        "summary": summary_of(method),
        "description": documents[0] if documents else "",
        "settings": settings,
        "presets": {
            preset: {key: plain(value) for key, value in values.items()} for preset, values in method.presets.items()
        },
    }


def plain(value: Any) -> Any:
    """A default as JSON can hold it."""
    return value if isinstance(value, (bool, int, float, str, list, tuple, type(None))) else repr(value)


def print_json(value: Any) -> None:
    """On stdout, indented."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


COLUMNS = ("model", "variant", "in the package", "transformer", "tokenizer", "schedule", "image")


def models(as_json: Json = False) -> None:
    """List the models: those in the package and the released ones of every family."""
    from rich.table import Table

    rows = model_rows()
    if as_json:
        print_json([dict(zip(COLUMNS, row, strict=True)) for row in rows])
        return
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row)
    table.caption = "sizes in parameters (M: million)"
    print_table(table, whole=True)
    print("A local folder or file works too: give its path as --model.")


def model_rows() -> list[tuple[str, ...]]:
    """A row of :data:`COLUMNS` for each model."""
    from stepvar.checkpoints import EMBEDDED, find_model, read_config
    from stepvar.models.registry import FAMILIES

    rows: list[tuple[str, ...]] = []
    for name in EMBEDDED:
        try:
            config = read_config(find_model(name))
            family = FAMILIES[config["family"]]
            rows.append((name, "", "yes", *_size(family, family.config(config["model"]))))
        except StepvarError:
            rows.append((name, "", "missing here", *["?"] * 4))
    for family in FAMILIES.values():
        for variant, released in family.variants.items():
            rows.append(
                (released.repos.get("transformer", family.repos[0]), variant, "no", *_size(family, released.config))
            )
    return rows


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


def info(
    file: Annotated[
        Path,
        typer.Argument(
            parser=options.path,
            help="An image, a GIF, an MP4 or a folder of frames that stepvar wrote.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Show how an image or a video was made; 'generate --from FILE' makes it again."""
    from stepvar.media.metadata import read_metadata

    metadata = read_metadata(file)
    if "version" not in metadata:
        raise StepvarError(f"{file}: does not say how it was made; it was not written by stepvar")
    if as_json:
        print_json(metadata)
        return
    if metadata.pop("repeat", None) is not None:
        metadata["again"] = f"stepvar generate --from {shlex.quote(str(file))}"
    width = max(map(len, metadata))
    for key, value in metadata.items():
        print(f"{printable(key):<{width}}  {printable(value)}")


def print_table(table: Table, whole: bool = False) -> None:
    """Prints a table; ``whole``: as wide as it needs to be, rather than cut to the terminal."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    if whole:
        needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
        console = Console(width=max(console.width, needed))
    console.print(table)
