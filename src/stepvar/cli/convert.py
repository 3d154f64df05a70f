"""``stepvar convert``: a checkpoint as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stepvar.cli import options


def convert(
    source: Annotated[str, typer.Argument(help="A model: a release on the hub, a local folder, or a weight file.")],
    out: Annotated[Path, typer.Argument(parser=options.path, help="The folder to write; it must not exist.")],
    variant: Annotated[str | None, typer.Option(help="Which of several models, such as 2b or d16.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            parser=options.path,
            metavar="PATH",
            help="The tokenizer's file, where it does not lie beside the transformer's.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(options.DTYPES)}; default: as each weight is stored."),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Write a checkpoint as a model folder: safetensors files and a configuration."""
    precision = None if dtype is None else options.parse_dtype(dtype)

    from stepvar.checkpoints import convert_model
    from stepvar.utils.progress import bar

    with bar("tensors", None, not quiet) as advance:
        folder = convert_model(source, out, variant, revision, precision, tokenizer, progress=advance)
    if not quiet:
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder}: {size / 1e6:,.1f} MB; use it as --model {folder}")
