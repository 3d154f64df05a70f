import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.tokens import Grid, TokenMap
from stepvar.errors import UsageError
from stepvar.methods import PCA, HighPass, PruningState, Random, StepVAR
from stepvar.methods.scores import NORMALISATIONS, normalise, top_tokens
from stepvar.methods.stepvar import principal_direction, structure_score, texture_score
from tests.helpers import SQUARE
from tests.methods.helpers import plan_of

GRIDS = st.builds(Grid, st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_texture(features: Tensor, grid: Grid) -> Tensor:
    """The energy of each token's difference from the mean of its neighbourhood, cell by cell."""
    cells = features.view(len(features), *grid.shape, -1)
    energy = torch.zeros(len(features), *grid.shape)
    for t in range(grid.t):
        for i in range(grid.h):
            for j in range(grid.w):
                around = cells[:, t, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
                energy[:, t, i, j] = (cells[:, t, i, j] - around.mean(dim=(1, 2))).square().sum(-1)
    return energy.view(len(features), -1)


@given(GRIDS, st.integers(0, 99))
def test_texture_is_what_a_loop_computes(grid: Grid, seed: int) -> None:
    features = random(2, grid.size, 5, seed=seed)
    torch.testing.assert_close(texture_score(features, grid), naive_texture(features, grid), atol=1e-4, rtol=1e-4)


@given(GRIDS, st.floats(-50, 50, width=32))
def test_constant_map_has_no_texture_even_at_its_border(grid: Grid, value: float) -> None:
    energy = texture_score(torch.full((1, grid.size, 3), value), grid)
    assert energy.max() <= 1e-8 * max(1.0, value * value)


def test_frames_do_not_see_each_other() -> None:
    first, second = random(2, 20, 3), random(2, 20, 3, seed=1)
    together = texture_score(torch.cat([first, second], dim=1), Grid(2, 4, 5))
    alone = [texture_score(frame, Grid(1, 4, 5)) for frame in (first, second)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


def test_texture_grows_with_the_square_of_contrast() -> None:
    features = random(1, 12, 3)
    torch.testing.assert_close(texture_score(3 * features, Grid(1, 3, 4)), 9 * texture_score(features, Grid(1, 3, 4)))


def with_direction(tokens: int, channels: int, strength: float, seed: int) -> Tensor:
    """Gaussian noise (2, tokens, channels) with one direction ``strength`` times stronger."""
    noise, direction = random(2, tokens, channels, seed=seed), random(2, channels, seed=seed + 1)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    return noise + (strength - 1) * (noise @ direction.unsqueeze(-1)) * direction.unsqueeze(1) + 5.0


def low_rank(tokens: int, channels: int, seed: int) -> Tensor:
    """A few smooth patterns of falling strength, each in a direction of its own, and a little noise."""
    place = torch.linspace(0, 1, tokens)
    patterns = torch.stack([torch.sin((k + 1) * 2.3 * place + k) for k in range(4)], dim=1)
    patterns = patterns * torch.tensor([8.0, 4.0, 2.0, 1.0])
    directions = torch.linalg.qr(random(channels, 4, seed=seed))[0].T
    return (patterns @ directions + 0.05 * random(tokens, channels, seed=seed + 1)).unsqueeze(0)


def by_svd(features: Tensor) -> Tensor:
    centred = features - features.mean(dim=1, keepdim=True)
    direction = torch.linalg.svd(centred, full_matrices=False).Vh[:, 0]
    return (centred @ direction.unsqueeze(-1)).squeeze(-1).abs()


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's."""
    ranks = torch.stack([first.argsort().argsort(), second.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([(64, 32), (256, 64), (300, 16), (48, 128)]))
def test_structure_ranks_like_the_svd(seed: int, shape: tuple[int, int]) -> None:
    for features in (with_direction(*shape, strength=4.0, seed=seed), low_rank(*shape, seed=seed)):
        ours, exact = structure_score(features, 8), by_svd(features)
        for row in range(len(features)):
            assert rank_correlation(ours[row], exact[row]) > 0.99


def test_kept_half_is_that_of_the_svd() -> None:
    features = low_rank(400, 48, seed=3)
    ours = top_tokens(structure_score(features, 8), 200)
    exact = top_tokens(by_svd(features), 200)
    assert len(set(ours[0].tolist()) & set(exact[0].tolist())) >= 0.98 * 200


def test_iterations_converge_without_a_gap() -> None:
    features = random(1, 60, 10, seed=5)
    centred = features - features.mean(dim=1, keepdim=True)
    exact = torch.linalg.svd(centred).Vh[:, 0]
    found = principal_direction(centred, 500)
    assert abs(float((found * exact).sum())) > 0.9999
    assert abs(float(found.norm()) - 1) < 1e-5


def test_direction_is_deterministic_and_per_image() -> None:
    features = with_direction(50, 12, 3.0, seed=8)
    both = structure_score(features, 8)
    assert torch.equal(both, structure_score(features, 8))
    for row in range(2):
        torch.testing.assert_close(both[row], structure_score(features[row : row + 1], 8)[0])


@pytest.mark.parametrize("shape", [(2, 9, 4), (2, 1, 4)])
def test_no_spread_has_no_structure(shape: tuple[int, int, int]) -> None:
    features = random(shape[0], 1, shape[2]).expand(shape)
    magnitude = structure_score(torch.round(features), 8)  # whole numbers: their mean is exact
    assert magnitude.shape == shape[:2] and (magnitude == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_float32_in_low_precision(dtype: torch.dtype) -> None:
    features = with_direction(64, 16, 4.0, seed=2).to(dtype)
    for scores in (texture_score(features, Grid(1, 8, 8)), structure_score(features, 8)):
        assert scores.dtype == torch.float32 and torch.isfinite(scores).all()
    # Sums of squares beyond the range of float16 must not overflow.
    assert torch.isfinite(texture_score(200 * features, Grid(1, 8, 8))).all()


def test_normalisations_bring_scores_to_their_scale() -> None:
    scores = random(3, 40).abs() * torch.tensor([[1.0], [100.0], [0.01]])
    assert torch.equal(normalise(scores, "none"), scores)
    torch.testing.assert_close(normalise(scores, "mean").mean(dim=1), torch.ones(3))
    torch.testing.assert_close(normalise(scores, "max").amax(dim=1), torch.ones(3))
    standard = normalise(scores, "zscore")
    torch.testing.assert_close(standard.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(dim=1, correction=0), torch.ones(3))


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_normalising_keeps_order_and_survives_zeros(how: str) -> None:
    scores = random(2, 30).abs()
    assert torch.equal(normalise(scores, how).argsort(), scores.argsort())  # type: ignore[arg-type]
    assert (normalise(torch.zeros(2, 5), how) == 0).all()  # type: ignore[arg-type]


def test_top_tokens_are_ascending_and_ties_go_to_the_lower_index() -> None:
    scores = torch.tensor([[1.0, 5.0, 3.0, 5.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    assert top_tokens(scores, 2).tolist() == [[1, 3], [0, 1]]
    assert top_tokens(scores, 3).tolist() == [[1, 2, 3], [0, 1, 2]]


def test_broken_tokens_rank_first() -> None:
    scores = torch.tensor([[1.0, math.nan, math.inf, 0.0]])
    assert top_tokens(scores, 1).tolist() == [[1]]
    features = random(1, 36, 4)
    features[0, 35, 1] = math.nan
    assert 35 in top_tokens(texture_score(features, Grid(1, 6, 6)), 9)[0]
    assert structure_score(features, 8).isnan().all()


def test_stepvar_adds_its_two_scores() -> None:
    step, state = plan_of(StepVAR(), SQUARE).steps[-1], PruningState()
    tokens = TokenMap.dense(random(1, 64, 12), SQUARE[-1])
    texture, structure = HighPass().score(tokens, step, state), PCA().score(tokens, step, state)
    together = StepVAR(structure_weight=2.0, normalisation="max").score(tokens, step, state)
    torch.testing.assert_close(together, texture / texture.max() + 2.0 * structure / structure.max())
    alone = StepVAR(structure_weight=0.0, normalisation="none").score(tokens, step, state)
    assert torch.equal(alone, texture)
    plain = StepVAR(structure_weight=1.0, normalisation="none").score(tokens, step, state)
    torch.testing.assert_close(plain, texture + structure)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (torch.zeros(1, 63), r"method 'random': score\(\) gave torch.float32 of shape \(1, 63\) at pass 4 \(8x8\)"),
        (torch.zeros(1, 64, 1), r"of shape \(1, 64, 1\) at pass 4 \(8x8\); give torch.float32 of shape \(1, 64\)"),
        (torch.zeros(64), r"of shape \(64,\)"),
        (torch.zeros(1, 64, dtype=torch.bfloat16), r"gave torch.bfloat16 of shape \(1, 64\)"),
        (
            torch.full((1, 64), math.nan),
            r"method 'random': score\(\) gave NaN or infinity at pass 4 \(8x8\), though all",
        ),
        (torch.full((1, 64), math.inf), r"gave NaN or infinity at pass 4 \(8x8\)"),
    ],
)
def test_scores_that_cannot_be_ranked_are_refused(scores: Tensor, said: str) -> None:
    class Given(Random):
        def score(self, tokens: TokenMap, step: Step, state: PruningState) -> Tensor:
            return scores

    step = plan_of(Random(), SQUARE).steps[-1]
    with pytest.raises(UsageError, match=said):
        Given().select(TokenMap.dense(random(2, 64, 3), step.grid), 32, step, PruningState())


def test_scores_of_broken_features_may_be_broken() -> None:
    step, features = plan_of(HighPass(), SQUARE).steps[-1], random(2, 64, 3)
    features[0, 63, 0] = math.nan
    selection = HighPass().select(TokenMap.dense(features, step.grid), 32, step, PruningState())
    assert 63 in selection.kept[0]
