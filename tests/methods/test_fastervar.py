"""FasterVAR's rule; that it computes what the original does on Infinity is in the goldens."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Step
from stepvar.core.tokens import ScaleSchedule, TokenMap
from stepvar.errors import UsageError
from stepvar.methods import Compose, DropGuidance, FasterVAR, Method, SkipLast, make_method
from stepvar.methods.fastervar import FasterVARState, Span
from stepvar.models.infinity import Infinity
from tests.helpers import CLIPS, SQUARE, equal_everywhere, generate_infinity, generate_star, make_settings, make_star
from tests.methods.helpers import DEPTH, plan_of, work

MILLION = ScaleSchedule.of([(side, side) for side in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)])
HART = ScaleSchedule.of([(side, side) for side in (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)])
CPU = torch.device("cpu")


@dataclass
class Doubling:
    """Blocks that double every token, add one in front of the first, and note what they were given."""

    depth: int = DEPTH
    given: list[TokenMap] = field(default_factory=list)
    added: bool = False

    def enter(self, tokens: TokenMap, first: int = 0) -> TokenMap:
        self.added = True
        return self.entered(tokens, first)

    def entered(self, tokens: TokenMap, layer: int = 0) -> TokenMap:
        return tokens if layer else tokens.with_features(tokens.features + 1)

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        self.given.append(tokens)
        added = 0 if first or self.added else 1
        return tokens.with_features((tokens.features + added) * 2 ** ((last or self.depth) - first))


def run_by_hand(method: FasterVAR, channels: int = 3) -> tuple[Tensor, list[TokenMap], Tensor, Step]:
    """The last scale of SQUARE: what leaves the blocks, what entered them, and what enters the stack."""
    plan = plan_of(method, SQUARE, samples=2)
    state = method.start(plan)
    state.use(SeededNoise((5, 6)))
    for step in plan.steps:
        generator = torch.Generator().manual_seed(step.index)
        features = torch.randn(step.rows, step.grid.size, channels, generator=generator)
        blocks = Doubling()
        tokens = method.run_stack(blocks, TokenMap.dense(features, step.grid), step, state)
    return tokens.features, blocks.given, features, step


@pytest.mark.parametrize("positions", ["drawn", "first"])
def test_mixtures_take_the_places_that_were_drawn_and_the_scale_before_the_others(positions: Any) -> None:
    method = FasterVAR(unconditional=1, skip=0, shares=(0.3,), positions=positions)
    result, (mixed,), features, step = run_by_hand(method)
    noise, size, rank = SeededNoise((5, 6)), 64, int(0.3 * 64) + 1
    assert mixed.features.shape == (2, rank, 3) and step.rows == 2 and step.first_row == 2
    entered = features + 1
    race = noise.exponential(4, (2, size), CPU, "fastervar/0")
    mixing = noise.normal(4, "fastervar/0", (2, size, rank), CPU) / rank**0.5
    before = torch.randn(4, 36, 3, generator=torch.Generator().manual_seed(3))[2:]  # the unconditional rows
    cached = F.interpolate(((before + 1) * 16).mT.unflatten(2, (6, 6)), size=(8, 8), mode="area").flatten(2).mT
    for row in range(2):
        drawn = (entered[row].square().sum(-1) / race[row]).argsort(descending=True)[:rank]
        places = drawn.sort().values if positions == "drawn" else drawn
        own = torch.einsum("nr,nc->rc", mixing[row], entered[row])
        torch.testing.assert_close(mixed.features[row], own)
        assert torch.equal(mixed.positions[row], places if positions == "drawn" else torch.arange(rank))
        expected = cached[row].clone()
        expected[places] = 16 * own
        torch.testing.assert_close(result[row], expected)


def test_each_span_of_blocks_is_projected_anew() -> None:
    _, given, _, _ = run_by_hand(FasterVAR(unconditional=1, skip=0, shares=(0.1, 0.3, 0.2, 0.05)))
    assert [tokens.features.shape[1] for tokens in given] == [7, 20, 13, 4]
    assert all((later > earlier).all() for tokens in given for earlier, later in pairwise(tokens.positions.T))


def test_both_branches_share_their_random_numbers() -> None:
    """So that guidance compares the same mixtures, inside the stack too."""
    _, (mixed,), features, step = run_by_hand(FasterVAR(unconditional=0, skip=0, shares=(0.3,)))
    assert step.branches == 2 and torch.equal(mixed.positions[:2], mixed.positions[2:])
    assert not torch.equal(mixed.positions[0], mixed.positions[1])
    noise = SeededNoise((5, 6)).normal(4, "fastervar/0", (2, 64, 20), CPU) / 20**0.5
    torch.testing.assert_close(mixed.features[2:], noise.mT @ (features[2:] + 1))


def test_without_projection_it_is_guidance_dropped_and_scales_skipped(tiny_model: Infinity) -> None:
    settings = make_settings(SQUARE)
    null = generate_infinity(tiny_model, settings, make_method("fastervar:no-projection", skip=1))
    parts = Compose(SkipLast(1), DropGuidance(3, "unconditional"))
    by_hand = generate_infinity(tiny_model, settings, parts)
    assert equal_everywhere(null.logits, by_hand.logits)
    projected = generate_infinity(tiny_model, settings, FasterVAR(skip=1))
    assert equal_everywhere(projected.logits[:-1], null.logits[:-1])
    assert not torch.equal(projected.logits[-1], null.logits[-1]) and work(projected.plan) < work(null.plan)


def test_positions_matter(tiny_model: Infinity) -> None:
    mended, released = (
        generate_infinity(tiny_model, make_settings(SQUARE), FasterVAR(skip=0, positions=positions)).logits[-1]
        for positions in ("drawn", "first")
    )
    assert not torch.allclose(mended, released, atol=1e-3)


def test_entering_adds_what_the_blocks_would_have_added(tiny_model: Infinity) -> None:
    class Entering(Method):
        def run_stack(self, run: Any, tokens: TokenMap, step: Step, state: Any) -> TokenMap:
            entered = run.enter(tokens)
            assert not torch.equal(entered.features, tokens.features)
            return run(run(entered, 0, 1), 1)

    dense, entering = (generate_infinity(tiny_model, make_settings(SQUARE), method) for method in (None, Entering()))
    assert equal_everywhere(dense.logits, entering.logits)


def test_of_a_video_the_last_clip_is_projected() -> None:
    watch = FasterVAR(unconditional=2, skip=0, shares=(0.2,))
    generated = generate_star(make_star(), make_settings(CLIPS), watch)
    dense = generate_star(make_star(), make_settings(CLIPS))
    last = max(CLIPS.clips)
    for step in generated.steps:
        assert (step.fewest_tokens < step.grid.size) == (step.clip == last and step.scales_from_end == 1)
        assert (step.guidance == 0) == (step.clip == last and step.scales_from_end <= 2)
    early = sum(clip < last for clip in CLIPS.clips)
    assert equal_everywhere(generated.passes("logits")[:early], dense.passes("logits")[:early])


@pytest.mark.parametrize(
    ("preset", "depth", "schedule", "counts"),
    [
        ("infinity", 32, MILLION, {0: 27, 3: 27, 4: 219, 31: 306}),
        ("infinity", 40, MILLION, {4: 27, 5: 219, 39: 306}),
        ("hart", 24, HART, {0: int(0.0187 * 1536) + 1, 23: int(0.3102 * 1536) + 1}),
        ("star", 30, HART, {0: int(0.0151 * 1920) + 1, 29: int(0.0197 * 1920) + 1}),
    ],
)
def test_published_ranks(preset: str, depth: int, schedule: ScaleSchedule, counts: dict[int, int]) -> None:
    method = make_method(f"fastervar:{preset}")
    steps = plan_of(method, schedule).steps
    assert [step.guidance for step in steps[-3:]].count(0.0) == (1 if preset == "infinity" else 2)
    assert steps[-1].grid.w == (40 if preset == "infinity" else 64)
    assert {layer: method.tokens_at(steps[-1], layer, depth) for layer in counts} == counts
    assert method.tokens_at(steps[-2], 0, depth) == steps[-2].grid.size


def test_released_settings_differ_by_their_positions_alone() -> None:
    assert make_method("fastervar") == make_method("fastervar:infinity")
    for name in ("infinity", "infinity-star"):
        assert make_method(f"fastervar:{name}-released") == make_method(f"fastervar:{name}", positions="first")


def test_a_model_of_fewer_blocks_takes_means_of_shares() -> None:
    method = FasterVAR(shares=(0.1, 0.2, 0.3, 0.4))
    assert method.spans(4) == [Span(place, place, place + 1, share) for place, share in enumerate(method.shares)]
    assert [(span.first, span.last) for span in method.spans(6)] == [(0, 1), (1, 3), (3, 4), (4, 6)]
    assert [span.share for span in method.spans(2)] == pytest.approx([0.15, 0.35])


def test_what_cannot_be_served_is_refused(tiny_model: Infinity) -> None:
    settings = make_settings(SQUARE)
    for changes, said in (
        ({"skip": 4}, r"skip=4: needs 6 scales to skip these and one in front of the one that is projected"),
        ({"skip": 5, "shares": ()}, r"skip=5: needs 6 scales to skip these and run one; the schedule has 5"),
        ({"unconditional": 5}, r"unconditional=5: the schedule has 5 scales; give fewer"),
        ({"unconditional": 2}, r"unconditional=2: the last 2 scales are not run; give at least 3, or 0"),
        ({"shares": (1.0,)}, r"shares=1\.0: must be a number of at least 0 and below 1"),
        ({"positions": "all"}, r"positions='all': must be one of drawn, first"),
    ):
        with pytest.raises(UsageError, match=said):
            generate_infinity(tiny_model, settings, FasterVAR(**changes))


def test_for_a_speedup_fewer_tokens_and_then_fewer_scales() -> None:
    settings = make_settings(SQUARE)
    stages = FasterVAR().speedup_schedule(settings)
    assert len(stages) == 3
    for stage, skip in zip(stages, range(3), strict=True):
        plans = [plan_of(stage(share), SQUARE) for share in (0.0, 0.5, 1.0)]
        assert all(work(plan) >= work(other) for plan, other in pairwise(plans))
        assert all(len(plan.steps) == 5 - skip and plan.steps[-1].guidance == 0 for plan in plans)
        assert work(plans[0]) > work(plans[2])
    (whole,) = make_method("fastervar:no-projection").speedup_schedule(settings)
    assert [len(plan_of(whole(share), SQUARE).steps) for share in (0.0, 1.0)] == [5, 2]


def test_nothing_is_kept_of_other_passes(tiny_model: Infinity) -> None:
    states: list[FasterVARState] = []

    class Noting(FasterVAR):
        def start(self, plan: Any) -> FasterVARState:
            states.append(super().start(plan))
            return states[-1]

    generate_infinity(tiny_model, make_settings(SQUARE), Noting(skip=0))
    assert {cached.grid for cached in states[0].cached.values()} == {SQUARE[3]}
    assert [len(kept) for kept in states[0].selections.values()] == [DEPTH]
