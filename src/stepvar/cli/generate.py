"""``stepvar generate``: images and videos from prompts."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepvar import __version__
from stepvar.cli import options
from stepvar.cli.speedup import fit_settings, method_to_fit, parse_scope
from stepvar.core.values import COUNT
from stepvar.errors import UsageError
from stepvar.utils.files import check_writable, write_text

if TYPE_CHECKING:
    from PIL import Image

    from stepvar.core.plan import Step
    from stepvar.cost.speedup import Fitted
    from stepvar.methods import Method
    from stepvar.output import Output
    from stepvar.pipeline import Pipeline


VIDEO_SUFFIXES = (".mp4", ".gif")


@dataclass(frozen=True)
class Files:
    """Where results go."""

    out: Path
    report: Path | None
    preview: Path | None
    quality: int = 65

    def __post_init__(self) -> None:
        """Fails now rather than after the work if one of them cannot be written.

        Whether ``out`` is of an image or of a video shows when the model is known, see :meth:`check_kind`.
        """
        if self.out.suffix.lower() in VIDEO_SUFFIXES:
            from stepvar.media.video_files import check_quality, check_video_path

            check_video_path(self.out)
            check_quality(self.quality)
        else:
            options.output_path("out", self.out, ".png")
        if self.report is not None:
            check_writable(self.report)
        if self.preview is not None:
            options.output_path("preview", self.preview, ".png")
        given = [path.absolute() for path in (self.out, self.report, self.preview) if path is not None]
        if len(set(given)) < len(given):
            raise UsageError("out, report and preview: must be different files")

    def check_kind(self, video: bool) -> None:
        """Fails if the name of the result is not that of what will be generated, or a video has a preview."""
        name, named_video = repr(str(self.out)), self.out.suffix.lower() in VIDEO_SUFFIXES
        if video and not named_video:
            raise UsageError(f"out {name}: must end in .mp4 or .gif for a video; --seconds 0 generates an image")
        if named_video and not video:
            raise UsageError(f"out {name}: must end in .png; this generates an image")
        if video and self.preview is not None:
            raise UsageError("preview: is of images only; leave it out")


@dataclass(frozen=True)
class Job:
    """What to generate, how, and where it goes."""

    pipe: Pipeline
    prompts: list[str]
    method: Method
    seed: int
    settings: dict[str, Any]
    files: Files
    quiet: bool
    fitted: Fitted | None = None

    def save_report(self, report: dict[str, Any]) -> None:
        if self.files.report is not None:
            write_text(self.files.report, json.dumps(report, indent=2) + "\n")


Prompts = Annotated[
    list[str],
    typer.Argument(metavar="PROMPT...", help="What to generate (for VAR a class); several give several images."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="PNG file, for videos MP4 or GIF; several are numbered. Default: scene.png or .mp4."
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="See 'stepvar methods'; several at once: stepvar+drop-guidance. "
        "Default: stepvar with --keep, --set, --speedup or --compare, else dense.",
    ),
]
Negative = Annotated[str | None, typer.Option(help="What to lead away from.")]
GuidanceSchedule = Annotated[
    str | None, typer.Option(help="How one guidance scale is spread over the scales: constant, linear, linear-hold.")
]
GuidanceType = Annotated[str | None, typer.Option(help="How the guidance branches are combined: cfg or apg.")]
TopK = Annotated[int | None, typer.Option(help="Classes kept before sampling; 1 takes the most likely.")]
TopP = Annotated[float | None, typer.Option(help="Probability kept before sampling.")]
MoreSmooth = Annotated[
    bool | None,
    typer.Option(help="Models with a codebook: blends of codes, which look smoother; default: the model's own."),
]
ImageFile = Annotated[Path | None, typer.Option("--image", help="Video models: an image that the video begins with.")]
VideoFile = Annotated[Path | None, typer.Option("--video", help="Video models: a video to go on from.")]
Suffix = Annotated[str | None, typer.Option("--prompt-suffix", help="Video models: goes after every prompt.")]
Quality = Annotated[int, typer.Option(help="Of MP4 files, 0 (small) to 100 (large).")]
NumImages = Annotated[int, typer.Option(help="Images per prompt.")]
ReportFile = Annotated[Path | None, typer.Option(help="JSON file for what it cost, scale by scale.")]
Compare = Annotated[
    bool,
    typer.Option("--compare", help="Generate dense too: one sheet (or video) of both, and how much faster it was."),
]
PreviewFile = Annotated[Path | None, typer.Option(help="PNG file for the image after each scale.")]


def generate(
    prompt: Prompts,
    model: options.Model = "scenes",
    variant: options.Variant = None,
    revision: options.Revision = None,
    text_encoder: options.TextEncoder = None,
    offload: options.Offload = None,
    blocks_on_device: options.BlocksOnDevice = None,
    cache_dtype: options.CacheDtype = None,
    tile: options.Tile = None,
    vae_slicing: options.Slicing = False,
    seed: options.Seed = None,
    out: Out = None,
    method: MethodName = None,
    keep: options.Keep = None,
    last: options.Last = None,
    set_: options.Settings = None,
    speedup: options.Speedup = None,
    speedup_of: options.SpeedupOf = None,
    negative_prompt: Negative = None,
    guidance_scale: options.GuidanceScale = None,
    guidance_schedule: GuidanceSchedule = None,
    guidance_type: GuidanceType = None,
    temperature: options.Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    more_smooth: MoreSmooth = None,
    aspect_ratio: options.AspectRatio = None,
    resolution: options.Resolution = None,
    seconds: options.Seconds = None,
    image: ImageFile = None,
    video: VideoFile = None,
    prompt_suffix: Suffix = None,
    quality: Quality = 65,
    num_images: NumImages = 1,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    quantization: options.Quantization = None,
    report: ReportFile = None,
    compare: Compare = False,
    runs: options.Runs = 3,
    preview: PreviewFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Generate images or videos from prompts."""
    files = Files(out or Path("scene.png"), report, preview, quality)
    if compare and preview is not None:
        raise UsageError("preview and compare: give one of them")
    if method is None:
        given = any(value is not None for value in (keep, last, speedup)) or set_
        method = "stepvar" if compare or given else "dense"
    options.check_counts(num_images=(num_images, COUNT), runs=(runs, COUNT))
    scope = parse_scope(speedup_of, speedup)
    parse = options.parse_method if speedup is None else method_to_fit
    chosen = parse(method, {"keep": keep, "last": last}, set_ or [])
    settings = {
        "negative_prompt": negative_prompt,
        "guidance_scale": options.parse_numbers("guidance_scale", guidance_scale),
        "guidance_schedule": guidance_schedule,
        "guidance_type": guidance_type,
        "temperature": options.parse_numbers("temperature", temperature),
        "top_k": top_k,
        "top_p": top_p,
        "more_smooth": more_smooth,
        "aspect_ratio": aspect_ratio,
        "resolution": resolution,
        "num_images_per_prompt": num_images,
        "seconds": seconds,
        "image": image,
        "video": video,
        "prompt_suffix": prompt_suffix,
    }
    memory = options.Memory(offload, blocks_on_device, cache_dtype, tile, vae_slicing)
    pipe = options.load_pipeline(model, device, dtype, variant, revision, text_encoder, memory, quantization)
    generates_video = pipe.family.video and seconds != 0
    if out is None and generates_video:
        files = replace(files, out=Path("scene.mp4"))
    files.check_kind(generates_video)
    fitted = None
    if speedup is not None:
        fitted = fit_settings(pipe, speedup, scope, chosen, len(prompt) * num_images, settings, quiet)
        chosen = fitted.method
    seed = secrets.randbelow(2**31) if seed is None else seed
    job = Job(pipe, prompt, chosen, seed, settings, files, quiet, fitted)
    if compare:
        _compare(job, runs)
    else:
        _generate(job)


def _generate(job: Job) -> None:
    from stepvar.media.sheets import save_png

    pipe, files = job.pipe, job.files
    stages: list[tuple[Step, list[Image.Image]]] = []

    def on_scale_end(step: Step, state: Any) -> None:
        if files.preview is not None:
            stages.append((step, pipe.preview(state)))

    inputs: dict[str, Any] = {pipe.inputs.argument: job.prompts, "method": job.method, "seed": job.seed, **job.settings}
    output = pipe(**inputs, callback_on_scale_end=on_scale_end, progress=not job.quiet)
    results = output.videos or output.images
    paths = numbered(files.out, len(results))
    for index, (path, one) in enumerate(zip(paths, results, strict=True)):
        description = describe(pipe, output.captions[index], job.seed + index, job.method, job.settings)
        if output.videos:
            one.save(path, quality=files.quality, metadata=description, progress=not job.quiet)
        else:
            save_png(one, path, description)
    job.save_report(output.report.to_dict() | ({} if job.fitted is None else {"budget": job.fitted.to_dict()}))
    if files.preview is not None:
        save_png(_preview_sheet(stages), files.preview)
    if not job.quiet:
        _print_summary(output, paths)


def _compare(job: Job, runs: int) -> None:
    from stepvar.cli.comparison import moving_sheet, print_comparison, run_comparison, sheet
    from stepvar.media.sheets import save_png

    prompts, files = job.prompts, job.files
    comparison = run_comparison(job.pipe, prompts, job.fitted or job.method, job.seed, runs, job.quiet, **job.settings)
    metadata = describe(job.pipe, "; ".join(prompts), job.seed, comparison.method, job.settings)
    if comparison.dense.videos:
        video = moving_sheet(comparison, prompts)
        video.save(files.out, quality=files.quality, metadata=metadata, progress=not job.quiet)
    else:
        save_png(sheet(comparison, prompts), files.out, metadata)
    job.save_report(comparison.to_dict())
    if not job.quiet:
        print_comparison(comparison)
        print(files.out)


def describe(pipe: Pipeline, prompt: str, seed: int, method: Method, settings: dict[str, Any]) -> dict[str, str]:
    """What is needed to generate an image again, as texts for its file."""
    used = {key: value for key, value in settings.items() if value is not None and key != "num_images_per_prompt"}
    return {
        "prompt": prompt,
        "seed": str(seed),
        "model": pipe.name,
        "method": str(method),
        "method_settings": json.dumps(method.settings()),
        **{key: str(value) if isinstance(value, (str, Path)) else json.dumps(value) for key, value in used.items()},
        "device": pipe.device.type,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        **({} if pipe.quantization is None else {"quantization": pipe.quantization}),
        "version": f"stepvar {__version__}",
    }


def numbered(path: Path, count: int) -> list[Path]:
    """The path itself for one image, ``name-1.png`` and so on for several."""
    if count == 1:
        return [path]
    digits = len(str(count))
    return [path.with_stem(f"{path.stem}-{number:0{digits}}") for number in range(1, count + 1)]


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
