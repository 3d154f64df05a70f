from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.stack import Sublayer, SublayerRef
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError
from stepvar.methods import PCA, HighPass, Method, Random, StepVAR
from stepvar.methods.pruning import Pruning, PruningState
from stepvar.methods.restoration import nearest_kept
from stepvar.models.infinity import Infinity
from stepvar.models.var import VAR
from tests.helpers import (
    LENGTHS,
    SQUARE,
    TINY,
    TINY_VAR,
    WIDE,
    equal_everywhere,
    generate_infinity,
    generate_var,
    make_settings,
    make_text,
)
from tests.methods.helpers import plan_of, work


def late_step(branches: int = 2, samples: int = 1) -> Step:
    """The last scale, 8x8."""
    return plan_of(Method(), SQUARE, 3.0 if branches == 2 else 1.0, samples).steps[-1]


@dataclass
class FakeBlocks:
    """Blocks that add 1000 each, and note what they were given."""

    depth: int = 4
    calls: list[tuple[TokenMap, int, int | None]] = field(default_factory=list)

    def entered(self, tokens: TokenMap, layer: int = 0) -> TokenMap:
        return tokens

    def enter(self, tokens: TokenMap, first: int = 0) -> TokenMap:
        return tokens

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        self.calls.append((tokens, first, last))
        count = (self.depth if last is None else last) - first
        return tokens.with_features(tokens.features + 1000 * count)


@dataclass(frozen=True)
class WatchedHighPass(HighPass):
    """Notes how many tokens each sub-layer of each block sees at each scale."""

    seen: dict[tuple[int, int, str], int] = field(default_factory=dict)

    def run_sublayer(
        self, run: Sublayer, tokens: TokenMap, ref: SublayerRef, step: Step, state: PruningState
    ) -> Tensor:
        self.seen[(step.index, ref.layer, ref.name)] = tokens.features.shape[1]
        return run(tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.0}, r"keep=0.0: must be a number above 0 and at most 1"),
        ({"keep": 1.2}, r"keep=1.2"),
        ({"keep": -0.5}, r"keep=-0.5"),
        ({"keep": float("nan")}, r"keep=nan"),
        ({"keep": (0.5, 2.0)}, r"keep=2.0"),
        ({"keep": ()}, r"keep=\(\)"),
        ({"last": 0}, r"last=0: must be a whole number from 1"),
        ({"blocks_before": -1}, r"blocks_before=-1: must be a whole number from 0"),
        ({"blocks_after": -2}, r"blocks_after=-2: must be a whole number from 0"),
        ({"scope": "layer"}, r"scope='layer': must be one of stack, block"),
        ({"propagate": "zero"}, r"propagate='zero': must be one of state, update"),
        ({"branches": "both"}, r"branches='both': must be one of shared, separate"),
    ],
)
def test_wrong_settings_say_what_is_allowed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HighPass(**settings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StepVAR(structure_weight=-1.0), "structure_weight=-1.0"),
        (lambda: StepVAR(structure_weight=float("nan")), "structure_weight=nan"),
        (lambda: StepVAR(power_iterations=0), "power_iterations=0"),
        (lambda: PCA(power_iterations=0), "power_iterations=0"),
        (
            lambda: StepVAR(normalisation="median"),  # type: ignore[arg-type]
            "normalisation='median': must be one of none, mean, max, zscore",
        ),
        (lambda: PCA(keep=3.0), "keep=3.0"),
    ],
)
def test_wrong_settings_of_the_scores(build: Callable[[], Pruning], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build()


def counts(method: Pruning, plan_schedule: Any = SQUARE) -> list[int]:
    return [method.count_at(step) for step in plan_of(method, plan_schedule).steps]


def test_one_number_prunes_the_late_scales() -> None:
    # 1, 4, 16, 36, 64 tokens: the last one holds more than half of the 121.
    assert counts(HighPass(keep=0.5)) == [1, 4, 16, 36, 32]
    assert counts(HighPass(keep=0.5, last=2)) == [1, 4, 16, 18, 32]
    assert counts(HighPass(keep=0.25, last=99)) == [1, 1, 4, 9, 16]
    # 1, 4, 6, 24, 35, 54 tokens: the last two are needed for more than half of the 124.
    assert counts(HighPass(keep=0.5), WIDE) == [1, 4, 6, 24, 18, 27]


def test_a_sequence_counts_from_the_end() -> None:
    assert counts(HighPass(keep=(0.75, 0.25))) == [1, 4, 16, 27, 16]
    assert counts(HighPass(keep=(0.75, 0.25), last=1)) == [1, 4, 16, 27, 16]
    assert counts(HighPass(keep=[1.0] * 4 + [0.5])) == [1, 4, 16, 36, 32]
    with pytest.raises(UsageError, match="keep: 6 values for 5 scales; give one, or at most one per scale"):
        counts(HighPass(keep=[1.0] * 5 + [0.5]))


def test_at_least_one_token_is_kept(tiny_model: Infinity) -> None:
    method = HighPass(keep=1e-9, last=5)
    assert counts(method) == [1] * 5
    generated = generate_infinity(tiny_model, make_settings(SQUARE), method)
    assert [bits.shape[2:4] for bits in generated.bits] == [(1, 1), (2, 2), (4, 4), (6, 6), (8, 8)]
    assert all(torch.isfinite(logits).all() for logits in generated.logits)


@pytest.mark.parametrize("method", [HighPass(keep=1), StepVAR(keep=1.0, last=5, scope="block"), PCA(keep=(1.0, 1))])
def test_keeping_everything_is_dense_to_the_bit(tiny_model: Infinity, method: Pruning) -> None:
    settings = make_settings(WIDE)
    dense, kept = generate_infinity(tiny_model, settings), generate_infinity(tiny_model, settings, method)
    assert equal_everywhere(dense.logits, kept.logits)
    assert torch.equal(dense.state.latent, kept.state.latent)
    assert work(dense.plan) == work(kept.plan)


def test_pruning_changes_late_scales_only(tiny_model: Infinity) -> None:
    settings = make_settings(SQUARE)
    dense, pruned = generate_infinity(tiny_model, settings), generate_infinity(tiny_model, settings, HighPass(keep=0.5))
    assert equal_everywhere(dense.logits[:-1], pruned.logits[:-1])
    assert not torch.equal(dense.logits[-1], pruned.logits[-1])
    assert work(pruned.plan) < work(dense.plan)


def test_pruned_tokens_take_the_state_of_their_neighbour() -> None:
    step, run, state = late_step(branches=1), FakeBlocks(), PruningState()
    features = torch.randn(1, 64, 3, generator=torch.Generator().manual_seed(0))
    out = HighPass(keep=0.25).run_stack(run, TokenMap.dense(features, step.grid), step, state)
    (selection,) = state.selections[step.index]
    source, kept = nearest_kept(selection, step.grid)[0], selection[0]
    assert len(kept) == 16 and len(run.calls) == 1
    assert torch.equal(run.calls[0][0].positions[0], kept)
    for cell in range(64):
        assert torch.equal(out.features[0, cell], features[0, kept[source[cell]]] + 4000)


def test_update_keeps_ones_own_state() -> None:
    step = late_step(branches=1)
    features = torch.randn(1, 64, 3, generator=torch.Generator().manual_seed(0))
    tokens = TokenMap.dense(features, step.grid)
    out = HighPass(keep=0.25, propagate="update").run_stack(FakeBlocks(), tokens, step, PruningState())
    torch.testing.assert_close(out.features, features + 4000, atol=1e-3, rtol=0)


def test_highest_scores_are_kept() -> None:
    step = late_step(branches=1)
    features = torch.zeros(1, 64, 2)
    features[0, [9, 30, 53]] = 1.0  # lone dots: the highest energy is theirs
    tokens = TokenMap.dense(features, step.grid)
    assert HighPass(keep=3 / 64).select(tokens, 3, step, PruningState()).kept.tolist() == [[9, 30, 53]]


def test_spans_leave_outer_blocks_dense(tiny_model: Infinity) -> None:
    method = WatchedHighPass(keep=0.5, blocks_before=1, blocks_after=2)
    generate_infinity(tiny_model, make_settings(SQUARE), method)
    for sublayer in ("self", "cross", "ffn"):
        assert [method.seen[(4, layer, sublayer)] for layer in range(4)] == [64, 32, 64, 64]
        assert [method.seen[(3, layer, sublayer)] for layer in range(4)] == [36] * 4


@pytest.mark.parametrize(
    "outside", [{"blocks_before": 4}, {"blocks_after": 9}, {"blocks_before": 2, "blocks_after": 2}]
)
def test_empty_span_is_dense(tiny_model: Infinity, outside: dict[str, Any]) -> None:
    settings = make_settings(SQUARE)
    assert equal_everywhere(
        generate_infinity(tiny_model, settings).logits,
        generate_infinity(tiny_model, settings, HighPass(keep=0.5, **outside)).logits,
    )


def test_scope_says_how_often_tokens_are_selected(tiny_model: Infinity) -> None:
    settings = make_settings(SQUARE)
    once = generate_infinity(tiny_model, settings, HighPass(keep=0.5, blocks_before=1))
    each = generate_infinity(tiny_model, settings, HighPass(keep=0.5, blocks_before=1, scope="block"))
    assert [len(once.kept(step)) for step in once.steps] == [0, 0, 0, 0, 1]
    assert [len(each.kept(step)) for step in each.steps] == [0, 0, 0, 0, 3]
    assert torch.equal(once.kept(once.steps[4])[0], each.kept(each.steps[4])[0])
    assert not torch.equal(each.kept(each.steps[4])[0], each.kept(each.steps[4])[1])
    assert not torch.equal(once.logits[4], each.logits[4])


def test_shared_selection_is_scored_on_the_conditional_branch() -> None:
    step, run = late_step(samples=2), FakeBlocks()
    tokens = TokenMap.dense(torch.randn(4, 64, 3, generator=torch.Generator().manual_seed(1)), step.grid)
    HighPass(keep=0.5).run_stack(run, tokens, step, PruningState())
    positions = run.calls[0][0].positions
    assert torch.equal(positions[:2], positions[2:])
    assert not torch.equal(positions[0], positions[1])
    own, single = TokenMap.dense(tokens.features[:2], step.grid), late_step(branches=1, samples=2)
    alone = HighPass().select(own, 32, single, PruningState())
    assert torch.equal(alone.kept, positions[:2])


def test_separate_selections_follow_each_branch() -> None:
    step, run = late_step(), FakeBlocks()
    tokens = TokenMap.dense(torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(1)), step.grid)
    HighPass(keep=0.5, branches="separate").run_stack(run, tokens, step, PruningState())
    positions = run.calls[0][0].positions
    assert not torch.equal(positions[0], positions[1])
    shared = FakeBlocks()
    HighPass(keep=0.5).run_stack(shared, tokens, late_step(), PruningState())
    assert torch.equal(positions[0], shared.calls[0][0].positions[0])


def test_separate_needs_guidance_outside_the_stack(tiny_model: Infinity) -> None:
    method = HighPass(keep=0.5, branches="separate")
    assert len(generate_infinity(tiny_model, make_settings(SQUARE), method).bits) == 5
    for places in ((-2,), (0, -1)):
        with pytest.raises(UsageError, match=r"branches='separate'.*use 'shared'"):
            generate_infinity(tiny_model, make_settings(SQUARE, cfg_layers=places), method)
    # Without guidance nothing is combined, and there is nothing to forbid.
    assert len(generate_infinity(tiny_model, make_settings(SQUARE, 1.0, cfg_layers=(-2,)), method).bits) == 5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"keep": (0.9, 0.3, 0.11)},
        {"last": 4, "blocks_before": 1},
        {"last": 3, "blocks_after": 3, "scope": "block"},
        {"last": 2, "blocks_before": 1, "blocks_after": 1, "branches": "separate", "propagate": "update"},
    ],
)
@pytest.mark.parametrize("schedule", [SQUARE, WIDE], ids=["square", "wide"])
def test_caches_are_filled_to_the_last_place(tiny_model: Infinity, schedule: Any, settings: dict[str, Any]) -> None:
    generated = generate_infinity(tiny_model, make_settings(schedule), StepVAR(**settings))
    cache = generated.state.cache
    assert cache.lengths == [keys.shape[2] for keys in cache.keys]
    assert len(cache.lengths) == TINY.depth and min(cache.lengths) < schedule.size


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"keep": (0.9, 0.3, 0.11)},
        {"last": 4, "blocks_before": 1},
        {"last": 3, "blocks_after": 3, "scope": "block"},
        {"last": 2, "blocks_before": 1, "blocks_after": 1, "branches": "separate", "propagate": "update"},
    ],
)
def test_absolute_positions_are_pruned_along(tiny_var: VAR, settings: dict[str, Any]) -> None:
    given = make_settings(SQUARE)
    dense = generate_var(tiny_var, given, labels=(3, 7))
    pruned = generate_var(tiny_var, given, StepVAR(**settings), labels=(3, 7))
    cache = pruned.state.cache
    assert cache.lengths == [keys.shape[2] for keys in cache.keys]
    assert len(cache.lengths) == TINY_VAR.depth and min(cache.lengths) < SQUARE.size
    assert work(pruned.plan) < work(dense.plan)
    assert equal_everywhere(dense.logits[:1], pruned.logits[:1])
    assert torch.isfinite(pruned.state.latent).all()


def test_keeping_everything_is_dense_for_classes_too(tiny_var: VAR) -> None:
    settings = make_settings(SQUARE)
    dense, kept = (
        generate_var(tiny_var, settings),
        generate_var(tiny_var, settings, StepVAR(keep=1.0, last=5, scope="block")),
    )
    assert equal_everywhere(dense.logits, kept.logits) and torch.equal(dense.state.latent, kept.state.latent)


def test_random_choice_is_that_of_the_seed(tiny_model: Infinity) -> None:
    settings = make_settings(SQUARE)
    batch = generate_infinity(tiny_model, settings, Random(keep=0.5), make_text(LENGTHS)).selections[4][0]
    alone = generate_infinity(tiny_model, settings, Random(keep=0.5)).selections[4][0]
    other = generate_infinity(tiny_model, settings, Random(keep=0.5, seed=1)).selections[4][0]
    assert batch.tolist() == alone.tolist() * 3
    assert not torch.equal(alone, other)
    step = late_step(branches=1)
    everything = TokenMap.dense(torch.zeros(1, 64, 1), step.grid)
    kept = torch.stack([Random(seed=seed).select(everything, 16, step, PruningState()).kept[0] for seed in range(200)])
    # Each cell is kept in a quarter of 200 draws; 4.5 deviations of 6.1 are far from any bias to a side.
    assert (kept.flatten().bincount(minlength=64) - 50).abs().max() < 4.5 * 6.2
