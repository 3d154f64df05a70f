"""``stepvar eval`` and ``stepvar report``: methods compared on many prompts, and the page that shows it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepvar.cli import options
from stepvar.cli.files import Force
from stepvar.cli.likelihood import LikelihoodOptions, measure_likelihood
from stepvar.cli.quality import QualityOptions, measure_quality
from stepvar.core.values import COUNT, MOST_VALUES, Range, shown
from stepvar.errors import UsageError

if TYPE_CHECKING:
    from stepvar.evaluation.folder import RunFolder
    from stepvar.methods import Method

Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--methods",
        metavar="METHOD",
        help="A method with settings, 'stepvar keep=0.5 last=2' or 'stepvar+drop-guidance keep=0.5'; repeat for more. "
        "Dense, baselines and the noise floor always take part.",
    ),
]
Prompts = Annotated[
    str,
    typer.Option(
        "--prompts",  # typer 0.27 takes a metavar that is the name in capitals for the name
        parser=options.path_text,
        metavar="PROMPTS",
        help="'scenes' or 'scenes:256', likewise 'scenes-video'; a text file with a prompt per line; GenEval's "
        "evaluation_metadata.jsonl; DPG-Bench's folder of prompts. For models that edit JSON lines with 'prompt' and "
        "'image'.",
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        "--images",
        parser=options.path_text,
        metavar="IMAGES",
        help="With --likelihood: a folder of images; or 'scenes:64', renders.",
    ),
]
Captions = Annotated[
    Path | None,
    typer.Option(
        parser=options.path,
        metavar="PATH",
        help="With --likelihood: a .csv or .jsonl with file_name and text, a prompt or class for each image.",
    ),
]
Scores = Annotated[str | None, typer.Option(help="Of an image against its prompt: clip, image-reward, hpsv2.")]
Reference = Annotated[
    Path | None,
    typer.Option(
        parser=options.path, metavar="PATH", help="Folder of real images for FID and KID by Inception features."
    ),
]


def evaluate(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", parser=options.path, metavar="PATH", help="Folder; a run that it holds goes on."),
    ],
    methods: Methods = None,
    prompts: Prompts = "scenes",
    likelihood: Annotated[
        bool, typer.Option("--likelihood", help="Measure how likely the model finds given images, and generate none.")
    ] = False,
    images: Images = None,
    captions: Captions = None,
    model: options.Model = "scenes",
    variant: options.Variant = None,
    text_encoder: options.TextEncoder = None,
    seeds: Annotated[str, typer.Option(help="Every prompt is generated with each, such as 0,1.")] = "0",
    limit: Annotated[int | None, typer.Option(help="Only the first so many prompts.")] = None,
    batch: Annotated[int, typer.Option(help="Images generated at once.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds in which all methods are timed in turn; 0: none.")] = 3,
    timed: Annotated[int, typer.Option("--timed-batch", help="Images at once while methods are timed.")] = 1,
    scores: Scores = None,
    reference: Reference = None,
    guidance_scale: options.GuidanceScale = None,
    temperature: options.Temperature = None,
    aspect_ratio: options.AspectRatio = None,
    resolution: options.Resolution = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    quantization: options.Quantization = None,
    quiet: options.Quiet = False,
) -> None:
    """Compare methods on many prompts: fidelity, semantics, sets of images, cost."""
    options.check_counts(
        batch=(batch, COUNT),
        rounds=(rounds, Range(0, MOST_VALUES)),
        timed_batch=(timed, COUNT),
        limit=(limit, Range(1)),
    )
    chosen = parse_methods(methods or ["stepvar"])
    numbers = parse_seeds(seeds)
    settings = {
        "guidance_scale": options.parse_numbers("guidance_scale", guidance_scale),
        "temperature": options.parse_numbers("temperature", temperature),
        "aspect_ratio": aspect_ratio,
        "resolution": resolution,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    command = shlex.join(["stepvar", *(context.obj or [])])
    load = partial(options.load_pipeline, model, device, dtype, variant, None, text_encoder, quantization=quantization)
    shared: dict[str, Any] = {
        "out": out,
        "limit": limit,
        "methods": chosen,
        "settings": settings,
        "batch": batch,
        "dtype": dtype,
        "quantization": quantization,
        "command": command,
        "quiet": quiet,
    }
    if likelihood:
        given = _given_images(images, scores is not None or reference is not None or prompts != "scenes")
        measure_likelihood(LikelihoodOptions(images=given, captions=captions, **shared), load)
        return
    if images is not None or captions is not None:
        raise UsageError("images and captions: they are what --likelihood measures; add it, or leave them out")
    asked = QualityOptions(
        model=model,
        variant=variant,
        prompts=prompts,
        seeds=numbers,
        rounds=rounds,
        timed=timed,
        scores=[name.strip() for name in scores.split(",")] if scores is not None else [],
        reference=reference,
        **shared,
    )
    measure_quality(asked, load)


def _given_images(images: str | None, generating: bool) -> str:
    """The images whose likelihood is measured.

    Args:
        generating: whether options are given that only generated images have a use for.

    Raises:
        UsageError: without images, or with such options.
    """
    if images is None:
        raise UsageError("images: --likelihood needs some; give --images with a folder, or 'scenes:64'")
    if generating:
        raise UsageError(
            "prompts, scores and reference: --likelihood generates no images; leave them out, and give --images"
        )
    return images


def report(
    run: Annotated[Path, typer.Argument(parser=options.path, help="The folder that 'stepvar eval --out' wrote.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", parser=options.path, metavar="PATH", help="HTML file; default: report.html in the run."
        ),
    ] = None,
    force: Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a page and a table of an evaluation, also of one that is not finished."""
    from stepvar.evaluation.folder import MANIFEST, RUN, TIMING, RunFolder, reading_run
    from stepvar.utils.files import write_text
    from stepvar.utils.outputs import Outputs, write_new

    target = out or run / "report.html"
    if target.suffix.lower() != ".html":
        raise UsageError(f"out {str(target)!r}: must end in .html")
    folder = RunFolder.read(run)
    claims = Outputs(force)
    for name in ("results.json", RUN, MANIFEST, TIMING):
        claims.claim("run", run / name, own=True)
    claims.claim("out", target, target.with_suffix(".md"), own=out is None)
    with reading_run(run):
        html, table = _pages(folder)
    for path, text in ((target, html), (target.with_suffix(".md"), table)):
        write_new(path, partial(write_text, text=text), force=force or out is None)
    if not quiet:
        print(f"{target}: the page; {target.with_suffix('.md')}: the table")


def _pages(folder: RunFolder) -> tuple[str, str]:
    """The page and the tables of a run, whose results are written, too."""
    from stepvar.evaluation import summary
    from stepvar.evaluation.likelihood import page as likelihood_page
    from stepvar.evaluation.likelihood import summary as likelihood
    from stepvar.evaluation.likelihood.run import KIND
    from stepvar.evaluation.report import page, tables

    if folder.settings.get("kind") == KIND:
        figures = likelihood.summarise(folder)
        likelihood.write_results(folder)
        return likelihood_page.page(figures, folder), likelihood.markdown(figures)
    results = summary.summarise(folder)
    summary.write_results(folder)
    return page.page(results, folder), tables.markdown(results)


def parse_methods(texts: Sequence[str]) -> list[tuple[str, Method]]:
    """Methods with their settings: ``NAME``, ``NAME+NAME``, and ``setting=value`` behind it, by spaces.

    Raises:
        UsageError: for an unknown method or setting, or a value that is none.
    """
    found = []
    for text in texts:
        words = text.split()
        if not words:
            raise UsageError("methods '': give a method, such as 'stepvar keep=0.5'")
        found.append((" ".join(words), options.parse_method(words[0], {}, words[1:])))
    return found


def parse_seeds(text: str) -> list[int]:
    """Different whole numbers, such as ``0,1``.

    Raises:
        UsageError: for anything else.
    """
    from stepvar.core.arguments import checked_seeds

    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,19}", part) for part in parts) or len(set(map(int, parts))) < len(parts):
        raise UsageError(f"seeds {shown(text)}: give different whole numbers, such as 0,1")
    return list(checked_seeds([int(part) for part in parts], len(parts)))
