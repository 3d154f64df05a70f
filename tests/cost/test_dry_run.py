"""What a dry run counts, against real runs on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan, Settings, Step
from stepvar.cost import dry_run as module
from stepvar.cost.dry_run import DryRun, ModelSpec, dry_run, flop_counter, meta_model
from stepvar.generation import generate
from stepvar.methods import FastVAR, Method, StepVAR, make_method
from stepvar.models.infinity import Infinity, TextCondition
from stepvar.models.infinity_star.model import VideoCondition
from stepvar.models.offload import split
from stepvar.models.var import VAR, ClassCondition
from tests.cost.live import counted_flops, live_peak
from tests.helpers import (
    CLIPS,
    SQUARE,
    TINY,
    TINY_STAR,
    TINY_VAR,
    WIDE,
    make_hart,
    make_model,
    make_settings,
    make_star,
    make_text,
    make_var,
)
from tests.methods.families import ROWS, FamilyRow

INSIDE = FastVAR(prune=(0.5,), skip=1, blocks_before=1, blocks_after=1)
CHOSEN = [
    *map(make_method, ("dense", "stepvar", "sparsevar", "latent-delta", "skip-last", "drop-guidance")),
    INSIDE,
    StepVAR(keep=(0.3, 0.2), blocks_before=1),
    StepVAR(keep=0.25, scope="sublayer", restore="cached", propagate="update"),
    make_method("stepvar+drop-guidance"),
]


def real_run(
    model: Any, condition: Any, plan: Plan, method: Method, forced: Mapping[int, Tensor] | None = None
) -> tuple[dict[int, int], int]:
    """Operations of each pass, and most bytes that generation and decoding hold beside the weights."""
    behind = [counted_flops(lambda _: model.start(condition, plan))]

    def counted(so_far: Callable[[], int]) -> None:
        def on_scale_end(step: Step, _: Any) -> None:
            behind.append(so_far())

        generate(model, condition, plan, method, noise(plan), forced, on_scale_end=on_scale_end)

    def whole() -> None:
        model.decode(generate(model, condition, plan, method, noise(plan), forced))

    counted_flops(counted)
    flops = [after - before for before, after in pairwise(behind)]
    return dict(zip([step.index for step in plan.steps], flops, strict=True)), live_peak(whole, model)


def noise(plan: Plan) -> SeededNoise:
    return SeededNoise(range(plan.samples))


def taken(model: Any, condition: Any, settings: Settings, method: Method, samples: int) -> tuple[Plan, DryRun]:
    plan = method.plan(settings, model.info, samples)
    return plan, dry_run(model, condition, plan, method)


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("method", CHOSEN, ids=repr)
def test_operations_and_memory_are_those_of_a_real_run(row: FamilyRow, method: Method) -> None:
    model, condition = row.model(), row.condition(range(2))
    plan, dry = taken(model, condition, make_settings(row.schedule), method, 2)
    flops, peak = real_run(model, condition, plan, method)
    assert dry.flops == flops
    assert dry.peak - dry.weights == pytest.approx(peak, rel=0.1)
    assert dry.weights == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("guidance", [1.0, (3.0, 3.0, 3.0, 1.0, 1.0, 1.0), (1.0, 3.0, 3.0, 1.0, 2.0, 1.0)], ids=str)
@pytest.mark.parametrize("cfg_layers", [(0,), (-2,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_guidance_and_formats(guidance: Any, cfg_layers: tuple[int, ...], dtype: torch.dtype) -> None:
    model = make_model(replace(TINY, patchify=True)).to(dtype)
    condition = TextCondition(make_text((5, 3)), make_text((4, 4), 50))
    settings, method = make_settings(WIDE, guidance, cfg_layers=cfg_layers), StepVAR(keep=0.5)
    plan, dry = taken(model, condition, settings, method, 2)
    flops, peak = real_run(model, condition, plan, method)
    assert dry.flops == flops
    assert dry.peak - dry.weights == pytest.approx(peak, rel=0.1)
    assert dry.cache == model.start(condition, plan).cache.nbytes


@pytest.mark.parametrize("smooth", [False, True])
def test_a_codebook_sampled_with_truncation(tiny_var: VAR, smooth: bool) -> None:
    soft = {"smooth": (0.0, 0.25, 0.5, 0.75, 1.0)} if smooth else {}
    settings = make_settings(SQUARE, top_k=8, top_p=0.9, **soft)
    plan, dry = taken(tiny_var, ClassCondition((1, 2)), settings, Method(), 2)
    flops, peak = real_run(tiny_var, ClassCondition((1, 2)), plan, Method())
    assert dry.flops == flops and dry.peak - dry.weights == pytest.approx(peak, rel=0.1)


LARGE: dict[str, tuple[Any, Any, Settings]] = {
    "blocks": (
        make_model(replace(TINY, width=256, heads=4)),
        TextCondition(make_text((5,))),
        make_settings(type(SQUARE).of([(1, 1), (8, 8), (24, 24)])),
    ),
    "decoding": (make_var(replace(TINY_VAR, patch_nums=(1, 24))), ClassCondition((1,)), make_settings(
        replace(TINY_VAR, patch_nums=(1, 24)).schedule
    )),
    "video": (make_star(), VideoCondition(make_text((5,))), make_settings(CLIPS)),
}  # fmt: skip


@pytest.mark.parametrize("offload", [("model", 0), ("sequential", 0), ("sequential", 1)], ids=str)
@pytest.mark.parametrize("cache", [None, "int8"])
@pytest.mark.parametrize("part", ["blocks", "video"])
def test_memory_of_offloaded_weights_and_of_a_smaller_cache(part: str, cache: Any, offload: Any) -> None:
    model, condition, settings = LARGE[part]
    model = copy.deepcopy(model).set_cache_dtype(cache)
    plan = Method().plan(settings, model.info, 1)
    always = sum(tensor.nbytes for tensor in split(model, *offload).rest)
    model.enable_offload(offload[0], torch.device("cpu"), offload[1])
    dry = dry_run(model, condition, plan, Method())

    def whole() -> None:
        model.decode(generate(model, condition, plan, Method(), noise(plan)))

    assert dry.peak - always == pytest.approx(live_peak(whole, model), rel=0.1)
    with model.on_device("loop"):
        assert dry.cache == model.start(condition, plan).cache.nbytes


@pytest.mark.parametrize("part", LARGE)
@pytest.mark.parametrize("tile", [None, 8])
def test_memory_of_larger_images_and_tiles(part: str, tile: int | None) -> None:
    model, condition, settings = LARGE[part]
    plan = Method().plan(settings, model.info, 1)
    dry = dry_run(model, condition, plan, Method(), tile=tile)

    def whole() -> None:
        model.decode(generate(model, condition, plan, Method(), noise(plan)), tile)

    assert dry.peak - dry.weights == pytest.approx(live_peak(whole, model), rel=0.1)


@pytest.mark.parametrize(
    "method",
    [
        Method(),
        INSIDE,
        StepVAR(keep=0.25, scope="block"),
        make_method("sparsevar"),
        make_method("scalekv", budget=0.3, window=4),
        make_method("sparvar", group=8, multiple=4, sink=2, block=8),
    ],
    ids=lambda method: str(method),
)
def test_blocks_that_are_alike_count_as_if_all_ran(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    model, condition = make_model(replace(TINY, depth=12, block_chunks=1)), TextCondition(make_text((5, 3)))
    _, few = taken(model, condition, make_settings(WIDE), method, 2)
    monkeypatch.setattr(module, "RUN_OF_EACH_KIND", 100)
    module._remembered.cache_clear()
    plan, every = taken(model, condition, make_settings(WIDE), method, 2)
    assert few.flops == every.flops and few.cache == every.cache
    assert few.peak == pytest.approx(every.peak, rel=0.01)
    if method.acts_on_attention:
        return  # on the CPU a mask hides what a GPU does not compute
    flops, peak = real_run(model, condition, plan, method)
    assert few.flops == flops and few.peak - few.weights == pytest.approx(peak, rel=0.1)


def test_forced_codes_run_what_reads_them() -> None:
    model, condition = make_star(), VideoCondition(make_text((5,)))
    first = [index for index in range(len(CLIPS)) if CLIPS.clip(index) == 0]
    settings = replace(make_settings(CLIPS), forced=frozenset(first))
    plan, dry = taken(model, condition, settings, Method(), 1)
    codes = {
        index: torch.zeros(1, CLIPS[index].size, TINY_STAR.bits_at(CLIPS.scale(index)), dtype=torch.int64)
        for index in first
    }
    flops, peak = real_run(model, condition, plan, Method(), codes)
    assert dry.flops == flops and flops[0] == 0 < flops[first[-1]]
    assert dry.peak - dry.weights == pytest.approx(peak, rel=0.1)
    assert dry_run(model, condition, plan, Method(), codes).flops == flops


def test_nothing_is_computed_twice(tiny_model: Infinity) -> None:
    condition, settings = TextCondition(make_text((5,))), make_settings(WIDE)
    _, first = taken(tiny_model, condition, settings, StepVAR(keep=0.3), 1)
    _, again = taken(tiny_model, TextCondition(make_text((5,), 7)), settings, StepVAR(keep=0.3), 1)
    _, longer = taken(tiny_model, TextCondition(make_text((6,))), settings, StepVAR(keep=0.3), 1)
    assert again is first and longer is not first
    model, _ = meta_model(ModelSpec.of(tiny_model))
    assert all(tensor.device.type == "meta" for tensor in (*model.parameters(), *model.buffers()))


def test_counting_later_needs_neither_weights_nor_features() -> None:
    row = next(row for row in ROWS if row.family == "hart" and row.schedule == SQUARE)
    model, condition = make_hart(), row.condition(range(1))
    plan = Method().plan(make_settings(SQUARE), model.info, 1)
    count = flop_counter(model, condition, plan, Method())
    kept = [value for value in count.args if isinstance(value, torch.nn.Module)]  # type: ignore[attr-defined]
    assert not kept and count() == real_run(model, condition, plan, Method())[0]


def test_lower_precision_and_pruning_save_memory() -> None:
    condition, settings = TextCondition(make_text((5,))), make_settings(WIDE)
    model = make_model()
    _, full = taken(model, condition, settings, Method(), 1)
    _, pruned = taken(model, condition, settings, StepVAR(keep=0.3), 1)
    _, half = taken(make_model().to(torch.bfloat16), condition, settings, Method(), 1)
    assert half.cache == full.cache // 2 and full.weights / 2 < half.weights < 0.6 * full.weights
    assert pruned.cache < full.cache and sum(pruned.flops.values()) < sum(full.flops.values())
    assert half.flops == full.flops
