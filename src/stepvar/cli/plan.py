"""``stepvar plan``: what a generation will take, before anything is fetched or computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stepvar.cli.listing import print_table
from stepvar.cli.options import DtypeOption, ModelOption, TileOption, VariantOption, parse_dtype, parse_method
from stepvar.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from stepvar.cost.forecast import ScaleForecast
    from stepvar.cost.memory import MemoryEstimate

MethodName = Annotated[str, typer.Option("--method", help="See 'stepvar methods'.")]
Keep = Annotated[str | None, typer.Option(help="Share of tokens kept at the late scales; or one per scale, 0.7,0.4.")]
Last = Annotated[str | None, typer.Option(help="How many scales from the end are pruned.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting of the method.")]
AspectRatio = Annotated[str | None, typer.Option(help="Width to height, such as 3:2; default: the model's own.")]
Resolution = Annotated[str | None, typer.Option(help="Name of a schedule, such as 0.25M.")]
Seconds = Annotated[float | None, typer.Option(help="Video models: length of the video; 0 is a picture.")]
Guidance = Annotated[float | None, typer.Option(help="How closely to follow the prompt; 1 runs one branch.")]
NumImages = Annotated[int, typer.Option(help="Pictures or videos drawn at once.")]
Text = Annotated[int, typer.Option(help="Tokens of the prompt.")]
Memory = Annotated[
    float | None,
    typer.Option(help="GiB of the device that is meant; default: of this machine's GPU, if it has one."),
]


def plan(
    model: ModelOption = "scenes",
    variant: VariantOption = None,
    method: MethodName = "dense",
    keep: Keep = None,
    last: Last = None,
    set_: Settings = None,
    aspect_ratio: AspectRatio = None,
    resolution: Resolution = None,
    seconds: Seconds = None,
    guidance_scale: Guidance = None,
    num_images: NumImages = 1,
    text: Text = 128,
    dtype: DtypeOption = "bfloat16",
    tile: TileOption = None,
    memory: Memory = None,
) -> None:
    """Show what a generation will compute and how much memory it needs; fails if that does not fit."""
    precision = parse_dtype(dtype)
    if num_images < 1 or text < 1:
        raise UsageError(f"num-images={num_images}, text={text}: must be at least 1")
    if method == "dense" and (keep or last or set_):
        method = "stepvar"
    chosen = parse_method(method, {"keep": keep, "last": last}, set_ or [])

    from stepvar.checkpoints.loading import meta_model
    from stepvar.cost.forecast import forecast
    from stepvar.cost.memory import estimate_memory
    from stepvar.pipeline import Pipeline

    pipe = Pipeline(meta_model(model, variant), None)
    planned = pipe.plan(
        aspect_ratio=aspect_ratio, resolution=resolution, seconds=seconds, guidance_scale=guidance_scale
    )
    chosen.prepare(planned, pipe.model.info)
    scales = forecast(pipe.model, planned, chosen, num_images, text)
    estimate = estimate_memory(pipe.model.config, planned, chosen, num_images, precision, tile, text)
    title = f"{pipe.name} {planned.schedule.name}, {chosen}, {num_images} at once, {dtype}"
    print_table(scales_table(title, scales), whole=True)
    print_table(memory_table(estimate))
    available, where = _available(memory)
    if available is not None:
        estimate.check(available, where)
        print(f"fits: {where} has {available / 2**30:.1f} GiB")


def _available(memory: float | None) -> tuple[int | None, str]:
    """Bytes of the device that is meant, and its name."""
    import torch

    from stepvar.cost.memory import memory_of

    if memory is not None:
        if not memory > 0:
            raise UsageError(f"memory={memory}: must be a positive number of GiB")
        return int(memory * 2**30), "the device"
    if torch.cuda.is_available():
        return memory_of(torch.device("cuda")), torch.cuda.get_device_name()
    return None, ""


def scales_table(title: str, scales: list[ScaleForecast]) -> Table:
    """One row per scale that goes through the blocks."""
    from rich.table import Table

    table = Table(title=title)
    for column in ("clip", "scale", "grid", "passes", "tokens", "kept", "branches", "TFLOP", "share"):
        table.add_column(column, justify="right")
    total = sum(scale.flops for scale in scales) or 1
    for scale in scales:
        t, h, w = scale.grid
        table.add_row(
            str(scale.clip),
            str(scale.scale),
            f"{h}x{w}" if t == 1 else f"{t}x{h}x{w}",
            str(scale.passes),
            str(scale.tokens),
            str(scale.kept),
            str(scale.branches),
            f"{scale.flops / 1e12:,.3f}",
            f"{100 * scale.flops / total:.1f} %",
        )
    table.add_section()
    tokens, kept = (
        sum(count * scale.passes for scale, count in zip(scales, counts, strict=True))
        for counts in ([scale.tokens for scale in scales], [scale.kept for scale in scales])
    )
    passes = str(sum(scale.passes for scale in scales))
    table.add_row("all", "", "", passes, str(tokens), str(kept), "", f"{total / 1e12:,.3f}", "")
    return table


def memory_table(estimate: MemoryEstimate) -> Table:
    """What is held, and the peak."""
    from rich.table import Table

    table = Table(title="memory, without a text encoder")
    table.add_column("of")
    table.add_column("GiB", justify="right")
    for name in ("weights", "cache", "latent", "activations", "decode"):
        table.add_row(name, f"{getattr(estimate, name) / 2**30:.2f}")
    table.add_section()
    table.add_row("peak", f"{estimate.total / 2**30:.2f}")
    return table
