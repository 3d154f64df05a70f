"""``stepvar batch``: the rows of a file of prompts as images in a folder, on several devices."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepvar.cli import options
from stepvar.cli.generate import Quality
from stepvar.cli.groups import Acceleration, Sampling, Source, grouped
from stepvar.core.values import COUNT, Range
from stepvar.errors import UsageError

if TYPE_CHECKING:
    from stepvar.serving.batch.worker import Setup

SOME_FAILED = 1
"""Exit status where rows failed; the others are done."""

IMAGE_FORMATS, VIDEO_FORMATS = ("png", "jpg", "webp"), ("mp4", "gif")

Rows = Annotated[
    Path, typer.Argument(parser=options.path, metavar="FILE", help="Prompts as JSON lines, CSV or Parquet.")
]
Folder = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        parser=options.path,
        metavar="FOLDER",
        help="For images and the manifest; a job begun there goes on.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="png, jpg or webp, for videos mp4 or gif; or parquet: their bytes in Parquet files. Default: png or mp4.",
    ),
]
Gpus = Annotated[int, typer.Option("--gpus", help="GPUs, each with a model of its own; 0 runs on the CPU.")]
Processes = Annotated[int, typer.Option("--workers", help="Without --gpus: processes on the CPU.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Rows that each worker generates at once.")]
JobSeed = Annotated[int, typer.Option("--seed", help="Decides the seeds of rows that have none.")]


@grouped
def batch(
    file: Rows,
    out: Folder,
    *,
    source: Source,
    gpus: Gpus = 0,
    workers: Processes = 1,
    batch_size: BatchSize = 1,
    format_: Format = None,
    quality: Quality = None,
    seed: JobSeed = 0,
    acceleration: Acceleration,
    sampling: Sampling,
    cache_dtype: options.CacheDtype = None,
    tile: options.Tile = None,
    vae_slicing: options.Slicing = False,
    dtype: options.Dtype = "float32",
    quantization: options.Quantization = None,
    quiet: options.Quiet = False,
) -> None:
    """Generate an image or video for each row of a file, on several GPUs; goes on where it was stopped."""
    bounds = {"gpus": (gpus, Range(0, 4096)), "workers": (workers, COUNT), "batch_size": (batch_size, COUNT)}
    options.check_counts(**bounds, seed=(seed, Range(0, 2**63 - 1)))
    if gpus and workers != 1:
        raise UsageError(f"gpus={gpus} and workers={workers}: each GPU has one worker; leave --workers out")
    settings = sampling.arguments()
    load = {
        "name": os.path.abspath(source.model) if os.path.exists(source.model) else source.model,
        "variant": source.variant,
        "revision": source.revision,
        "text_encoder": "auto" if source.text_encoder is None else source.text_encoder,
        "device": "cuda" if gpus else "cpu",
        "dtype": str(options.parse_dtype(dtype)).removeprefix("torch."),
        "quantization": options.parse_quantization(quantization),
        "cache_dtype": options.Memory(cache_dtype=cache_dtype).cache_dtype,
    }
    chosen = options.parse_method(*acceleration.asked())
    import torch

    from stepvar.serving.batch.worker import Setup

    suffix, parquet = _parse_format(format_, source.model, source.variant, sampling.seconds, quality)
    threads = None if gpus else max(1, torch.get_num_threads() // workers)  # as many as one generation takes
    setup = Setup(load, chosen, settings, suffix, quality, tile, vae_slicing, threads)
    failed = _run(file, out, setup, parquet, seed, (gpus or workers, min(gpus, 1), batch_size), quiet)
    if failed:
        raise typer.Exit(SOME_FAILED)


def _parse_format(
    name: str | None, model: str, variant: str | None, seconds: float | None, quality: int | None
) -> tuple[str, bool]:
    """The ending of the files, and whether they go into Parquet files; nothing of the model's weights is read."""
    from stepvar.checkpoints.sources import find_outline
    from stepvar.media.saving import check_quality_of, default_suffix

    family = find_outline(model, variant).family
    if family.edits:
        raise UsageError(f"model {model!r}: changes images, and rows have none; use 'stepvar generate --prompts'")
    video = family.video and seconds != 0
    formats = VIDEO_FORMATS if video else IMAGE_FORMATS
    if name not in (None, "parquet", *formats):
        raise UsageError(f"format={name!r}: must be one of {', '.join(formats)}, parquet")
    parquet = name == "parquet"
    suffix = default_suffix(video) if name is None or parquet else f".{name}"
    check_quality_of(quality, suffix)
    return suffix, parquet


def _run(
    file: Path, out: Path, setup: Setup, parquet: bool, seed: int, workers: tuple[int, int, int], quiet: bool
) -> int:
    """Runs the job and says how it ended; returns how many rows failed."""
    from stepvar.serving.batch.folder import MANIFEST, PARQUET, BatchFolder
    from stepvar.serving.batch.job import Workers, check_ray, run_job
    from stepvar.serving.batch.rows import read_rows

    check_ray()
    rows = read_rows(file, seed)
    folder = BatchFolder.open(out, job_settings(setup, parquet, seed), PARQUET if parquet else setup.suffix)
    summary = run_job(rows, folder, setup, Workers(*workers), quiet)
    if not quiet:
        there = f", {summary.skipped} done before" if summary.skipped else ""
        print(f"{out / MANIFEST}: {len(rows)} rows: {summary.done} done, {summary.failed} failed{there}")
        if summary.failure is not None:
            print(f"the first that failed: {summary.failure}")
    return summary.failed


def job_settings(setup: Setup, parquet: bool, seed: int) -> dict[str, Any]:
    """What images depend on beside their rows: a job goes on with the same alone."""
    shared = {key: value for key, value in {**setup.load, **setup.settings}.items() if value is not None}
    files = {"format": setup.suffix.removeprefix("."), "parquet": parquet, "quality": setup.quality, "tile": setup.tile}
    method = {"method": str(setup.method), "method_settings": setup.method.settings()}
    return {**shared, **method, **files, "seed": seed}
