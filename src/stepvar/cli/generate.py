"""``stepvar generate``: images and videos from prompts."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from stepvar.cli import options
from stepvar.cli.files import Files, Force, claim_files
from stepvar.cli.groups import Acceleration, Precision, Sampling, Source, grouped
from stepvar.cli.prompts import Batch, check_images, check_prompts, read_batches
from stepvar.cli.speedup import fit_settings, method_to_fit, parse_scope
from stepvar.core.values import COUNT
from stepvar.errors import UsageError
from stepvar.utils.files import write_text

if TYPE_CHECKING:
    from PIL import Image

    from stepvar.core.plan import Step
    from stepvar.cost.speedup import Fitted
    from stepvar.methods import Method
    from stepvar.output import Output
    from stepvar.pipeline import Pipeline


@dataclass(frozen=True)
class Job:
    """What to generate, how, and where it goes.

    Attributes:
        batches: those of a file one after the other.
        seed: of the first image; each has the next one.
    """

    pipe: Pipeline
    batches: list[Batch]
    method: Method
    seed: int
    settings: dict[str, Any]
    files: Files
    quiet: bool
    fitted: Fitted | None = None


Prompts = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT...", help="What to generate (for VAR a class); several give several images."),
]
PromptFile = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        parser=options.path_text,
        metavar="PATH",
        help="File of prompts: one per line, or JSON lines with 'prompt' (and 'image'); one after the other.",
    ),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from", parser=options.path, metavar="FILE", help="Generate the image or video of a file again, to the bit."
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        parser=options.path_text,
        metavar="PATH",
        help="PNG, JPEG or WebP file, for videos MP4 or GIF; several are numbered. Or a folder. Default: the next free "
        "scene.png or scene.mp4.",
    ),
]
ImageFile = Annotated[
    Path | None,
    typer.Option(
        "--image",
        parser=options.path,
        metavar="PATH",
        help="Models that edit: the image to change. Video models: an image that the video begins with.",
    ),
]
VideoFile = Annotated[
    Path | None,
    typer.Option("--video", parser=options.path, metavar="PATH", help="Video models: a video to go on from."),
]
Quality = Annotated[
    int | None,
    typer.Option(help="0 (small) to 100 (large); default: MP4 65, JPEG 95, WebP without loss."),
]
NumImages = Annotated[int, typer.Option(help="Images per prompt.")]
ReportFile = Annotated[
    Path | None, typer.Option(parser=options.path, metavar="PATH", help="JSON file for what it cost, scale by scale.")
]
Compare = Annotated[
    bool,
    typer.Option("--compare", help="Generate dense too: one sheet (or video) of both, and how much faster it was."),
]
PreviewFile = Annotated[
    Path | None, typer.Option(parser=options.path, metavar="PATH", help="Image file for the image after each scale.")
]


@grouped
def generate(
    context: typer.Context,
    prompt: Prompts = None,
    prompts: PromptFile = None,
    from_: From = None,
    *,
    source: Source,
    memory: options.Memory,
    seed: options.Seed = None,
    out: Out = None,
    force: Force = False,
    acceleration: Acceleration,
    speedup: options.Speedup = None,
    speedup_of: options.SpeedupOf = None,
    sampling: Sampling,
    image: ImageFile = None,
    video: VideoFile = None,
    quality: Quality = None,
    num_images: NumImages = 1,
    precision: Precision,
    report: ReportFile = None,
    compare: Compare = False,
    runs: options.Runs = 3,
    preview: PreviewFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Generate images or videos from prompts."""
    if from_ is not None:
        _repeat(context, from_, out, force, quality, quiet)
        return
    batches = read_batches(prompt, prompts, image)
    options.check_counts(num_images=(num_images, COUNT), runs=(runs, COUNT))
    if compare and preview is not None:
        raise UsageError("preview and compare: give one of them")
    if prompts is not None and (compare or preview is not None):
        raise UsageError("prompts: a file of prompts has no --compare and no --preview; give prompts as arguments")
    scope = parse_scope(speedup_of, speedup)
    parse: Callable[..., Method | str] = options.parse_method if speedup is None else method_to_fit
    chosen = parse(*acceleration.asked(acts=compare or speedup is not None))
    settings = sampling.arguments() | {"num_images_per_prompt": num_images, "video": video}
    precision.check()
    check_images(source.model, source.variant, batches)
    files = claim_files(
        out,
        report,
        preview,
        video=_makes_video(source.model, source.variant, sampling.seconds),
        number=1 if compare else sum(len(batch.prompts) for batch in batches) * num_images,
        quality=quality,
        force=force,
    )
    pipe = source.loader(precision, memory)()
    check_prompts(pipe, batches, sampling.prompt_suffix)
    fitted = None
    if speedup is not None:
        fitted = fit_settings(pipe, speedup, scope, chosen, len(batches[0].prompts) * num_images, settings, quiet)
    acting = cast("Method", chosen) if fitted is None else fitted.method
    seed = secrets.randbelow(2**31) if seed is None else seed
    job = Job(pipe, batches, acting, seed, settings, files, quiet, fitted)
    if compare:
        _compare(job, runs)
    else:
        _generate(job)


def _makes_video(model: str, variant: str | None, seconds: float | None) -> bool:
    """Whether a model will generate videos; known before its weights are read."""
    from stepvar.checkpoints.sources import find_outline

    return find_outline(model, variant).family.video and seconds != 0


def _generate(job: Job) -> None:
    from stepvar.media.images import save_image
    from stepvar.media.saving import save_result

    pipe, files = job.pipe, job.files
    stages: list[tuple[Step, list[Image.Image]]] = []
    reports, paths, seed = [], iter(files.results), job.seed

    def on_scale_end(step: Step, state: Any) -> None:
        if files.preview is not None:
            stages.append((step, pipe.preview(state)))

    for batch in job.batches:
        inputs: dict[str, Any] = {pipe.inputs.argument: batch.prompts, "image": batch.image, "seed": seed}
        inputs |= {"method": job.method, **job.settings}
        output = pipe(**inputs, callback_on_scale_end=on_scale_end, progress=not job.quiet)
        results = list(zip(islice(paths, len(output.captions)), output.videos or output.images, strict=True))
        written = []
        for (path, one), texts in zip(results, output.metadata, strict=True):
            save = partial(save_result, one, texts=texts, quality=files.quality, progress=not job.quiet)
            written.append(files.write_result(path, save))
        reports.append(output.report.to_dict())
        seed += len(results)
        if not job.quiet:
            _print_summary(output, written)
    if files.report is not None:
        report = reports[0] if len(reports) == 1 else {"generations": reports}
        report |= {} if job.fitted is None else {"budget": job.fitted.to_dict()}
        files.write_other(files.report, partial(_write_json, content=report))
    if files.preview is not None:
        files.write_other(files.preview, partial(save_image, _preview_sheet(stages)))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def _compare(job: Job, runs: int) -> None:
    from stepvar.cli.comparison import moving_sheet, print_comparison, run_comparison, sheet
    from stepvar.media.saving import save_result

    (batch,), files = job.batches, job.files
    prompts, settings = batch.prompts, {"image": batch.image, **job.settings}
    comparison = run_comparison(job.pipe, prompts, job.fitted or job.method, job.seed, runs, job.quiet, **settings)
    shown = moving_sheet(comparison, prompts) if comparison.dense.videos else sheet(comparison, prompts)
    texts = sheet_texts(comparison.other, prompts)
    save = partial(save_result, shown, texts=texts, quality=files.quality, progress=not job.quiet)
    path = files.write_result(files.results[0], save)
    if files.report is not None:
        files.write_other(files.report, partial(_write_json, content=comparison.to_dict()))
    if not job.quiet:
        print_comparison(comparison)
        print(path)


def sheet_texts(output: Output, prompts: list[str]) -> dict[str, str]:
    """How the images of a sheet were made; a sheet itself cannot be generated again."""
    texts = {key: value for key, value in output.metadata[0].items() if key != "repeat"}
    return texts | {"prompt": "; ".join(prompts), "not repeatable": "it is a comparison of several images"}


def _repeat(context: typer.Context, file: Path, out: str | None, force: bool, quality: int | None, quiet: bool) -> None:
    """Generates what a file holds again, with the settings that it states."""
    from stepvar.media.metadata import read_metadata
    from stepvar.media.saving import save_result, stated_quality
    from stepvar.pipeline import Pipeline
    from stepvar.pipeline.records import read_record

    allowed = ("from_", "out", "force", "quality", "quiet")
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in allowed and source is not None and source.name == "COMMANDLINE":
            raise UsageError(
                f"from and {name.rstrip('_')}: the file says all but --out, --force, --quality and --quiet"
            )
    texts = read_metadata(file)
    record = read_record(texts, str(file))
    made = dict(record.pipeline)
    tile, name, variant, sliced = (made.pop(key) for key in ("tile", "name", "variant", "sliced"))
    place, precision = options.parse_device(made.pop("device")), options.parse_dtype(made.pop("dtype"))
    video = _makes_video(name, variant, record.call.get("seconds"))
    files = claim_files(out, None, None, video=video, number=1, quality=quality, force=force)
    if quality is None:
        quality = stated_quality(texts, file, files.results[0])
    pipe = Pipeline.from_pretrained(name, variant, device=place, dtype=precision, **made)
    pipe.sliced = sliced
    if tile is not None:
        pipe.enable_vae_tiling(tile)
    output = record.run(pipe, progress=not quiet)
    result = list(output.videos or output.images)[record.index]
    texts = output.metadata[record.index]
    path = files.write_result(
        files.results[0], partial(save_result, result, texts=texts, quality=quality, progress=not quiet)
    )
    if not quiet:
        print(f"{path}: as {file}, seed {record.call['seed'][record.index]}")


def _preview_sheet(stages: list[tuple[Step, list[Image.Image]]]) -> Image.Image:
    """One row per image, one column per scale."""
    from stepvar.media.sheets import contact_sheet

    count = len(stages[0][1])
    tiles = [(f"after {step.grid}", images[row]) for row in range(count) for step, images in stages]
    return contact_sheet(tiles, len(stages))


def _print_summary(output: Output, paths: list[Path]) -> None:
    report = output.report
    for path, one, seed in zip(paths, output.videos or output.images, output.seeds or (), strict=True):
        length = f", {len(one)} frames at {one.fps:g} per second" if output.videos else ""
        print(f"{path}: {one.size[0]}x{one.size[1]}{length}, seed {seed}")
    print(
        f"{report.model}, {report.method}: {report.seconds:.2f} s, "
        f"{report.kept} of {report.tokens} tokens, {report.flops / 1e9:.1f} GFLOP"
    )
