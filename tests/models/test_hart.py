from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.guidance import hold_last, linear_hold, relative_scales
from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Settings
from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.errors import UsageError
from stepvar.kernels.norm import rotate
from stepvar.methods import DropGuidance, FastVAR, HighPass, SkipLast, StepVAR
from stepvar.models.hart import HART
from stepvar.models.hart.model import HARTState
from stepvar.models.hart.rope import map_rotary
from stepvar.models.var.tokenizer import VQTokenizer
from stepvar.text import ContextFeatures
from tests.helpers import (
    SQUARE,
    TINY_HART,
    Generation,
    Watch,
    equal_everywhere,
    generate_hart,
    make_context,
    make_hart,
    make_settings,
)
from tests.models.hart_reference import Reference

RAMP = linear_hold(5.5, len(SQUARE))
SMOOTH = hold_last(relative_scales(len(SQUARE)))
FLAVOURS: dict[str, dict[str, Any]] = {
    "released": {},
    "own, max": {"modulation": "own", "pooling": "max"},
    "own, mean": {"modulation": "own", "pooling": "mean", "unit_attention": True, "context_norm": False},
    "none": {"modulation": "none"},
    "none, gelu, table": {"modulation": "none", "feed_forward": "gelu", "levels": "table", "context_norm": False},
    "unit, table": {"unit_attention": True, "levels": "table"},
    "own, table": {"modulation": "own", "levels": "table", "context_norm": False},
    "learned": {"positions": "learned", "context_norm": False, "levels": "table", "feed_forward": "gelu"},
    "learned, unit, own": {"positions": "learned", "context_norm": False, "unit_attention": True, "modulation": "own"},
    "five steps": {"diffusion_steps": 5},
    "two steps, flat": {"diffusion_steps": 2, "mlp_ratio": 3.0},
}


@pytest.fixture(scope="module")
def tiny() -> HART:
    return make_hart()


def ramped(**settings: Any) -> Settings:
    return make_settings(SQUARE, RAMP, **settings)


# Against the slow one


@pytest.mark.parametrize("flavour", list(FLAVOURS))
def test_flavours_equal_the_slow_formulas(flavour: str) -> None:
    config = replace(TINY_HART, **FLAVOURS[flavour])
    model, text = make_hart(config), make_context((3, 5))
    generated = generate_hart(model, ramped(top_k=1), text=text)
    last, shape = len(SQUARE) - 1, (2, 64, 6)
    noise = [SeededNoise((0, 1)).normal(last, index, shape, torch.device("cpu")) for index in range(8)]
    reference = Reference(config, model.transformer.state_dict(), model.tokenizer.state_dict())
    slow = reference.run(text.features, text.mask, text.places, 4.5, noise)
    assert equal_everywhere(generated.indices, slow["indices"])
    torch.testing.assert_close(generated.record[f"s{last:02}.hidden"], slow["hidden"], atol=5e-4, rtol=0)
    torch.testing.assert_close(generated.state.latent, slow["latent"], atol=5e-4, rtol=0)


def test_flavours_differ() -> None:
    latents = [
        generate_hart(make_hart(replace(TINY_HART, **change)), ramped(top_k=1)).state.latent
        for change in FLAVOURS.values()
    ]
    for index, latent in enumerate(latents):
        assert not any(torch.allclose(latent, other, atol=1e-3) for other in latents[:index])


# Text


def test_padding_is_attended_and_read(tiny: HART) -> None:
    text = make_context((3,))
    features = text.features.clone()
    features[:, 3] += 1  # padding in the middle
    other = ContextFeatures(features, text.mask, text.places)
    first, second = (generate_hart(tiny, ramped(top_k=1), text=one) for one in (text, other))
    assert not torch.allclose(first.logits[0], second.logits[0])


def test_rotation_starts_behind_the_text(tiny: HART) -> None:
    text = make_context((3,))
    moved = ContextFeatures(text.features, text.mask, text.places + 2)
    first, second = (generate_hart(tiny, make_settings(SQUARE, 1.0, top_k=1), text=one) for one in (text, moved))
    # Text turns as a whole; maps do not, because their rows and columns share pairs of channels.
    torch.testing.assert_close(first.logits[0], second.logits[0], atol=1e-4, rtol=0)
    assert not torch.allclose(first.logits[1], second.logits[1], atol=1e-3)


def test_unconditional_text_is_run_once(tiny: HART) -> None:
    generated = generate_hart(tiny, ramped(top_k=1), text=make_context((3, 5, 2)))
    cache, state = generated.state.cache, generated.state
    assert state.null_hidden is not None and state.null_hidden.shape == (1, 1, 48)
    for keys in (*cache.keys, *cache.values):
        null = keys[3:, :, :5]
        assert torch.equal(null, null[:1, :, :1].expand_as(null))
        assert not torch.equal(keys[0, :, :5], keys[1, :, :5])


def test_features_are_checked(tiny: HART) -> None:
    short = ContextFeatures.of(torch.zeros(1, 4, 12))
    with pytest.raises(UsageError, match="4 tokens and 12 channels: this model reads exactly 5 tokens"):
        generate_hart(tiny, ramped(), text=short)
    with pytest.raises(UsageError, match="NaN"):
        ContextFeatures.of(torch.full((1, 5, 12), float("nan")))
    with pytest.raises(UsageError, match=r"mask of shape \(1, 4\): must be \(1, 5\)"):
        ContextFeatures.of(torch.zeros(5, 12), torch.ones(4))
    with pytest.raises(UsageError, match="floating point"):
        ContextFeatures.of(torch.zeros(1, 5, 12, dtype=torch.long))
    padded_in_front = ContextFeatures.of(torch.zeros(1, 4, 12), torch.tensor([[0, 0, 1, 1]]))
    assert padded_in_front.places.tolist() == [[-1, -1, 0, 1]]
    assert ContextFeatures.of(torch.zeros(1, 3, 2), torch.tensor([1, 1, 0])).places.tolist() == [[0, 1, 1]]


# Batches, seeds, guidance


def test_image_of_a_batch_is_the_one_generated_alone(tiny: HART) -> None:
    batch = generate_hart(tiny, ramped(smooth=SMOOTH), text=make_context((3, 5)))
    for index, words in enumerate((3, 5)):
        alone = generate_hart(tiny, ramped(smooth=SMOOTH), text=make_context((words,), index), first=index)
        assert equal_everywhere([i[index : index + 1] for i in batch.indices], alone.indices)
        torch.testing.assert_close(batch.state.latent[index : index + 1], alone.state.latent, atol=2e-3, rtol=0)


def test_seeds_repeat_and_methods_shift_nothing(tiny: HART) -> None:
    first, again = (generate_hart(tiny, ramped()) for _ in range(2))
    assert torch.equal(first.state.latent, again.state.latent)
    other = generate_hart(tiny, ramped(), text=make_context((3,)), first=1)
    assert not torch.equal(first.state.latent, other.state.latent)
    whole = generate_hart(tiny, ramped(), StepVAR(keep=1.0))
    assert torch.equal(first.state.latent, whole.state.latent)
    pruned = generate_hart(tiny, ramped(), StepVAR(keep=0.5, last=1))
    assert equal_everywhere(pruned.indices[:-1], first.indices[:-1])


def test_without_guidance_one_branch_runs(tiny: HART) -> None:
    plain = generate_hart(tiny, make_settings(SQUARE, 1.0, top_k=1))
    assert [step.branches for step in plain.steps] == [1] * 5 and plain.state.null_hidden is None
    guided = generate_hart(tiny, ramped(top_k=1))
    assert [step.branches for step in guided.steps] == [2] * 5
    torch.testing.assert_close(plain.logits[0], guided.logits[0], atol=1e-4, rtol=0)  # the ramp begins at none
    assert not torch.allclose(plain.state.latent, guided.state.latent)


def test_one_branch_alone_at_the_end(tiny: HART) -> None:
    both = generate_hart(tiny, ramped(top_k=1))
    for branch in ("conditional", "unconditional"):
        generated = generate_hart(tiny, ramped(top_k=1), DropGuidance(last=2, branch=branch))
        assert [step.branches for step in generated.steps] == [2, 2, 2, 1, 1]
        assert equal_everywhere(generated.indices[:3], both.indices[:3])
        assert torch.isfinite(generated.state.latent).all()
    # With no guidance at all, the unconditional branch alone sees no text.
    null = [generate_hart(tiny, make_settings(SQUARE, 0.0, top_k=1), text=make_context((n,), n)) for n in (2, 4)]
    assert equal_everywhere(null[0].logits, null[1].logits)
    assert null[0].state.null_hidden is None


def test_unconditional_alone_is_the_branch_that_guidance_leads_away_from(tiny: HART) -> None:
    mixed = generate_hart(tiny, make_settings(SQUARE, 3.0, top_k=1))
    null = generate_hart(tiny, make_settings(SQUARE, 0.0, top_k=1))
    torch.testing.assert_close(mixed.record["s00.logits"][1:], null.logits[0], atol=1e-4, rtol=0)


def test_guidance_inside_the_stack(tiny: HART) -> None:
    inside = generate_hart(tiny, ramped(top_k=1, cfg_layers=(-2,)))
    # Behind block 1 both branches are the same, and stay so.
    hidden = inside.record["s04.hidden"]
    assert hidden.shape[0] == 2 and not torch.allclose(hidden[0], hidden[1])  # they attend to keys of their own
    assert torch.isfinite(inside.state.latent).all()
    watch = Watch()
    generate_hart(tiny, ramped(top_k=1, cfg_layers=(-2,)), watch)
    seen = watch.seen[(3, 2, "self")].features
    assert torch.equal(seen[0], seen[1])


def test_ramps() -> None:
    assert linear_hold(5.0, 5) == (1.0, 2.0, 3.0, 4.0, 4.0)
    assert SMOOTH == (0.0, 0.25, 0.5, 0.75, 0.75)
    assert linear_hold(5.5, 14)[-1] == linear_hold(5.5, 14)[-2] == pytest.approx(1 + 4.5 * 12 / 13)


# The accumulated latent and its residual


def test_the_residual_is_added_at_the_last_scale_only(tiny: HART) -> None:
    generated = generate_hart(tiny, ramped(top_k=1))
    *_, last = tiny.tokenizer.sums(generated.indices, SQUARE)
    rest = generated.state.latent - last
    assert rest.abs().max() > 0.05 and rest.abs().max() <= 0.6 * 1.5
    assert torch.equal(generated.record["s04.f_hat"], last)
    short = generate_hart(tiny, ramped(top_k=1), SkipLast(1))
    *_, before, _ = tiny.tokenizer.sums(generated.indices, SQUARE)
    assert torch.equal(short.state.latent, before)


def test_the_head_sees_the_dense_map_and_hard_codes(tiny: HART) -> None:
    for method in (StepVAR(keep=0.3), FastVAR(prune=(0.5, 0.75), skip=0, blocks_before=0, blocks_after=0)):
        generated = generate_hart(tiny, ramped(smooth=SMOOTH), method)
        assert generated.record["diff.z"].shape == (2 * 64, 48)
        codes = tiny.transformer.word_embed(tiny.tokenizer.codebook[generated.indices[-1]]).repeat(2, 1, 1)
        expected = tiny.transformer.decoder_norm(generated.record["s04.hidden"] + codes).flatten(0, 1)
        torch.testing.assert_close(generated.record["diff.z"], expected)


def test_residual_noise_belongs_to_its_position(tiny: HART) -> None:
    head, condition = tiny.transformer.diffloss, torch.randn(1, 64, 48, generator=torch.Generator().manual_seed(0))
    noise = SeededNoise((3,))

    def normal(index: int) -> Tensor:
        return noise.normal(4, index, (1, 64, 6), torch.device("cpu"))

    whole = head.sample(condition, 1.0, normal)
    part = head.sample(condition[:, 10:20], 1.0, lambda index: normal(index)[:, 10:20])
    torch.testing.assert_close(whole[:, 10:20], part, atol=1e-4, rtol=0)


def test_soft_codes_change_the_sum_and_not_the_first_sample(tiny: HART) -> None:
    hard, soft = (generate_hart(tiny, ramped(smooth=s)) for s in ((), SMOOTH))
    assert torch.equal(hard.indices[0], soft.indices[0])
    assert not torch.allclose(hard.state.latent, soft.state.latent)


def test_top_k_per_scale(tiny: HART) -> None:
    greedy = generate_hart(tiny, ramped(top_k=1))
    only_last = generate_hart(tiny, ramped(top_k=(1, 1, 1, 1, 0)))
    assert equal_everywhere(greedy.indices[:-1], only_last.indices[:-1])
    assert not torch.equal(greedy.indices[-1], only_last.indices[-1])


# Tokenizer


def test_hybrid_and_plain_encoding(tiny: HART) -> None:
    tokenizer = tiny.tokenizer
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = tokenizer.encode_latent(images)
    convolved = VQTokenizer(tokenizer.config)
    convolved.load_state_dict(tokenizer.state_dict())
    (plain, _), (hybrid, total) = (one.quantise(latent, SQUARE) for one in (convolved, tokenizer))
    assert equal_everywhere(plain, hybrid)  # they differ in what the last scale adds
    *_, before, after = tokenizer.sums(hybrid, SQUARE)
    torch.testing.assert_close(total, after, atol=1e-5, rtol=0)
    assert torch.equal(after, before + tokenizer.codes(hybrid[-1], SQUARE[-1]))
    target = latent - total  # the residual that a diffusion head is to sample
    torch.testing.assert_close(after + target, latent, atol=1e-5, rtol=0)
    assert tokenizer.decode(after).shape == images.shape


# Thinned maps and other grids


def test_rotary_follows_positions() -> None:
    positions = torch.arange(24)[None].expand(2, -1)
    starts, grid, frame = torch.tensor([3, 0]), Grid(1, 4, 6), Grid(1, 8, 12)
    cos, sin = map_rotary(positions, grid, frame, starts, 16)
    kept = torch.tensor([[0, 7, 23], [5, 6, 12]])
    thin = map_rotary(kept, grid, frame, starts, 16)
    for whole, part in ((cos, thin[0]), (sin, thin[1])):
        assert torch.equal(whole[torch.arange(2)[:, None], :, kept].transpose(1, 2), part)
    # Row 1, column 1 of 4 x 6 in a frame of 8 x 12, behind 3 words: both coordinates are 5, first pair of channels.
    assert cos[0, 0, 7, 0] == pytest.approx(torch.tensor(5.0).cos().item(), abs=1e-6)
    assert cos[0, 0, 7, 15] == pytest.approx(torch.tensor(5.0 * 10000**-0.75).cos().item(), abs=1e-6)
    x = torch.randn(2, 1, 24, 16)
    assert not torch.allclose(
        rotate(x, (cos, sin), halves=True).norm(dim=-1), x.norm(dim=-1)
    )  # no rotation, as published


def test_every_map_that_blocks_see_is_thinned_alike(tiny: HART) -> None:
    dense, thin = Watch(), generate_hart(tiny, ramped(top_k=1), HighPass(keep=(0.5, 0.25)))
    generate_hart(tiny, ramped(top_k=1), dense)
    assert [[kept.shape[1] for kept in thin.kept(step)] for step in thin.steps] == [[], [], [], [18], [16]]
    lengths = [5 + 4 + 16 + 18 + 16] * 3
    assert thin.state.cache.lengths == lengths
    assert dense.seen[(0, 0, "self")].features.shape == (1, 5, 48)


def test_a_grid_that_is_not_square(tiny: HART) -> None:
    wide = ScaleSchedule.of([(1, 1), (1, 2), (2, 4), (3, 6), (4, 8)])
    generated = generate_hart(tiny, make_settings(wide, RAMP, top_k=1), StepVAR(keep=0.5))
    assert generated.state.latent.shape == (1, 6, 4, 8) and torch.isfinite(generated.state.latent).all()
    assert tiny.decode(generated.state).shape == (1, 3, 8, 16)


def test_schedules_that_it_cannot_run(tiny: HART) -> None:
    assert tiny.schedule().grids == SQUARE.grids
    with pytest.raises(UsageError, match="squares only"):
        tiny.schedule(1.5)
    with pytest.raises(UsageError, match=r"resolution '1M': this model .* 16x16 only"):
        tiny.schedule(resolution="1M")
    with pytest.raises(UsageError, match="runs 5 scales of one"):
        generate_hart(tiny, make_settings(ScaleSchedule.of([(1, 1), (2, 2)]), 1.0))
    learned = make_hart(replace(TINY_HART, positions="learned", context_norm=False))
    with pytest.raises(UsageError, match="knows only its own"):
        generate_hart(learned, make_settings(ScaleSchedule.of([(1, 1), (1, 2), (2, 4), (3, 6), (4, 8)]), 1.0))


# Methods


@pytest.mark.parametrize(
    "preset", [FastVAR.presets["hart"], {"prune": (0.5,), "skip": 1, "blocks_before": 1, "blocks_after": 0}], ids=str
)
@pytest.mark.parametrize("guidance", [RAMP, 1.0], ids=["guided", "plain"])
def test_fastvar(tiny: HART, preset: dict[str, Any], guidance: Any) -> None:
    method = FastVAR(**preset)
    generated = generate_hart(tiny, make_settings(SQUARE, guidance, top_k=1), method, make_context((3, 5)))
    dense = generate_hart(tiny, make_settings(SQUARE, guidance, top_k=1), text=make_context((3, 5)))
    first = 3  # the first pruned scale, with both
    assert equal_everywhere(generated.indices[:first], dense.indices[:first])
    assert not torch.equal(generated.logits[first], dense.logits[first])
    assert torch.isfinite(generated.state.latent).all()
    counts = {len(generated.kept(step)) for step in generated.steps} - {0}
    assert counts == {2 * (3 - method.blocks_before)}  # attention and feed-forward of each block


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("flavour", ["released", "none, gelu, table", "learned, unit, own"])
def test_low_precision_generates(dtype: torch.dtype, flavour: str) -> None:
    config = replace(TINY_HART, **FLAVOURS[flavour])
    generated: Generation[HARTState] = generate_hart(make_hart(config).to(dtype), ramped(), HighPass(keep=0.5))
    exact = generate_hart(make_hart(config), ramped(), HighPass(keep=0.5))
    assert generated.state.cache.keys[0].dtype == dtype
    assert generated.state.latent.dtype == generated.logits[0].dtype == torch.float32
    assert (generated.logits[0] - exact.logits[0]).abs().max() < 0.1 * exact.logits[0].abs().max()
    assert torch.isfinite(generated.state.latent).all()
