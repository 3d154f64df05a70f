"""Switti: scales that attend to themselves alone, normalised attention, guidance window, soft codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.cache import NoCache
from stepvar.core.guidance import linear_late_window, linear_window
from stepvar.core.noise import SeededNoise, StreamNoise
from stepvar.core.plan import Settings
from stepvar.core.stack import NO_HOOKS
from stepvar.core.tokens import Grid, TokenMap
from stepvar.errors import CheckpointError, UsageError
from stepvar.generation import generate
from stepvar.kernels import ops
from stepvar.methods import DropGuidance, Method, SkipLast, StepVAR
from stepvar.methods.lazyvar import LazyVAR
from stepvar.models.blocks import BlockRun, ResidualStream
from stepvar.models.infinity.model import TextRun
from stepvar.models.meta import build_on_meta
from stepvar.models.precision import Precision
from stepvar.models.star.rope import rotary_table
from stepvar.models.switti import CONFIGS, PooledCondition, Switti, SwittiConfig
from tests.helpers import (
    SQUARE,
    TINY_SWITTI,
    TINY_SWITTI_AR,
    equal_everywhere,
    generate_switti,
    make_pooled,
    make_pooled_condition,
    make_settings,
    make_switti,
)

OWN, CACHED = TINY_SWITTI.schedule, TINY_SWITTI_AR.schedule


@pytest.fixture(scope="module")
def model() -> Switti:
    return make_switti()


@pytest.fixture(scope="module")
def cached() -> Switti:
    return make_switti(TINY_SWITTI_AR)


# Sizes


@pytest.mark.parametrize(("name", "parameters"), [("2.5b-512", 2_470_518_256), ("2.5b-1024-ar", 2_470_525_936)])
def test_released_sizes(name: str, parameters: int) -> None:
    model = build_on_meta(Switti, CONFIGS[name])
    assert sum(weight.numel() for weight in model.transformer.parameters()) == parameters
    assert model.config.head_dim == 64 and model.schedule().size == (2240 if "512" in name else 9451)
    assert model.schedule().kv_scope == ("all" if name.endswith("ar") else "none")


ROPE = (TINY_SWITTI.head_dim, TINY_SWITTI.rope_theta, TINY_SWITTI.rope_size)


def test_configurations_survive_json_and_refuse_nonsense() -> None:
    for config in (TINY_SWITTI_AR, *CONFIGS.values()):
        assert SwittiConfig.from_dict(config.to_dict()) == config
    for change, message in (
        ({"heads": 3}, "heads=3"),
        ({"width": 4, "heads": 1}, "width=4"),
        ({"patch_nums": []}, "patch"),
    ):
        with pytest.raises(CheckpointError, match=message):
            SwittiConfig.from_dict(TINY_SWITTI.to_dict() | change)


# Positions


def test_the_corners_of_all_grids_have_the_same_angles() -> None:
    for side in (2, 5, 8):
        cos, sin = rotary_table(Grid(1, side, side), *ROPE)
        other_cos, other_sin = rotary_table(Grid(1, 3, 3), *ROPE)
        for corner, other in ((0, 0), (side - 1, 2), (side * (side - 1), 6), (-1, -1)):
            torch.testing.assert_close(cos[corner], other_cos[other])
            torch.testing.assert_close(sin[corner], other_sin[other])


def test_columns_turn_the_first_half_of_the_pairs_and_rows_the_second() -> None:
    _, sin = rotary_table(Grid(1, 2, 3), *ROPE)  # cells of rows of three
    half = TINY_SWITTI.head_dim // 4
    step = 64.0 * 10000.0 ** (-4.0 * torch.arange(half) / TINY_SWITTI.head_dim)
    assert not sin[0].any() and not sin[1, half:].any() and not sin[3, :half].any()
    torch.testing.assert_close(sin[1, :half], step.sin(), atol=1e-4, rtol=0)
    torch.testing.assert_close(sin[3, half:], (2 * step).sin(), atol=1e-4, rtol=0)


# What a scale attends to


def test_a_scale_without_cache_sees_nothing_of_earlier_ones_but_the_sum_of_codes(model: Switti, cached: Switti) -> None:
    """The same sum of codes and another beginning: the logits of the last scale differ only where keys are kept."""

    def last_logits(model: Switti, schedule: Any, passes: tuple[int, ...]) -> Tensor:
        settings = make_settings(schedule, 1.0, top_k=1, passes=passes)
        plan = Method().plan(settings, model.info, 1)
        state = model.start(make_pooled_condition(), plan)
        for step in plan.steps:
            state.latent = torch.randn(state.latent.shape, generator=torch.Generator().manual_seed(step.index))
            tokens = model.blocks(state, step)(model.embed(state, step))
            logits = model.predict(state, tokens, step)
        return logits

    for one, schedule, same in ((model, OWN, True), (cached, CACHED, False)):
        found = last_logits(one, schedule, (0, 1, 2, 3, 4)), last_logits(one, schedule, (4,))
        assert torch.allclose(*found, atol=1e-5) == same


def test_no_keys_are_kept_and_only_guided_scales_run_two_branches(model: Switti) -> None:
    settings = make_settings(OWN, linear_late_window(7.0, 5))
    generated = generate_switti(model, settings)
    assert isinstance(generated.state.cache, NoCache) and generated.state.cache.nbytes == 0
    assert generated.plan.cache_tokens == (0,) * 3
    assert [step.branches for step in generated.steps] == [1, 1, 2, 2, 1]
    assert [step.attends_to for step in generated.steps] == [()] * 5


def test_the_cached_form_runs_both_branches_as_long_as_a_later_scale_is_guided(cached: Switti) -> None:
    generated = generate_switti(cached, make_settings(CACHED, linear_late_window(7.0, 5)))
    assert [step.branches for step in generated.steps] == [2, 2, 2, 2, 1]
    assert generated.plan.cache_tokens == (SQUARE.size,) * 3


def test_early_scales_without_their_unconditional_branch_are_the_same(model: Switti) -> None:
    """Nothing reads that branch: the scales after the window are not changed by its absence."""
    window = linear_late_window(7.0, 5)
    both = [value if value != 1.0 else 1.0 + 1e-7 for value in window]
    one, other = (generate_switti(model, make_settings(OWN, scales)) for scales in (window, both))
    for left, right in zip(one.logits, other.logits, strict=True):
        torch.testing.assert_close(left, right, atol=1e-3, rtol=0)


def test_skipping_scales_leaves_no_hole(model: Switti) -> None:
    generated = generate_switti(model, make_settings(OWN), SkipLast(2))
    dense = generate_switti(model, make_settings(OWN))
    assert equal_everywhere(generated.logits, dense.logits[:3])


def test_guidance_window() -> None:
    assert linear_window(6.0, 10) == pytest.approx([1 + 5 * scale / 9 if scale < 8 else 1 for scale in range(10)])
    assert [scale for scale, value in enumerate(linear_late_window(6.0, 14)) if value == 1.0] == [0, 1, 11, 12, 13]
    assert linear_window(6.0, 1) == (1.0,)


@pytest.mark.parametrize(
    "method",
    [
        StepVAR(keep=0.5, last=2),
        StepVAR(keep=0.5, scope="sublayer", propagate="update", restore="cached"),
        LazyVAR(keep=(0.4, 0.3)),
    ],
    ids=str,
)
def test_methods_on_the_cached_form(cached: Switti, method: Method) -> None:
    """The matrix runs the other form; here an image of a batch is that image alone, and keeps fewer tokens."""
    settings = make_settings(CACHED, 3.0)
    batch = generate_switti(cached, settings, method, make_pooled_condition((5, 3)))
    alone = generate_switti(cached, settings, method, make_pooled_condition((3,), 1), first=1)
    assert equal_everywhere([indices[1:] for indices in batch.indices], alone.indices)
    assert sum(map(sum, (step.tokens for step in batch.steps))) < 3 * SQUARE.size
    assert torch.isfinite(batch.state.latent).all()


# Text and crop condition


def test_padded_texts_change_nothing(model: Switti) -> None:
    plan = Method().plan(make_settings(OWN), model.info, 2)
    condition = make_pooled_condition((5, 3))
    latents = [
        generate(model, model.stage(condition, plan, padded), plan, Method(), SeededNoise((0, 1))).latent
        for padded in (False, True)
    ]
    torch.testing.assert_close(*latents, atol=1e-5, rtol=0)


def test_guidance_needs_something_to_lead_away_from(model: Switti) -> None:
    condition = PooledCondition(make_pooled())
    with pytest.raises(UsageError, match="negative_prompt_embeds: guidance needs features of the empty text"):
        generate_switti(model, make_settings(OWN), condition=condition)
    alone = generate_switti(model, make_settings(OWN, 1.0), condition=condition)
    assert equal_everywhere(alone.indices, generate_switti(model, make_settings(OWN, 1.0)).indices)


def test_a_schedule_of_the_other_form_is_refused(model: Switti, cached: Switti) -> None:
    for one, schedule, scope in ((model, CACHED, "none"), (cached, OWN, "all")):
        with pytest.raises(UsageError, match=f"runs at most 5 scales, kv_scope='{scope}'"):
            generate_switti(one, make_settings(schedule))


def test_the_crop_condition_is_float32_in_any_precision(model: Switti) -> None:
    half = Precision(torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.bfloat16)
    assert make_switti().set_precision(half).transformer.crop_embed.weight.dtype == torch.float32
    exact, low = model.transformer.crop(), make_switti().bfloat16().transformer.crop()
    assert exact is not None and low is not None
    torch.testing.assert_close(exact, low)
    plain = make_switti(replace(TINY_SWITTI, crop_condition=False))
    assert (
        plain.transformer.crop() is None
        and torch.isfinite(generate_switti(plain, make_settings(OWN)).state.latent).all()
    )


# Soft codes


def soft_settings(top_k: int, filtered: bool = False) -> Settings:
    return make_settings(OWN, 3.0, top_k=top_k, smooth=(None, None, 0.5, 0.75, None), smooth_filtered=filtered)


def test_soft_codes_blend_the_whole_codebook(model: Switti) -> None:
    few, all_ = (generate_switti(model, soft_settings(top_k)).record for top_k in (1, 0))
    one = generate_switti(model, replace(soft_settings(0), passes=(2,))).record["soft_2"]
    kept = generate_switti(model, replace(soft_settings(3, filtered=True), passes=(2,))).record["soft_2"]
    unfiltered = generate_switti(model, replace(soft_settings(3), passes=(2,))).record["soft_2"]
    assert torch.equal(one, unfiltered) and not torch.equal(one, kept)
    assert "soft_2" in few and "idx_2" not in few and "idx_4" in few and few["idx_0"].shape == all_["idx_0"].shape


def test_soft_codes_take_one_draw_of_a_stream(model: Switti) -> None:
    """As in the original, whose later scales would get other numbers otherwise."""
    stream = torch.Generator().manual_seed(7)
    method = Method()
    plan = method.plan(soft_settings(0), model.info, 1)
    generate(model, make_pooled_condition(), plan, method, StreamNoise(stream))
    expected = torch.Generator().manual_seed(7)
    for grid in OWN:
        torch.empty(1, grid.size, TINY_SWITTI.outputs).exponential_(generator=expected)
    assert torch.equal(stream.get_state(), expected.get_state())


# The fused path, formats, methods


@pytest.mark.parametrize("config", [TINY_SWITTI, TINY_SWITTI_AR], ids=["own scale", "cached"])
@pytest.mark.parametrize("method", [Method(), StepVAR(keep=0.5, last=2)], ids=str)
def test_fused_blocks_compute_the_same(monkeypatch: pytest.MonkeyPatch, config: SwittiConfig, method: Method) -> None:
    model, settings = make_switti(config), make_settings(config.schedule, 3.0, top_k=1)
    plan = method.plan(settings, model.info, 2)

    def hidden() -> list[Tensor]:
        noted: list[Tensor] = []
        state = model.start(make_pooled_condition((5, 3)), plan)
        method_state = method.start(plan)
        for step in plan.steps:
            entered = model.embed(state, step)
            noted.append(method.run_stack(model.blocks(state, step), entered, step, method_state).features)
            state.latent += torch.randn(state.latent.shape, generator=torch.Generator().manual_seed(step.index))
        return noted

    with torch.inference_mode():
        plain = hidden()
        monkeypatch.setattr(BlockRun, "can_fuse", lambda self, tokens: True)
        with ops.kernels("plain"):
            fused = hidden()
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_fused_blocks_write_into_the_stream_only_what_they_own(model: Switti) -> None:
    plan = Method().plan(make_settings(OWN, 1.0), model.info, 1)
    state, step = model.start(make_pooled_condition(), plan), plan.steps[2]
    entered = model.embed(state, step)
    before = entered.features.clone()
    with torch.inference_mode():
        TextRun(model, state, step, NO_HOOKS).run_fused_block(ResidualStream(entered.features), entered.positions, 0)
    assert torch.equal(entered.features, before)


def test_formats() -> None:
    kept = {name: tensor.dtype for name, tensor in make_switti().set_precision(torch.bfloat16).state_dict().items()}
    block = "transformer.blocks.1."
    low = [
        "attn.to_qkv.bias",
        "attn.proj.weight",
        "cross_attn.to_kv.weight",
        "ffn.down_proj.weight",
        "ada_lin.1.weight",
    ]
    exact = ["crop_cond_scales", "self_attention_norm1.weight", "attention_y_norm.weight"]
    assert {kept[block + name] for name in low} == {torch.bfloat16}
    assert {kept[block + name] for name in exact} == {torch.float32}
    for name in (
        "crop_embed.weight",
        "text_pooler.weight",
        "head.weight",
        "head_nm.ada_lin.1.weight",
        "word_embed.bias",
    ):
        assert kept[f"transformer.{name}"] == torch.float32


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_half_precision_is_near(model: Switti, quantization: Any) -> None:
    settings = make_settings(OWN, 1.0, top_k=1, passes=(0,))
    low = make_switti().bfloat16()
    if quantization is not None:
        low.quantize(quantization)
    exact, rounded = (generate_switti(one, settings).logits[0] for one in (model, low))
    assert rounded.dtype == torch.float32 and 0 < (exact - rounded).abs().max() < 0.3


def test_pruned_tokens_keep_their_positions(model: Switti) -> None:
    """A map of which only some tokens are there: the rotary rows are those of the cells that are kept."""
    plan = Method().plan(make_settings(OWN, 1.0), model.info, 1)
    state, step = model.start(make_pooled_condition(), plan), plan.steps[-1]
    dense = model.embed(state, step)
    kept = torch.arange(0, step.grid.size, 3)[None]
    run = TextRun(model, state, step, NO_HOOKS)
    cos, _ = run.rotary_at(dense.take(kept).positions)
    assert torch.equal(cos[0, 0], state.rotary[step.index][0][kept[0]])
    everything = TokenMap(dense.features.flip(1), dense.positions.flip(1), dense.grid)  # order is of no matter
    torch.testing.assert_close(run(everything).features.flip(1), run(dense).features, atol=1e-4, rtol=0)


def test_dropping_guidance_of_what_is_not_guided_saves_nothing(model: Switti) -> None:
    settings = make_settings(OWN, linear_window(7.0, 5))
    plans = [method.plan(settings, model.info, 1) for method in (Method(), DropGuidance(last=1))]
    assert [step.branches for step in plans[0].steps] == [step.branches for step in plans[1].steps]
