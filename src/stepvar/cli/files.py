"""The files of ``stepvar generate``, decided and checked before a model is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from stepvar.errors import UsageError
from stepvar.utils.outputs import Outputs, check_outside, free_name, is_folder_name, write_new

Force = Annotated[
    bool, typer.Option("--force", "-f", help="Replace files that are there; without it the command stops.")
]


@dataclass(frozen=True)
class Files:
    """Where results go.

    Attributes:
        results: one per image or video; a comparison has one.
        report: JSON file for costs.
        preview: image of the scales.
        quality: of lossy formats; None: that of the format.
        force: whether files that are there may be replaced.
        own: whether the names of the results are the command's own, which move on to the next free one.
    """

    results: list[Path]
    report: Path | None
    preview: Path | None
    quality: int | None = None
    force: bool = False
    own: bool = False

    def write_result(self, path: Path, write: Callable[[Path], object]) -> Path:
        """Writes one of the results; returns where."""
        return write_new(path, write, force=self.force, own=self.own)

    def write_other(self, path: Path, write: Callable[[Path], object]) -> None:
        """Writes the report or the preview."""
        write_new(path, write, force=self.force)


def claim_files(
    out: str | Path | None,
    report: Path | None,
    preview: Path | None,
    *,
    video: bool,
    number: int,
    quality: int | None = None,
    force: bool = False,
) -> Files:
    """The files of a run, none of which is another, or one that is there; unless ``force`` says so.

    Args:
        out: a file, a folder, or None: the next free ``scene.png`` or ``scene.mp4``.
        video: whether videos will be generated.
        number: of results.

    Raises:
        UsageError: for a name that is not that of what will be generated, or two that are one file.
        OutputError: if one of them cannot be written, or exists.
    """
    from stepvar.media.images import image_format
    from stepvar.media.saving import check_results, default_suffix, result_paths

    own = out is None or is_folder_name(out)  # numbers in a folder are new ones
    if out is None:
        out = free_name(Path(f"scene{default_suffix(video)}"), number)
    if is_folder_name(out):
        for name, path in (("report", report), ("preview", preview)):
            if path is not None:
                check_outside(name, path, Path(out))
    results = result_paths(out, number, video)
    check_results(results, video, quality, "out")
    claims = Outputs(force)
    claims.claim("out", *results, own=is_folder_name(out))
    if report is not None:
        claims.claim("report", report)
    if preview is not None:
        if video:
            raise UsageError("preview: is of images only; leave it out")
        image_format(preview)
        claims.claim("preview", preview)
    return Files(results, report, preview, quality, force, own)
