"""The command that checks an installation against the original implementations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stepvar.cli import options
from stepvar.cli.listing import print_table


def verify(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(parser=options.path, metavar="[PATH]...", help="Golden files, or folders of them."),
    ] = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
) -> None:
    """Check that this installation computes what the original implementations computed.

    What they computed is recorded in golden files; without a path, those that come with the package are taken. The
    last line says yes or no, and the exit status is 0 or 1.
    """
    place, precision = options.parse_device(device), options.parse_dtype(dtype)

    from stepvar.conformance import all_passed, results_table, skipped_lines, verdict, verify

    results = verify(paths or [], place, precision)
    where = f"{place}, {dtype}" if dtype == "float32" else f"{place}, {dtype} within wider bounds"
    print_table(results_table(results), whole=True)
    for line in (*skipped_lines(results), verdict(results, where)):
        print(line)
    if not all_passed(results):
        raise typer.Exit(1)
