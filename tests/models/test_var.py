from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.guidance import linear, relative_scales
from stepvar.core.stack import run_dense
from stepvar.core.tokens import TokenMap
from stepvar.errors import CheckpointError, UsageError
from stepvar.methods import Dense, HighPass, SkipLast, StepVAR
from stepvar.models.infinity import Infinity
from stepvar.models.var import CONFIGS, VAR, VARConfig
from stepvar.models.var.tokenizer import phi_index
from stepvar.models.var.transformer import BlockContext
from tests.helpers import (
    SQUARE,
    TINY_VAR,
    WIDE,
    Generation,
    Watch,
    equal_everywhere,
    generate_infinity,
    generate_var,
    make_settings,
    make_var,
)

RAMP = linear(5.0, len(SQUARE))

# Sizes and schedules


@pytest.mark.parametrize(
    ("name", "millions"), [("d16", 310), ("d20", 601), ("d24", 1033), ("d30", 2010), ("d36", 2353)]
)
def test_released_sizes(name: str, millions: int) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        model = VAR(config)
    assert sum(p.numel() for p in model.transformer.parameters()) == pytest.approx(millions * 1e6, rel=2e-3)
    assert sum(p.numel() for p in model.tokenizer.parameters()) == pytest.approx(109e6, rel=5e-3)
    assert config.head_dim == 64 and config.shared_adaln == (name == "d36")
    assert model.schedule().size == (2240 if name == "d36" else 680)
    assert config.pixels == (512 if name == "d36" else 256)


def test_configurations_survive_json() -> None:
    for config in (TINY_VAR, *CONFIGS.values()):
        assert VARConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depht": 2}, "unknown fields depht"),
        ({"tokenizer": {"codes": 2}}, "unknown fields codes"),
        ({"tokenizer": {"base_channels": 40}}, "base_channels=40: must be a multiple of 32"),
        ({"heads": 3}, "heads=3: must divide width=64"),
        ({"patch_nums": []}, "patch_nums"),
    ],
)
def test_wrong_configurations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        VARConfig.from_dict(TINY_VAR.to_dict() | change)
    with pytest.raises(CheckpointError, match="depth"):
        VARConfig.from_dict({"width": 64})


def test_only_its_own_schedule(tiny_var: VAR) -> None:
    assert tiny_var.schedule().grids == SQUARE.grids
    with pytest.raises(UsageError, match="squares only"):
        tiny_var.schedule(1.5)
    with pytest.raises(UsageError, match=r"resolution '1M': this model .* 16x16 only"):
        tiny_var.schedule(resolution="1M")
    with pytest.raises(UsageError, match="knows only its own"):
        generate_var(tiny_var, make_settings(WIDE))


@pytest.mark.parametrize(
    ("scales", "convs", "expected"),
    [(10, 4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]), (6, 4, [0, 0, 1, 2, 3, 3]), (3, 2, [0, 0, 1]), (1, 4, [0])],
)
def test_which_convolution_serves_a_scale(scales: int, convs: int, expected: list[int]) -> None:
    assert [phi_index(relative, convs) for relative in relative_scales(scales)] == expected


def test_guidance_ramp() -> None:
    assert linear(5.0, 5) == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert linear(2.5, 10)[-1] == 2.5
    assert linear(1.0, 3) == (1.0,) * 3 and linear(5.0, 1) == (1.0,)


# Classes and guidance


def test_null_class_is_the_unconditional_branch(tiny_var: VAR) -> None:
    null = generate_var(tiny_var, make_settings(SQUARE, 1.0), labels=(-1,))
    guided = generate_var(tiny_var, make_settings(SQUARE, 5.0), labels=(-1,))  # from it to itself: nowhere
    torch.testing.assert_close(null.logits[0], guided.logits[0], atol=1e-3, rtol=0)
    other = generate_var(tiny_var, make_settings(SQUARE, 1.0), labels=(9,))
    assert not torch.allclose(null.logits[0], other.logits[0])


def test_first_scale_of_a_ramp_is_not_guided(tiny_var: VAR) -> None:
    ramped = generate_var(tiny_var, make_settings(SQUARE, RAMP))
    plain = generate_var(tiny_var, make_settings(SQUARE, 1.0))
    assert [step.branches for step in ramped.steps] == [2] * 5
    torch.testing.assert_close(ramped.logits[0], plain.logits[0], atol=1e-4, rtol=0)


def test_unknown_class(tiny_var: VAR) -> None:
    with pytest.raises(UsageError, match="class 10: must be between 0 and 9"):
        generate_var(tiny_var, make_settings(SQUARE), labels=(10,))


# The whole sequence at once


def all_at_once(model: VAR, generated: Generation[Any], labels: Sequence[int]) -> Tensor:
    """Logits of all scales in one pass: every token sees its own scale and the coarser ones."""
    transformer, grids = model.transformer, model.schedule().grids
    condition = transformer.condition(torch.tensor(labels))
    x = [transformer.first_tokens(condition.pooled)]
    x += [transformer.word_embed(generated.record[f"tokens_in_{scale}"]) for scale in range(1, len(grids))]
    places = [transformer.places(scale, torch.arange(grid.size)) for scale, grid in enumerate(grids)]
    levels = torch.cat([torch.full((grid.size,), scale) for scale, grid in enumerate(grids)])
    mask = levels[:, None] >= levels[None, :]
    tokens = TokenMap.dense(torch.cat(x, dim=1) + torch.cat(places), grids[-1])
    for layer, block in enumerate(transformer.blocks):
        context = BlockContext(
            condition.modulation[layer],
            lambda _, q, k, v, projection: F.scaled_dot_product_attention(q, k, v, mask, scale=1.0),
            run_dense,
        )
        tokens = block(tokens, layer, context)
    return transformer.logits(tokens.features, condition.pooled)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_all_scales_at_once_equal_scale_by_scale(shared: bool) -> None:
    model = make_var(replace(TINY_VAR, shared_adaln=shared))
    generated = generate_var(model, make_settings(SQUARE, 1.0), labels=(3, 7))
    together = all_at_once(model, generated, (3, 7))
    torch.testing.assert_close(together, torch.cat(generated.logits, dim=1), atol=2e-4, rtol=1e-4)


# Positions


def test_places_follow_the_positions(tiny_var: VAR) -> None:
    transformer = tiny_var.transformer
    dense = TokenMap.dense(torch.zeros(2, 36, 64), SQUARE[3])
    thin = dense.take(torch.tensor([[0, 7, 35], [1, 2, 3]]))
    everywhere = transformer.places(3, dense.positions)
    assert torch.equal(
        transformer.places(3, thin.positions), dense.with_features(everywhere).take(thin.positions).features
    )
    assert torch.equal(everywhere[0, 7], transformer.lvl_embed.weight[3] + transformer.pos_1LC[0, 1 + 4 + 16 + 7])


def test_positions_are_in_what_the_blocks_see(tiny_var: VAR) -> None:
    watch = Watch()
    generated = generate_var(tiny_var, make_settings(SQUARE), watch)
    for scale, grid in enumerate(SQUARE):
        embedded = tiny_var.transformer.first_tokens(generated.state.condition.pooled)
        if scale:
            embedded = tiny_var.transformer.word_embed(generated.record[f"tokens_in_{scale}"])
        first = watch.seen[(scale, 0, "self")].features
        expected = embedded + tiny_var.transformer.places(scale, torch.arange(grid.size))
        torch.testing.assert_close(first, expected.expand_as(first), atol=1e-5, rtol=0)
    assert {key[2] for key in watch.seen} == {"self", "ffn"}


# The accumulated latent


def test_latent_is_the_sum_of_what_the_scales_add(tiny_var: VAR) -> None:
    generated = generate_var(tiny_var, make_settings(SQUARE), labels=(1, 2))
    *_, last = tiny_var.tokenizer.sums(generated.indices, SQUARE)
    assert torch.equal(generated.state.latent, last)


def test_encoding_takes_the_nearest_codes(tiny_var: VAR) -> None:
    tokenizer = tiny_var.tokenizer
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    indices, total = tokenizer.encode(images, SQUARE)
    assert [tuple(index.shape) for index in indices] == [(2, grid.size) for grid in SQUARE]
    *_, before, last = tokenizer.sums(indices, SQUARE)
    torch.testing.assert_close(total, last)
    latent = tokenizer.quant_conv(tokenizer.encoder(images))
    left = (latent - before).flatten(2).transpose(1, 2)
    assert torch.equal(indices[-1], torch.cdist(left, tokenizer.codebook[None]).argmin(dim=-1))
    assert (
        indices[0].tolist() == torch.cdist(latent.mean(dim=(2, 3)), tokenizer.codebook).argmin(dim=1)[:, None].tolist()
    )
    pixels = tokenizer.decode(total)
    assert pixels.shape == images.shape and pixels.abs().max() <= 1


def test_weights_of_one_code_are_that_code(tiny_var: VAR) -> None:
    tokenizer, grid = tiny_var.tokenizer, SQUARE[2]
    indices = torch.randint(48, (2, 16), generator=torch.Generator().manual_seed(0))
    assert torch.equal(tokenizer.soft_codes(F.one_hot(indices, 48).float(), grid), tokenizer.codes(indices, grid))


def test_soft_codes_blend(tiny_var: VAR) -> None:
    smooth = relative_scales(len(SQUARE))
    soft = generate_var(tiny_var, make_settings(SQUARE, RAMP, smooth=smooth), labels=(1, 2))
    hard = generate_var(tiny_var, make_settings(SQUARE, RAMP), labels=(1, 2))
    assert torch.equal(soft.indices[0], hard.indices[0])  # sampled before anything soft is added
    assert not torch.allclose(soft.state.latent, hard.state.latent)
    greedy = make_settings(SQUARE, RAMP, top_k=1)
    one_class_left = generate_var(tiny_var, replace(greedy, smooth=smooth))
    assert torch.equal(one_class_left.state.latent, generate_var(tiny_var, greedy).state.latent)
    pruned = generate_var(tiny_var, make_settings(SQUARE, RAMP, smooth=smooth), StepVAR())
    assert torch.isfinite(pruned.state.latent).all()


def test_soft_codes_need_a_codebook(tiny_model: Infinity) -> None:
    with pytest.raises(UsageError, match="smooth"):
        generate_infinity(tiny_model, make_settings(SQUARE, smooth=relative_scales(len(SQUARE))))
    with pytest.raises(ValueError, match="smooth: needs no value, or one for each of the 5 scales"):
        make_settings(SQUARE, smooth=(0.0, 1.0))


def test_skipped_scales_leave_the_image_so_far(tiny_var: VAR) -> None:
    dense, short = (generate_var(tiny_var, make_settings(SQUARE, RAMP), m) for m in (Dense(), SkipLast(1)))
    assert equal_everywhere(short.indices, dense.indices[:-1])
    *_, before, _ = tiny_var.tokenizer.sums(dense.indices, SQUARE)
    assert torch.equal(short.state.latent, before)


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_generates(dtype: torch.dtype) -> None:
    model = make_var().to(dtype)
    generated = generate_var(model, make_settings(SQUARE, RAMP), HighPass(keep=0.5), (3, 7))
    assert generated.state.cache.keys[0].dtype == dtype
    assert generated.state.latent.dtype == generated.logits[0].dtype == torch.float32
    exact = generate_var(make_var(), make_settings(SQUARE, RAMP), HighPass(keep=0.5), (3, 7))
    assert (generated.logits[0] - exact.logits[0]).abs().max() < 0.1 * exact.logits[0].abs().max()
    assert torch.isfinite(model.decode(generated.state).float()).all()
