"""StepVAR+: what it scores, what it restores from, and how it drops guidance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stepvar.core.plan import Settings
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.errors import UsageError
from stepvar.methods import Compose, DropGuidance, Method, SkipLast, StepVARPlus
from stepvar.methods.cached_features import CachedFeatures
from stepvar.methods.stepvar_plus import Structure, midband_score
from stepvar.models.infinity import Infinity
from tests.helpers import CLIPS, SQUARE, WIDE, equal_everywhere, generate_infinity, make_settings, make_text
from tests.methods.helpers import plan_of, work
from tests.methods.test_scores import by_svd, naive_texture, random

GRIDS = st.builds(Grid, st.integers(1, 2), st.integers(1, 9), st.integers(1, 9))
LINE = ScaleSchedule.of([(1, 2), (1, 4)])


class Blocks:
    """Blocks that together add the same update to the tokens of every map, by their places in it."""

    depth = 1

    def __init__(self, update: Tensor) -> None:
        self.update = update

    def enter(self, tokens: TokenMap, first: int = 0) -> TokenMap:
        return tokens

    def entered(self, tokens: TokenMap, layer: int = 0) -> TokenMap:
        return tokens

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        rows = torch.arange(len(tokens.features))[:, None]
        return tokens.with_features(tokens.features + self.update.expand(len(rows), -1, -1)[rows, tokens.positions])


def naive_midband(features: Tensor, grid: Grid) -> Tensor:
    """Cell by cell: the energy of the difference of the means of two neighbourhoods."""
    cells = features.view(len(features), *grid.shape, -1)
    energy = torch.zeros(len(features), *grid.shape)
    for t in range(grid.t):
        for i in range(grid.h):
            for j in range(grid.w):
                fine, coarse = (
                    cells[:, t, max(0, i - r) : i + r + 1, max(0, j - r) : j + r + 1].mean(dim=(1, 2)) for r in (1, 3)
                )
                energy[:, t, i, j] = (fine - coarse).square().sum(-1)
    return energy.view(len(features), -1)


@settings(max_examples=25)
@given(GRIDS, st.integers(0, 99))
def test_midband_is_what_a_loop_computes(grid: Grid, seed: int) -> None:
    features = random(2, grid.size, 5, seed=seed)
    torch.testing.assert_close(midband_score(features, grid), naive_midband(features, grid), atol=1e-4, rtol=1e-4)


def test_midband_of_a_line() -> None:
    """Means of three are 1.5, 3 and 4.5, the mean of seven is 3 everywhere; a constant map has no energy."""
    assert midband_score(torch.tensor([[[0.0], [3.0], [6.0]]]), Grid(1, 1, 3)).tolist() == [[2.25, 0.0, 2.25]]
    assert midband_score(torch.full((1, 3, 2), 7.0), Grid(1, 1, 3)).tolist() == [[0.0, 0.0, 0.0]]
    assert midband_score(torch.ones(1, 4, 2, dtype=torch.bfloat16), Grid(1, 2, 2)).dtype == torch.float32


@pytest.mark.parametrize("structure", ["component", "magnitude"])
def test_the_score_is_the_sum_that_is_documented(structure: Structure) -> None:
    """Against loops for texture and mid-band, and an SVD or a plain sum for the structure of the update, resized."""
    schedule = ScaleSchedule.of([(1, 1), (4, 4), (6, 6)])
    method = StepVARPlus(
        keep=(0.5,), structure=structure, structure_weight=0.4, midband_weight=0.7, power_iterations=200
    )
    plan = plan_of(method, schedule, 1.0)
    state = method.start(plan)
    first, dense, pruned = plan.steps
    update, entered = random(1, 16, 6, seed=1), random(1, 36, 6, seed=2)
    update[..., 0] *= 5  # a clear first component
    for step, blocks in ((first, Blocks(update[:, :1])), (dense, Blocks(update))):
        method.run_stack(blocks, TokenMap.dense(torch.zeros(1, step.grid.size, 6), step.grid), step, state)
    moved = by_svd(update) if structure == "component" else (update**2).sum(-1)
    resized = F.interpolate(moved.view(1, 1, 4, 4), size=(6, 6), mode="bilinear").view(1, 36)
    parts = (naive_texture(entered, pruned.grid), naive_midband(entered, pruned.grid), resized)
    expected = sum(w * part / part.mean() for w, part in zip((1.0, 0.7, 0.4), parts, strict=True))
    scores = method.score(TokenMap.dense(entered, pruned.grid), pruned, state)
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=1e-3)


def test_structure_is_of_what_the_blocks_changed_at_the_last_dense_scale() -> None:
    """Not of what entered them: the map is constant here, and the update of the first scale grows to the right."""
    method = StepVARPlus(keep=(0.5,), restore="nearest", structure="component", structure_weight=0.25)
    plan = plan_of(method, LINE, 1.0)
    state = method.start(plan)
    for step, update in zip(plan.steps, ([[0.0], [8.0]], [[0.0]] * 4), strict=True):
        blocks = Blocks(torch.tensor([update]))
        method.run_stack(blocks, TokenMap.dense(torch.ones(1, step.grid.size, 1), step.grid), step, state)
    assert state.structure is not None and state.structure.values.flatten().tolist() == [4.0, 4.0]
    ahead = replace(state, structure=CachedFeatures(torch.tensor([[[0.0], [8.0]]]), plan.steps[0].grid))
    tokens = TokenMap.dense(torch.ones(1, 4, 1), plan.steps[1].grid)
    assert method.score(tokens, plan.steps[1], ahead).tolist() == [[0.0, 0.125, 0.375, 0.5]]


def test_pruned_tokens_add_no_codes(tiny_model: Infinity) -> None:
    """At the last scale the image changes where tokens are kept only, and there as it does with all codes."""
    settings, grid = make_settings(SQUARE), SQUARE[-1]
    before = generate_infinity(tiny_model, settings, SkipLast(1)).state.latent
    some, all_codes = (
        generate_infinity(tiny_model, settings, StepVARPlus(last=1, pruned_codes=pruned)) for pruned in (False, True)
    )
    (kept,) = some.kept(some.steps[-1])
    inside = torch.zeros(grid.size).scatter(0, kept[0], 1.0).view(grid.h, grid.w)
    changes, full = some.state.latent - before, all_codes.state.latent - before
    assert inside.sum() == grid.size / 2 and (full != 0).all()
    torch.testing.assert_close(changes, full * inside, atol=1e-6, rtol=1e-5)


# Guidance.


def test_guidance_is_dropped_at_the_last_scales_only() -> None:
    plan = plan_of(StepVARPlus(drop_guidance=2), SQUARE)
    assert [step.branches for step in plan.steps] == [2, 2, 2, 1, 1]
    assert [step.guidance for step in plan.steps] == [3.0, 3.0, 3.0, 1.0, 1.0]
    assert plan.settings.asked_guidance == (3.0,) * 5
    assert work(plan) < work(plan_of(StepVARPlus(drop_guidance=1), SQUARE))


def test_what_the_branches_differed_by_goes_on() -> None:
    """Resized from two cells to four, times the share, times the guidance scale less 1."""
    method = StepVARPlus(keep=1.0, drop_guidance=1, reuse_guidance=0.25)
    plan = plan_of(method, LINE, 5.0)
    state = method.start(plan)
    first, second = plan.steps
    both = torch.tensor([[[3.0], [9.0]], [[1.0], [3.0]]])
    method.run_stack(Blocks(torch.zeros(1, 2, 1)), TokenMap.dense(both, first.grid), first, state)
    behind = method.run_stack(
        Blocks(torch.zeros(1, 4, 1)), TokenMap.dense(torch.zeros(1, 4, 1), second.grid), second, state
    )
    assert behind.features.flatten().tolist() == [2.0, 3.0, 5.0, 6.0]


@pytest.mark.parametrize("scales", [(3.0, 3.0, 3.0, 3.0, 1.0), (1.0,) * 5, (3.0, 3.0, 3.0, 3.0, 0.0)], ids=str)
def test_nothing_is_added_where_no_guidance_was_asked_for(tiny_model: Infinity, scales: tuple[float, ...]) -> None:
    settings = make_settings(SQUARE, scales)
    dropped = generate_infinity(tiny_model, settings, StepVARPlus(keep=1.0, drop_guidance=1))
    assert equal_everywhere(generate_infinity(tiny_model, settings).logits, dropped.logits)


def test_without_reuse_it_is_one_branch_alone(tiny_model: Infinity) -> None:
    settings, text = make_settings(WIDE), make_text((5, 3))
    own, other, reused = (
        generate_infinity(tiny_model, settings, method, text)
        for method in (
            StepVARPlus(keep=1.0, drop_guidance=2, reuse_guidance=0.0),
            DropGuidance(2),
            StepVARPlus(keep=1.0, drop_guidance=2),
        )
    )
    assert equal_everywhere(own.logits, other.logits) and not torch.equal(own.logits[-1], reused.logits[-1])


def test_guidance_stays_where_a_later_clip_attends_to_both_branches() -> None:
    """Dropping it there saves nothing."""
    settings = make_settings(CLIPS)
    plan = plan_of(StepVARPlus(drop_guidance=1, keep=1.0), CLIPS)
    read = {step.index for step in plan.steps if step.scales_from_end == 1 and step.is_context}
    assert read and all(plan.step(index).guidance == settings.guidance[index] == 3.0 for index in read)
    last = plan.steps[-1]
    assert (last.guidance, last.branches) == (1.0, 1)
    assert [step.rows for step in plan.steps] == [step.rows for step in plan_of(DropGuidance(1), CLIPS).steps]


# Whether it can be used.


def test_wrong_settings_are_named(tiny_model: Infinity) -> None:
    with pytest.raises(UsageError, match="drop_guidance=5: the schedule has 5 scales; drop guidance at fewer"):
        plan_of(StepVARPlus(drop_guidance=5), SQUARE)
    with pytest.raises(UsageError, match="midband_weight=-1: must be a number from 0"):
        StepVARPlus(midband_weight=-1)
    everything = ScaleSchedule(SQUARE.grids[1:])
    with pytest.raises(UsageError, match="stepvar-plus selects by the scale before, which the first scale"):
        generate_infinity(tiny_model, make_settings(everything), StepVARPlus(last=4, taper=0.0))


def test_it_composes_with_what_edits_the_schedule(tiny_model: Infinity) -> None:
    both = generate_infinity(
        tiny_model, make_settings(SQUARE), Compose(StepVARPlus(last=2, drop_guidance=2), SkipLast(1))
    )
    assert [(step.branches, step.fewest_tokens) for step in both.steps] == [(2, 1), (2, 4), (2, 16), (1, 18)]


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("schedule", [ScaleSchedule.of([(n, n) for n in (1, 2, 4, 6, 8, 12, 16)]), CLIPS], ids=str)
def test_a_larger_share_of_a_stage_never_costs_more(schedule: ScaleSchedule, guidance: float) -> None:
    settings: Settings = make_settings(schedule, guidance)
    for stage in StepVARPlus().speedup_schedule(settings):
        costs = [work(plan_of(stage(share), schedule, guidance)) for share in (0.0, 0.3, 0.6, 1.0)]
        assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0]


def test_a_dense_generation_is_the_end_of_the_first_stage() -> None:
    schedule = ScaleSchedule.of([(n, n) for n in (1, 2, 4, 6, 8, 12, 16)])
    gentlest = StepVARPlus().speedup_schedule(make_settings(schedule))[0](0.0)
    assert work(plan_of(gentlest, schedule)) == work(plan_of(Method(), schedule))
