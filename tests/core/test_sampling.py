import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from stepvar.core.guidance import classifier_free_guidance
from stepvar.core.noise import SeededNoise, StreamNoise
from stepvar.core.sampling import gumbel_sample, sample, soft_weights, truncate, weighted_choice

CPU = torch.device("cpu")


def kept_by_definition(logits: list[float], top_k: int, top_p: float) -> tuple[list[bool], float]:
    """Which classes survive, and how near the nearest one is to the border of the mass."""
    classes = range(len(logits))
    kth = sorted(logits, reverse=True)[min(top_k, len(logits)) - 1] if top_k else -math.inf
    alive = [logits[c] >= kth for c in classes]
    weights = [math.exp(logits[c]) if alive[c] else 0.0 for c in classes]
    total, largest, margin = sum(weights), max(logits), math.inf
    if top_p:
        for c in classes:
            below = sum(weights[d] for d in classes if logits[d] <= logits[c]) / total
            if alive[c] and logits[c] != largest:
                margin = min(margin, abs(below - (1 - top_p)))
                alive[c] = below > 1 - top_p
    return alive, margin


@settings(max_examples=300)
@given(
    st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=9, unique=True),
    st.integers(0, 10),
    st.sampled_from([0.0, 0.3, 0.8, 0.97]),
)
def test_truncate_follows_its_definition(logits: list[float], top_k: int, top_p: float) -> None:
    kept, margin = kept_by_definition(logits, top_k, top_p)
    assume(margin > 1e-5)  # at the border itself, rounding decides
    result = truncate(torch.tensor(logits), top_k, top_p)
    assert torch.isfinite(result).tolist() == kept
    assert torch.equal(result[torch.isfinite(result)], torch.tensor(logits)[torch.tensor(kept)])


def test_truncate_keeps_ties_and_the_largest() -> None:
    tied = truncate(torch.tensor([1.0, 3.0, 3.0, 0.0]), top_k=1, top_p=0.0)
    assert torch.isfinite(tied).tolist() == [False, True, True, False]
    for top_p in (0.01, 1e-9):  # 1 - 1e-9 is 1 in float32
        decided = truncate(torch.tensor([0.0, 30.0]), top_k=0, top_p=top_p)
        assert torch.isfinite(decided).tolist() == [False, True]


def test_truncate_works_entry_by_entry() -> None:
    logits = torch.randn(3, 5, 2, 7, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([truncate(row, 4, 0.9) for row in logits.view(-1, 7)]).view_as(logits)
    assert torch.equal(truncate(logits, 4, 0.9), rows)


def test_guidance_leads_from_the_second_half_to_the_first() -> None:
    guided = classifier_free_guidance(torch.tensor([[1.0], [2.0], [10.0], [20.0]]), 3.0)
    assert guided.tolist() == [[3.0 - 20.0], [6.0 - 40.0]]
    assert torch.equal(classifier_free_guidance(torch.tensor([[1.0], [9.0]]), 1.0), torch.tensor([[1.0]]))


def test_stream_runs_row_by_row_through_the_scales() -> None:
    noise = StreamNoise(torch.Generator().manual_seed(5))
    first, second = noise.exponential(0, (2, 3, 2), CPU), noise.exponential(1, (2, 1, 2), CPU)
    generator = torch.Generator().manual_seed(5)
    # The published implementations draw a matrix of all tokens and bits by classes.
    assert torch.equal(first.view(-1, 2), torch.empty(6, 2).exponential_(generator=generator))
    assert torch.equal(second.view(-1, 2), torch.empty(2, 2).exponential_(generator=generator))


def test_sampling_equals_multinomial_with_the_same_generator() -> None:
    logits = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(1))
    ours = sample(logits, StreamNoise(torch.Generator().manual_seed(9)), 0)
    probabilities = logits.softmax(-1).view(-1, 3)
    theirs = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(9))
    assert torch.equal(ours.view(-1), theirs.view(-1))


@pytest.mark.parametrize("noise", [SeededNoise([0]), StreamNoise(torch.Generator().manual_seed(0))])
def test_draws_are_as_frequent_as_probable(noise: SeededNoise | StreamNoise) -> None:
    probabilities, count = torch.tensor([0.6, 0.3, 0.1]), 20_000
    drawn = sample(probabilities.log().expand(1, count, 3), noise, 0)
    frequencies = drawn.flatten().bincount(minlength=3) / count
    deviation = (probabilities * (1 - probabilities) / count).sqrt()
    assert ((frequencies - probabilities).abs() < 4 * deviation).all()


def test_truncated_classes_are_never_sampled() -> None:
    logits = torch.tensor([2.0, 1.5, 1.0, -1.0]).expand(1, 5000, 4)
    assert set(sample(logits, SeededNoise([0]), 0, top_k=2).unique().tolist()) == {0, 1}
    assert set(sample(logits, SeededNoise([0]), 0, top_p=0.9).unique().tolist()) == {0, 1, 2}


# A weighted choice


def test_a_weighted_choice_takes_what_is_left_in_proportion() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 5.0]).expand(20_000, 4)
    race = SeededNoise([1]).exponential(0, (1, 20_000, 4), CPU, "choice")[0]
    order = weighted_choice(weights, race, 3)
    assert order.shape == (20_000, 3) and (order.sort(dim=1).values == torch.tensor([1, 2, 3])).all()
    expected = {(1, 2): 1 / 8 * 2 / 7, (1, 3): 1 / 8 * 5 / 7, (2, 1): 2 / 8 * 1 / 6, (3, 2): 5 / 8 * 2 / 3}
    for (first, second), share in expected.items():
        found = float(((order[:, 0] == first) & (order[:, 1] == second)).float().mean())
        assert abs(found - share) < 4 * (share * (1 - share) / 20_000) ** 0.5


class NoNoise:
    """Fails the test that asks for draws."""

    def exponential(self, scale: int, shape: object, device: torch.device, name: str | None = None) -> Tensor:
        raise AssertionError("no draw is needed")

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        raise AssertionError("no draw is needed")

    def normal(self, scale: int, turn: int | str, shape: object, device: torch.device) -> Tensor:
        raise AssertionError("no draw is needed")


def test_top_one_is_greedy_and_needs_no_draw() -> None:
    logits = torch.randn(2, 6, 4, 2, generator=torch.Generator().manual_seed(2))
    logits[0, 0, 0] = 1.0  # a tie goes to the first class
    indices = sample(logits, NoNoise(), 0, top_k=1, top_p=0.5)
    assert torch.equal(indices, logits.argmax(-1)) and indices[0, 0, 0] == 0


# Soft codes


@pytest.mark.parametrize(("relative_scale", "temperature"), [(0.0, 0.27), (0.5, 0.14175), (1.0, 0.0135)])
def test_soft_weights_follow_their_formula(relative_scale: float, temperature: float) -> None:
    logits = truncate(torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0)), 4, 0.0)
    exponential = torch.empty(2, 3, 9).exponential_(generator=torch.Generator().manual_seed(5))
    weights = soft_weights(logits, exponential, relative_scale)
    kept = torch.isfinite(logits)
    expected = ((logits * (1 + relative_scale) - exponential.log()).double() / temperature).exp() * kept
    torch.testing.assert_close(weights.double(), expected / expected.sum(-1, keepdim=True), atol=1e-4, rtol=0)
    assert (weights[~kept] == 0).all()


def test_soft_weights_draw_behind_the_index() -> None:
    """Both from one generator, one behind the other, as the published implementation does."""
    logits = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0))
    indices, weights = gumbel_sample(logits, StreamNoise(torch.Generator().manual_seed(5)), 0, 0.3, top_k=4)
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(indices, sample(logits, StreamNoise(generator), 0, top_k=4))
    second = torch.empty(1, 4, 9).exponential_(generator=generator)
    assert torch.equal(weights, soft_weights(truncate(logits, 4, 0.0), second, 0.3))


def test_greedy_indices_leave_the_first_draw_to_the_soft_weights() -> None:
    logits = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0))
    indices, weights = gumbel_sample(logits, StreamNoise(torch.Generator().manual_seed(5)), 0, 0.3, top_k=1)
    assert torch.equal(indices, logits.argmax(-1)) and torch.equal(indices, weights.argmax(-1))


def test_seeded_soft_weights_soften_the_sampled_code() -> None:
    logits = torch.randn(2, 50, 9, generator=torch.Generator().manual_seed(0))
    indices, weights = gumbel_sample(logits, SeededNoise([1, 2]), 3, 0.0)
    assert torch.equal(weights.argmax(dim=-1), indices)  # relative scale 0: the logits are not stretched
    assert torch.equal(indices, sample(logits, SeededNoise([1, 2]), 3))


def test_seeded_soft_weights_need_no_draw_of_their_own() -> None:
    drawn = SeededNoise([1]).exponential(3, (1, 5, 9), CPU)
    assert SeededNoise([1]).soft(3, drawn) is drawn


def test_normal_draws_depend_on_seed_scale_and_turn_alone() -> None:
    batch = SeededNoise([7, 8]).normal(2, 1, (2, 5, 4), CPU)
    assert torch.equal(batch[1], SeededNoise([8]).normal(2, 1, (1, 5, 4), CPU)[0])
    others = [SeededNoise([7]).normal(scale, turn, (1, 5, 4), CPU) for scale, turn in ((2, 0), (1, 1))]
    assert not any(torch.equal(batch[0], other[0]) for other in others)
    many = SeededNoise([0]).normal(0, 0, (1, 20_000), CPU)
    assert abs(float(many.mean())) < 0.03 and abs(float(many.std()) - 1) < 0.03
    stream = StreamNoise(torch.Generator().manual_seed(5)).normal(0, 0, (2, 3), CPU)
    assert torch.equal(stream, torch.randn(2, 3, generator=torch.Generator().manual_seed(5)))
