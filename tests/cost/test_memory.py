"""Estimates of memory against what is allocated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from stepvar.core.noise import SeededNoise
from stepvar.core.tokens import Grid
from stepvar.cost.memory import estimate_memory, memory_of
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods import Dense, FastVAR, HighPass, Method, SkipLast, StepVAR
from stepvar.models.infinity import CONFIGS, schedule_for
from stepvar.models.infinity_star import VideoCondition
from stepvar.models.infinity_star.schedules import clip_schedule
from stepvar.models.infinity_star.tokenizer import VideoTokenizer, VideoTokenizerConfig
from stepvar.models.var import CONFIGS as VAR_CONFIGS
from tests.helpers import (
    CLIPS,
    SQUARE,
    TINY,
    TINY_HART,
    TINY_STAR,
    TINY_VAR,
    WIDE,
    draw,
    draw_classes,
    draw_context,
    draw_video,
    make_context,
    make_hart,
    make_model,
    make_settings,
    make_star,
    make_text,
    make_var,
)

METHODS = [
    Dense(),
    StepVAR(keep=0.5),
    SkipLast(2),
    HighPass(keep=(0.3, 0.2), blocks_before=1),
    FastVAR(prune=(0.5,), skip=1, blocks_before=1, blocks_after=1),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_exact_parts_are_what_is_allocated(method: Method, dtype: torch.dtype, guidance: float) -> None:
    infinity, var = make_model(replace(TINY, patchify=True)).to(dtype), make_var().to(dtype)
    drawn: list[tuple[Any, Any, Any]] = [
        (infinity, make_settings(WIDE, guidance), draw(infinity, make_settings(WIDE, guidance), method, make_text((5, 3)))),
        (var, make_settings(SQUARE, guidance), draw_classes(var, make_settings(SQUARE, guidance), method, (1, 2))),
    ]
    for model, plan, result in drawn:
        estimate = estimate_memory(model.config, plan, method, 2, dtype)
        assert estimate.weights == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        assert estimate.cache == result.state.cache.nbytes
        assert estimate.latent == result.state.latent.nbytes


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guidance", [3.0, 1.0, 0.0])
def test_exact_parts_with_text_in_the_first_scale(method: Method, dtype: torch.dtype, guidance: float) -> None:
    model, plan = make_hart(replace(TINY_HART, depth=4)).to(dtype), make_settings(SQUARE, guidance)
    result = draw_context(model, plan, method, make_context((3, 5)))
    estimate = estimate_memory(model.config, plan, method, 2, dtype)
    assert estimate.weights == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert (estimate.cache, estimate.latent) == (result.state.cache.nbytes, result.state.latent.nbytes)


HEAVY = {
    "blocks": {"context_tokens": 600, "patch_nums": (1, 2)},
    "blocks, gelu": {"feed_forward": "gelu", "patch_nums": (1, 4, 24), "diffusion_width": 8},
    "head": {"diffusion_width": 512, "patch_nums": (1, 4, 24)},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", HEAVY)
def test_peak_with_a_diffusion_head_is_near_the_formula(part: str, dtype: torch.dtype) -> None:
    config = replace(TINY_HART, width=256, heads=4, depth=1, **HEAVY[part])  # type: ignore[arg-type]
    model = make_hart(config).to(dtype)
    plan = make_settings(model.schedule(), 3.0)
    text = make_context((3,), config=config)
    peak = live_peak(lambda: generate(model, text, 1, plan, Dense(), SeededNoise((0,))))
    estimate = estimate_memory(config, plan, Dense(), 1, dtype)
    assert 1 / 1.35 < peak / (estimate.cache + estimate.latent + estimate.activations) < 1.35


@pytest.mark.parametrize(
    "method", [Dense(), StepVAR(keep=0.5), SkipLast(1), StepVAR(keep=0.5, blocks_before=1)], ids=str
)
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_exact_parts_of_a_video(method: Method, guidance: float) -> None:
    model, plan = make_star().to(torch.bfloat16), make_settings(CLIPS, guidance)
    result = draw_video(model, plan, method, make_text((5, 3)))
    estimate = estimate_memory(model.config, plan, method, 2, torch.bfloat16, text=5)
    assert estimate.weights == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert (estimate.cache, estimate.latent) == (result.state.cache.nbytes, result.state.latent.nbytes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_of_a_video_is_near_the_formula(dtype: torch.dtype) -> None:
    config = replace(TINY_STAR, width=256, kv_heads=1, depth=2, block_chunks=2, clip_frames=4, latents=(5,))
    clips = clip_schedule([[(Grid(1, 2, 2), 1), (Grid(1, 24, 32), 1)], [(Grid(4, 2, 2), 1), (Grid(4, 24, 32), 1)]])
    model, plan = make_star(config).to(dtype), make_settings(clips)
    condition = VideoCondition(make_text((5,)))
    peak = live_peak(lambda: generate(model, condition, 1, plan, Dense(), SeededNoise([0])))
    estimate = estimate_memory(config, plan, Dense(), 1, dtype, text=5)
    assert 0.8 < peak / (estimate.cache + estimate.latent + estimate.activations) < 1.3


@pytest.mark.parametrize("tile", [None, 8])
def test_decoding_a_video_is_near_the_formula(tile: int | None) -> None:
    tokenizer = VideoTokenizerConfig((12, 24, 48, 48))
    config = replace(TINY_STAR, tokenizer=tokenizer, latents=(5,), clip_frames=4)
    plan = make_settings(clip_schedule([[(Grid(1, 12, 16), 1)], [(Grid(4, 12, 16), 1)]]))
    latent = torch.randn(1, 64, 5, 12, 16)
    model = VideoTokenizer(tokenizer)
    peak = live_peak(lambda: model.decode(latent, tile))
    assert 0.7 < peak / estimate_memory(config, plan, Dense(), 1, tile=tile).decode < 1.3


def test_what_does_not_fit_is_refused_with_advice() -> None:
    plan = make_settings(schedule_for("1M", 1.0))
    estimate = estimate_memory(CONFIGS["8b"], plan, Dense(), 1, torch.bfloat16)
    estimate.check(estimate.total, "the GPU")
    with pytest.raises(
        UsageError, match=r"memory: needs about \d+\.\d GiB .* for weights\), and the GPU has 8.0 GiB; use"
    ):
        estimate.check(8 * 2**30, "the GPU")
    wide = estimate_memory(CONFIGS["2b"], plan, Dense(), 64, torch.bfloat16)
    with pytest.raises(UsageError, match=r"for cache.*draw fewer at once"):
        wide.check(2**30, "the GPU")
    assert (memory_of(torch.device("cpu")) or 0) > 2**28


def test_total_is_the_peak() -> None:
    estimate = estimate_memory(TINY, make_settings(SQUARE), Dense(), 1)
    stays = estimate.weights + estimate.cache + estimate.latent
    assert estimate.total == stays + max(estimate.activations, estimate.decode)


def test_precision_batch_pruning_and_tiles_save() -> None:
    plan = make_settings(schedule_for("1M", 1.0))
    config = CONFIGS["2b"]
    full = estimate_memory(config, plan, Dense(), 1)
    half = estimate_memory(config, plan, Dense(), 1, torch.bfloat16)
    assert half.cache == full.cache // 2 and half.latent == full.latent
    assert full.weights / 2 < half.weights < 0.53 * full.weights  # the blocks hold nearly all of them
    two = estimate_memory(config, plan, Dense(), 2, torch.bfloat16)
    assert (two.cache, two.latent, two.decode) == (2 * half.cache, 2 * half.latent, 2 * half.decode)
    pruned = estimate_memory(config, plan, StepVAR(keep=0.4), 1, torch.bfloat16)
    assert pruned.cache < half.cache and pruned.activations < half.activations
    tiles = estimate_memory(config, plan, Dense(), 1, torch.bfloat16, tile=32)
    assert half.decode / 3 < tiles.decode < half.decode / 2
    # 32 layers, 2 branches, 10,521 tokens of 2,048 channels, keys and values, 2 bytes each
    assert half.cache == 32 * 2 * 10521 * 2048 * 2 * 2


def test_every_released_size_has_an_estimate() -> None:
    for config in CONFIGS.values():
        assert estimate_memory(config, make_settings(schedule_for(config.resolution, 1.5)), Dense(), 1).total > 0
    for var in VAR_CONFIGS.values():
        assert estimate_memory(var, make_settings(var.schedule), Dense(), 8, torch.float16).total > 0
    with pytest.raises(UsageError, match="float64"):
        estimate_memory(TINY_VAR, make_settings(SQUARE), Dense(), 1, torch.float64)


@pytest.mark.parametrize(("tile", "most"), [(None, 1.3), (16, 1.6)])
def test_decoding_peak_is_near_the_formula(tile: int | None, most: float) -> None:
    model, latent = make_model(), torch.randn(1, TINY.tokenizer.code_bits, 64, 48)
    plan = make_settings(WIDE)
    plan = replace(plan, schedule=replace(WIDE, grids=(*WIDE.grids[:-1], replace(WIDE.grids[-1], h=64, w=48))))
    peak = live_peak(lambda: model.tokenizer.decode(latent, tile))
    estimate = estimate_memory(model.config, plan, Dense(), 1, tile=tile).decode
    assert 1 / most < peak / estimate < most


def live_peak(work: Any) -> int:
    """Most bytes that tensors made by some work hold at one time."""
    from weakref import finalize

    from torch.utils._python_dispatch import TorchDispatchMode

    held: dict[int, int] = {}
    peak = 0

    class Watcher(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    key = storage.data_ptr()
                    if key not in held:
                        held[key] = storage.nbytes()
                        finalize(storage, held.pop, key, None)
            peak = max(peak, sum(held.values()))
            return result

    with torch.no_grad(), Watcher():
        work()
    return peak
