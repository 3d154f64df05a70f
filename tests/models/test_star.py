"""The STAR family: sizes, positions, attention to the text, and scales that are sampled in several steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.guidance import linear
from stepvar.core.noise import Noise, SeededNoise
from stepvar.core.sampling import soft_weights
from stepvar.core.stack import NO_HOOKS
from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.errors import CheckpointError, UsageError
from stepvar.generation import generate
from stepvar.methods import StepVAR, make_method
from stepvar.models.blocks import BlockRun
from stepvar.models.infinity import TextCondition
from stepvar.models.star import CONFIGS, STAR, PooledText, STARConfig
from stepvar.models.star.model import last_tokens
from stepvar.models.star.rope import rotary_table
from stepvar.models.star.sampler import Draw, Sampler, head_steps, highest, reveal_counts, step_count
from tests.helpers import (
    SQUARE,
    TINY_STAR_T2I,
    WIDE,
    equal_everywhere,
    generate_star_t2i,
    make_settings,
    make_star_t2i,
    make_star_text,
)

RAMP = linear(5.0, len(SQUARE))


@pytest.fixture(scope="module")
def model() -> STAR:
    return make_star_t2i()


def changed(**settings: Any) -> STAR:
    """The small model with another configuration and the same weights, as far as it has them."""
    return make_star_t2i(replace(TINY_STAR_T2I, **settings))


# Sizes and schedules


@pytest.mark.parametrize(
    ("name", "millions", "tokens"),
    [
        ("d16-256", 274.9, 680),
        ("d30-512", 1678.7, 2240),
        ("d30-1024-sampler", 1828.8, 9451),
    ],
)
def test_released_sizes(name: str, millions: float, tokens: int) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        model = STAR(config)
    classes = 1001 * config.width  # the table that nothing reads, which the published count includes
    assert sum(p.numel() for p in model.transformer.parameters()) + classes == pytest.approx(millions * 1e6, rel=1e-3)
    assert config.head_dim == 64 and model.schedule().size == tokens
    assert config.pixels == int(name.split("-")[1])


def test_configurations_survive_json() -> None:
    assert replace(CONFIGS["d30-512"], patch_nums=CONFIGS["d16-256"].patch_nums) == CONFIGS["d30-256"]
    assert replace(CONFIGS["d30-1024-sampler"], sampler=None) == CONFIGS["d30-1024"]
    for config in (TINY_STAR_T2I, *CONFIGS.values()):
        assert STARConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads=5: width=48 must give heads of a multiple of 4"),
        ({"patch_nums": [2, 4]}, "of the first one 1"),
        ({"sampler": "old"}, "sampler='old'"),
        ({"sampler_first": 5}, "sampler_first=5: must be a scale from 1 to 4"),
        ({"rope_theta": 1.0}, "rope_theta=1: must be above 1"),
    ],
)
def test_wrong_configurations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        STARConfig.from_dict(TINY_STAR_T2I.to_dict() | change)


def test_schedules_that_are_not_its_own(model: STAR) -> None:
    with pytest.raises(UsageError, match="squares only"):
        model.schedule(1.5)
    with pytest.raises(UsageError, match="this model runs 5 scales of one picture"):
        generate_star_t2i(model, make_settings(WIDE))


# Positions


def test_all_grids_span_the_same_coordinates() -> None:
    """Corners of every grid turn alike; a channel pair turns by the column in the first half and by the row after."""
    tables = [rotary_table(Grid(1, side, side), 8, 10000.0, 64.0) for side in (2, 5, 9)]
    for cos, sin in tables:
        torch.testing.assert_close(cos[-1], tables[0][0][-1], atol=1e-5, rtol=0)
        assert torch.equal(cos[0], torch.ones(4)) and torch.equal(sin[0], torch.zeros(4))
    cos, sin = rotary_table(Grid(1, 3, 5), 8, 10000.0, 64.0)
    angle = torch.tensor([1.0, 10000.0**-0.5])
    place = 2 * 5 + 3  # row 2 of 3, column 3 of 5
    torch.testing.assert_close(cos[place], torch.cat([48 * angle, 64 * angle]).cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(sin[place], torch.cat([48 * angle, 64 * angle]).sin(), atol=1e-5, rtol=0)
    assert rotary_table(Grid(1, 1, 1), 8, 10000.0, 64.0)[1].abs().max() == 0


# Text


def test_prompts_of_other_lengths_in_a_batch_change_nothing(model: STAR) -> None:
    settings = make_settings(SQUARE, RAMP)
    both = generate_star_t2i(model, settings, text=make_star_text((5, 3)))
    alone = generate_star_t2i(model, settings, text=make_star_text((3,), 1), first=1)
    assert equal_everywhere([indices[1:] for indices in both.indices], alone.indices)


def test_the_pooled_vector_is_the_last_token_unless_given(model: STAR) -> None:
    text = make_star_text((5, 3))
    assert text.negative is not None
    assert torch.equal(last_tokens(text.prompts)[1], text.prompts.features[1, 2])
    pooled, negative = last_tokens(text.prompts), last_tokens(text.negative)
    given = PooledText(text.prompts, text.negative, pooled, negative)
    other = PooledText(text.prompts, text.negative, pooled.roll(1, dims=0), negative)
    runs = [generate_star_t2i(model, make_settings(SQUARE, RAMP), text=one) for one in (text, given, other)]
    assert torch.equal(runs[0].state.latent, runs[1].state.latent)
    assert not torch.equal(runs[0].state.latent, runs[2].state.latent)


def test_guidance_needs_a_text_to_lead_away_from(model: STAR) -> None:
    alone = TextCondition(make_star_text((5,)).prompts)
    with pytest.raises(UsageError, match="guidance: leads away from a text, and there is none"):
        generate_star_t2i(model, make_settings(SQUARE, RAMP), text=alone)
    guided = generate_star_t2i(model, make_settings(SQUARE, 1.0))
    assert torch.equal(
        generate_star_t2i(model, make_settings(SQUARE, 1.0), text=alone).state.latent, guided.state.latent
    )


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_the_first_row_updates_all_where_the_published_code_is_followed(model: STAR, scale: float) -> None:
    """With one image only the unconditional row is another one; in a batch so are the other prompts."""
    fault, settings = changed(first_row_cross=True), make_settings(SQUARE, linear(scale, 5))
    own, first = (generate_star_t2i(one, settings) for one in (model, fault))
    torch.testing.assert_close(own.record["hidden_0"][:1], first.record["hidden_0"][:1], atol=1e-4, rtol=0)
    assert torch.equal(own.state.latent, first.state.latent) == (scale == 1.0)
    pair = generate_star_t2i(fault, settings, text=make_star_text((5, 3)))
    torch.testing.assert_close(pair.record["hidden_1"][:1], first.record["hidden_1"][:1], atol=1e-4, rtol=0)
    alone = generate_star_t2i(fault, settings, text=make_star_text((3,), 1), first=1)
    assert not torch.allclose(pair.record["hidden_1"][1:2], alone.record["hidden_1"][:1], atol=1e-2)


def test_the_first_row_cannot_update_tokens_that_it_does_not_keep() -> None:
    fault, text = changed(first_row_cross=True), make_star_text((5, 3))
    with pytest.raises(UsageError, match="first_row_cross: 2 images at once, whose kept tokens differ"):
        generate_star_t2i(fault, make_settings(SQUARE), StepVAR(keep=0.5, last=1), text)
    kept = generate_star_t2i(fault, make_settings(SQUARE), StepVAR(keep=0.5, last=1))
    assert torch.isfinite(kept.state.latent).all()


@pytest.mark.parametrize("kind", [None, "fp8"])
def test_fused_blocks_take_the_first_row_alone(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rows are quantised in front of the projection of the queries."""
    fault = changed(first_row_cross=True).to(dtype=torch.bfloat16)
    fault = fault if kind is None else fault.quantize(kind)
    settings = make_settings(SQUARE, (3.0,) * 5, passes=(0,))
    plain = generate_star_t2i(fault, settings, text=make_star_text((5, 3)))
    monkeypatch.setattr(BlockRun, "can_fuse", lambda self, tokens: True)
    fused = generate_star_t2i(fault, settings, text=make_star_text((5, 3)))
    assert "blockout_s0_l0" in plain.record and "blockout_s0_l0" not in fused.record
    wanted = plain.record["hidden_0"].float()
    assert (fused.record["hidden_0"].float() - wanted).norm() < 0.02 * wanted.norm()


def test_the_norm_before_the_head_can_be_left_out(model: STAR) -> None:
    x = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0))
    head = model.transformer.head_logits
    torch.testing.assert_close(model.transformer.logits(x), head(F.layer_norm(x, (48,), eps=1e-6)))
    torch.testing.assert_close(changed(head_norm=False).transformer.logits(x), head(x))


# Soft codes


def test_soft_codes_blend_the_whole_codebook() -> None:
    """Whatever truncation says: ``top_k`` decides nothing. Scales in several steps take what was sampled."""
    model, places = changed(sampler=None), (0.0, 0.25, 0.5, 0.75, 1.0)
    wide, narrow = (generate_star_t2i(model, make_settings(SQUARE, smooth=places, top_k=k)) for k in (0, 2))
    assert torch.equal(wide.state.latent, narrow.state.latent)
    drawn = SeededNoise([0]).exponential(0, (1, 1, 48), torch.device("cpu"))
    code = soft_weights(wide.logits[0], drawn, 0.0) @ model.tokenizer.codebook
    added = model.tokenizer.contribution(code.transpose(1, 2).unflatten(2, (1, 1)), 0, SQUARE)
    tokens = model.next_tokens(added, wide.steps[1])
    torch.testing.assert_close(tokens, wide.record["tokens_in_1"], atol=1e-5, rtol=0)
    hard, soft = (generate_star_t2i(make_star_t2i(), make_settings(SQUARE, smooth=s)) for s in ((), places))
    assert not torch.equal(hard.state.latent, soft.state.latent)
    codes = make_star_t2i().tokenizer.codes(soft.indices[-1], SQUARE[-1]).flatten(2).transpose(1, 2)
    assert torch.equal(soft.record["codes_4"], codes)


# Sampling in several steps


@pytest.mark.parametrize(
    ("size", "steps", "counts"),
    [
        (36, 8, [1, 3, 4, 5, 5, 6, 7, 5]),
        (25, 8, [1, 2, 3, 3, 4, 4, 5, 3]),
        (4096, 8, None),
        (4096, 15, None),
        (2, 8, [1, 1, 1, 1, 1, 1, 1, 0]),
    ],
)
def test_reveal_counts(size: int, steps: int, counts: list[int] | None) -> None:
    found = reveal_counts(size, steps)
    assert len(found) == steps and (counts is None or list(found) == counts)
    if size > steps:
        assert sum(found) == size and list(found[:-1]) == sorted(found[:-1])


def test_steps_of_the_published_versions() -> None:
    new, large = (replace(CONFIGS["d30-1024"], sampler=name) for name in ("new", "1024"))
    assert [(step_count(new, scale), head_steps(new, scale)) for scale in (9, 12, 13)] == [(8, 0)] * 3
    assert [(step_count(large, scale), head_steps(large, scale)) for scale in (9, 12, 13)] == [(8, 5), (8, 5), (15, 0)]


def test_of_equal_scores_the_first_count() -> None:
    assert highest(torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), 2).tolist() == [
        [False, True, True, False],
        [True, True, False, False],
    ]


def draws_of(model: STAR, seed: int = 0) -> list[Draw]:
    """The steps in which the last scale of the small model is sampled."""
    found: list[Draw] = []

    class Noting(Sampler):
        def draws(self, logits: Tensor, noise: Noise) -> Any:
            for draw in super().draws(logits, noise):
                found.append(draw)
                yield draw

    plan = make_method("dense").plan(make_settings(SQUARE, RAMP, top_p=0.9), model.info, 1)
    noise, state = SeededNoise([seed]), model.start(make_star_text(), plan)
    for step in plan.steps:
        tokens = model.blocks(state, step, NO_HOOKS)(model.embed(state, step))
        logits = model.predict(state, tokens, step)
        if model.in_steps(step):
            list(Noting(model, state, tokens, step).draws(logits, noise))
        model.accumulate(state, model.sample(state, tokens, logits, step, noise)[0], step)
    return found


@pytest.mark.parametrize("version", ["new", "1024"])
@torch.inference_mode()
def test_every_position_keeps_the_code_of_the_step_that_revealed_it(version: str) -> None:
    draws, known = draws_of(changed(sampler=version)), torch.zeros(1, 64, dtype=torch.bool)
    indices = torch.zeros(1, 64, dtype=torch.int64)
    for turn, (draw, count) in enumerate(zip(draws, reveal_counts(64, 8), strict=True)):
        new = draw.known & ~known
        twice = version == "1024" and turn < 5  # by confidence, and at random
        assert count <= new.sum() <= count * (2 if twice else 1) or draw.known.all()
        indices = torch.where(new, draw.sampled, indices)
        assert (draw.known | ~known).all() and torch.equal(draw.indices, indices)
        known = draw.known
    assert known.all()
    same = [torch.equal(one.logits, draws[0].logits) for one in draws]
    assert same == ([True] * 5 + [False] * 3 if version == "1024" else [True] + [False] * 7)


@torch.inference_mode()
def test_no_position_is_left_out_by_a_probability_of_zero(model: STAR) -> None:
    """A position whose sampled class has next to no probability comes last, and still before those that are known."""
    plan = make_method("dense").plan(make_settings(SQUARE, RAMP), model.info, 1)
    step = plan.steps[-1]
    state = model.start(make_star_text(), plan)
    tokens = model.blocks(state, step, NO_HOOKS)(model.embed(state, step))

    class Doubtful(Sampler):
        def _sample(self, logits: Tensor, noise: Noise, turn: int) -> tuple[Tensor, Tensor]:
            sampled, confidence = super()._sample(logits, noise, turn)
            return sampled, torch.zeros_like(confidence)

    *_, last = Doubtful(model, state, tokens, step).draws(model.predict(state, tokens, step), SeededNoise([0]))
    assert last.known.all()


def test_guidance_of_the_sampler_does_not_grow_over_the_scales(model: STAR) -> None:
    """At each scale it is that of the whole; per-scale numbers are taken as they are."""
    late = changed(sampler="new", sampler_first=2)
    ramp = make_settings(SQUARE, RAMP)
    per_scale, whole = generate_star_t2i(late, ramp), generate_star_t2i(late, replace(ramp, full_guidance=5.0))
    flat = generate_star_t2i(late, make_settings(SQUARE, (*RAMP[:2], 5.0, 5.0, 5.0)))
    assert torch.equal(whole.state.latent, flat.state.latent)
    assert not torch.equal(whole.state.latent, per_scale.state.latent)


def test_where_guidance_is_dropped_the_sampler_runs_one_branch() -> None:
    late = changed(sampler="new", sampler_first=3)
    settings = replace(make_settings(SQUARE, RAMP), full_guidance=5.0)
    dropped = generate_star_t2i(late, settings, make_method("drop-guidance", last=1))
    kept = generate_star_t2i(late, settings)
    assert dropped.record["sampler_logits_4_3"].shape[0] == 1 and kept.record["sampler_logits_4_3"].shape[0] == 2
    assert equal_everywhere(dropped.indices[:-1], kept.indices[:-1])


def test_the_most_likely_codes_need_no_random_numbers_but_those_of_the_order(model: STAR) -> None:
    asked: list[tuple[str | None, Sequence[int]]] = []

    class Counting(SeededNoise):
        def exponential(
            self, scale: int, shape: Sequence[int], device: torch.device, name: str | None = None
        ) -> Tensor:
            asked.append((name, tuple(shape)))
            return super().exponential(scale, shape, device, name)

    plan = make_method("dense").plan(make_settings(SQUARE, RAMP, top_k=1), model.info, 1)
    generate(model, make_star_text(), plan, make_method("dense"), Counting([0]))
    assert asked == [(f"order {turn}", (1, 64)) for turn in range(5)]


def test_random_numbers_of_the_steps_are_tied_to_the_seed(model: STAR) -> None:
    settings = make_settings(SQUARE, RAMP, top_p=0.9)
    first, again, other = (generate_star_t2i(model, settings, first=seed) for seed in (3, 3, 4))
    assert torch.equal(first.indices[-1], again.indices[-1]) and not torch.equal(first.indices[-1], other.indices[-1])
    noise = SeededNoise([3])
    names = [None, "step 1", "step 2", "order 0", "order 1"]
    numbers = [noise.exponential(4, (1, 64), torch.device("cpu"), name) for name in names]
    assert len({tuple(one.flatten().tolist()) for one in numbers}) == 5


def test_pruned_tokens_are_restored_before_the_steps(model: STAR) -> None:
    pruned = generate_star_t2i(model, make_settings(SQUARE, RAMP), StepVAR(keep=0.3, last=2))
    assert min(pruned.steps[-1].tokens) < 64
    assert pruned.record["sampler_logits_4_5"].shape == (2, 65, 48)


def test_more_scales_than_the_model_has() -> None:
    longer = ScaleSchedule.of([(side, side) for side in (1, 2, 3, 4, 6, 8)])
    with pytest.raises(UsageError, match="this model runs 5 scales"):
        generate_star_t2i(make_star_t2i(), make_settings(longer))
