"""``stepvar plan``: what a generation will take, before anything is fetched or computed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from stepvar.cli import options
from stepvar.cli.listing import print_table
from stepvar.core.values import COUNT, DEFAULT_MODEL, Range

if TYPE_CHECKING:
    from rich.table import Table

    from stepvar.core.plan import Plan
    from stepvar.cost.dry_run import DryRun

MethodName = Annotated[str, typer.Option("--method", help="See 'stepvar methods'.")]
Guidance = Annotated[float | None, typer.Option(help="How closely to follow the prompt; 1 runs one branch.")]
NumImages = Annotated[int, typer.Option(help="Images or videos generated at once.")]
Text = Annotated[int, typer.Option(help="Tokens of the prompt.")]
Memory = Annotated[
    float | None,
    typer.Option(help="GiB of the device that is meant; default: of this machine's GPU, if it has one."),
]


def plan(
    model: options.Model = DEFAULT_MODEL,
    variant: options.Variant = None,
    method: MethodName = "dense",
    keep: options.Keep = None,
    last: options.Last = None,
    set_: options.Settings = None,
    aspect_ratio: options.AspectRatio = None,
    resolution: options.Resolution = None,
    seconds: options.Seconds = None,
    guidance_scale: Guidance = None,
    num_images: NumImages = 1,
    text: Text = 128,
    dtype: options.Dtype = "bfloat16",
    offload: options.Offload = None,
    blocks_on_device: options.BlocksOnDevice = None,
    cache_dtype: options.CacheDtype = None,
    quantization: options.Quantization = None,
    tile: options.Tile = None,
    vae_slicing: options.Slicing = False,
    memory: Memory = None,
) -> None:
    """Show what a generation will compute and how much memory it needs, beside dense; fails if it does not fit."""
    precision, kind = options.parse_dtype(dtype), options.parse_quantization(quantization)
    options.check_counts(
        num_images=(num_images, COUNT), text=(text, COUNT), memory=(memory, Range(above=0, most=10**6))
    )
    if method == "dense" and (keep is not None or last is not None or set_):
        method = "stepvar"
    saving = options.Memory(offload, blocks_on_device, cache_dtype, tile, vae_slicing)
    chosen = options.parse_method(method, {"keep": keep, "last": last}, set_ or [])

    from stepvar.checkpoints.loading import meta_model
    from stepvar.cost.memory import check_fits
    from stepvar.methods import Method
    from stepvar.methods.contract import chosen_plan
    from stepvar.models.meta import without_compiler
    from stepvar.pipeline import Pipeline

    pipe = Pipeline(meta_model(model, variant), None).to(dtype=precision)
    if kind is not None:
        pipe.model.quantize(kind)
    saving.apply(pipe, "meta")
    settings = pipe.settings(
        aspect_ratio=aspect_ratio, resolution=resolution, seconds=seconds, guidance_scale=guidance_scale
    )
    taken: dict[str, tuple[Plan, DryRun]] = {}
    with without_compiler():
        for one in (chosen, Method()):
            if str(one) not in taken:
                resolved = one.plan(settings, pipe.model.info, num_images)
                taken[str(one)] = (resolved, pipe.dry_run(resolved, one, text))
    own, *dense = taken.values()
    formats = dtype if kind is None else f"{dtype} {kind}"
    title = f"{pipe.name} {settings.schedule.name}, {chosen}, {num_images} at once, {formats}"
    title += "".join(f", {words}" for words in saving.describe())
    print_table(scales_table(title, *own, dense[0][1] if dense else None), whole=True)
    if not chosen.knows_counts:
        print(f"kept: at most; {chosen} decides by the image how many")
    if own[0].decision is not None:
        with without_compiler():
            ways = {name: chosen_plan(own[0], name, chosen) for name in own[0].decision.plans}
            spent = {name: pipe.dry_run(way, chosen, text) for name, way in ways.items()}
        print_table(decision_table(own[0], ways, spent, (dense[0][1] if dense else own[1]).flops), whole=True)
    print_table(memory_table(own[1], dense[0][1] if dense else None))
    available, where = _available(memory)
    if available is not None:
        check_fits(own[1], available, where)
        print(f"fits: {where} has {available / 2**30:.1f} GiB")


def _available(memory: float | None) -> tuple[int | None, str]:
    """Bytes of the device that is meant, and its name."""
    import torch

    from stepvar.cost.memory import memory_of

    if memory is not None:
        return int(memory * 2**30), "the device"
    if torch.cuda.is_available():
        return memory_of(torch.device("cuda")), torch.cuda.get_device_name()
    return None, ""


def scales_table(title: str, plan: Plan, taken: DryRun, dense: DryRun | None) -> Table:
    """One row per scale that goes through the blocks, all of its repetitions together, and what comes before them.

    Args:
        dense: what dense generation takes, to stand beside; None: nothing.
    """
    from rich.table import Table

    table = Table(title=title)
    beside = [] if dense is None else ["dense TFLOP"]
    for column in ("clip", "scale", "grid", "passes", "tokens", "kept", "branches", "TFLOP", "share", *beside):
        table.add_column(column, justify="right")
    total = sum(taken.flops.values()) or 1
    tokens = kept = 0
    for (clip, scale), group in groupby(plan.computed, key=lambda step: (step.clip, step.scale)):
        steps = list(group)
        grid, count = steps[0].grid, len(steps)
        fewest, flops = min(step.fewest_tokens for step in steps), sum(taken.flops[step.index] for step in steps)
        tokens, kept = tokens + count * grid.size, kept + count * fewest
        cells = [clip, scale, grid, count, grid.size, fewest, max(step.branches for step in steps), _tera(flops)]
        cells += [f"{100 * flops / total:.1f} %"]
        if dense is not None:
            cells += [_tera(sum(dense.flops[step.index] for step in steps))]
        table.add_row(*map(str, cells))
    table.add_section()
    cells = ["all", "", "", len(plan.computed), tokens, kept, "", _tera(total), ""]
    table.add_row(*map(str, cells if dense is None else [*cells, _tera(sum(dense.flops.values()))]))
    cells = ["prepare", *[""] * 6, _tera(taken.prepare_flops), ""]  # the text, and for an edit the pass over its source
    table.add_row(*(cells if dense is None else [*cells, _tera(dense.prepare_flops)]))
    return table


def decision_table(
    plan: Plan, ways: Mapping[str, Plan], spent: Mapping[str, DryRun], dense: Mapping[int, int]
) -> Table:
    """What may follow a decision, the cheapest first; the other tables show the most that it may cost.

    Args:
        plan: the one with the decision.
        ways, spent: what may be chosen, and what a generation takes then.
        dense: operations of each pass of dense generation.
    """
    from rich.table import Table

    assert plan.decision is not None
    step = plan.step(plan.decision.after)
    table = Table(title=f"decided behind scale {step.scale} ({step.grid}); the other tables show the most")
    for column in ("decision", "passes", "tokens", "TFLOP", "of dense"):
        table.add_column(column, justify="right")
    totals = {name: sum(one.flops.values()) for name, one in spent.items()}
    for name in sorted(ways, key=lambda name: totals[name]):
        steps = ways[name].computed
        share = totals[name] / (sum(dense.values()) or 1)
        cells = (name, len(steps), sum(step.grid.size for step in steps), _tera(totals[name]), f"{100 * share:.1f} %")
        table.add_row(*map(str, cells))
    return table


def _tera(flops: int) -> str:
    return f"{flops / 1e12:,.3f}"


def memory_table(taken: DryRun, dense: DryRun | None) -> Table:
    """What is held, and the peak; arguments as for :func:`scales_table`."""
    from rich.table import Table

    table = Table(title="memory, without a text encoder")
    table.add_column("of")
    columns = {"GiB": taken} if dense is None else {"GiB": taken, "dense GiB": dense}
    for column in columns:
        table.add_column(column, justify="right")
    rows = ["weights", "cache", "scales", "decoding", "peak"]
    if taken.decoder_weights != taken.weights:
        rows.insert(3, "decoder_weights")
    for name in rows:
        if name == "peak":
            table.add_section()
        cells = (f"{getattr(one, name) / 2**30:.2f}" for one in columns.values())
        table.add_row(name.replace("decoder_weights", "weights while decoding"), *cells)
    return table
