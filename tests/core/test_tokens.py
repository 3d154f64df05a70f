import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepvar.core.tokens import Grid, ScaleSchedule, Selection, TokenMap, gather_tokens


@pytest.mark.parametrize("sides", [(0, 1, 1), (1, 0, 1), (1, 1, -2)])
def test_grid_needs_every_side(sides: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="every side"):
        Grid(*sides)


def test_grid_counts_and_prints() -> None:
    assert Grid(1, 4, 6).size == 24 and str(Grid(1, 4, 6)) == "4x6"
    assert Grid(3, 4, 6).size == 72 and str(Grid(3, 4, 6)) == "3x4x6"


def test_schedule_reads_images_and_videos() -> None:
    schedule = ScaleSchedule.of([(1, 1), (2, 3, 4)])
    assert schedule.grids == (Grid(1, 1, 1), Grid(2, 3, 4))
    assert (len(schedule), schedule.size, schedule[-1]) == (2, 25, Grid(2, 3, 4))


def test_schedule_is_not_empty() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ScaleSchedule(())


def test_late_scales_hold_more_than_the_share() -> None:
    schedule = ScaleSchedule.of([(1, 1), (1, 2), (1, 3), (1, 6)])  # 12 tokens
    assert schedule.late_scales(0.49) == 1
    assert schedule.late_scales(0.5) == 2  # 6 of 12 is not more than half
    assert schedule.late_scales(0.76) == 3
    assert schedule.late_scales(0.0) == 1


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8), st.floats(0.0, 0.99))
def test_late_scales_are_the_fewest(sides: list[tuple[int, int]], share: float) -> None:
    sizes = [h * w for h, w in sides]
    count = ScaleSchedule.of(sides).late_scales(share)
    assert sum(sizes[-count:]) > share * sum(sizes)
    assert count == 1 or sum(sizes[-(count - 1) :]) <= share * sum(sizes)


VIDEO = ScaleSchedule(
    tuple(Grid(*side) for side in [(1, 1, 1), (1, 2, 2), (1, 2, 2), (3, 1, 1), (3, 2, 2), (3, 2, 2), (3, 3, 3)]),
    clips=(0, 0, 0, 1, 1, 1, 1),
    scales=(0, 1, 1, 0, 1, 1, 2),
    kv_scope="clip",
)


def test_repetitions_share_a_rank_within_their_clip() -> None:
    assert [VIDEO.scales_from_end(index) for index in range(7)] == [2, 1, 1, 3, 2, 2, 1]
    assert VIDEO.scale_counts == (2, 3)
    image = ScaleSchedule.of([(1, 1), (2, 2)])
    assert [image.scales_from_end(0), image.scales_from_end(1), image.scale(1), image.clip(1)] == [2, 1, 1, 0]


def test_late_scales_are_those_of_the_last_clip_with_their_repetitions() -> None:
    assert VIDEO.late_scales(0.5) == 2  # 27 of 3 + 2 * 12 + 27 tokens are exactly half
    assert VIDEO.late_scales(0.49) == 1
    assert VIDEO.late_scales(0.95) == 3


def test_a_schedule_numbers_every_pass_or_none() -> None:
    with pytest.raises(ValueError, match="clips: needs no value, or one for each of the 1 passes"):
        ScaleSchedule((Grid(1, 1, 1),), clips=(0, 1))


def test_dense_map_numbers_tokens_in_every_row() -> None:
    tokens = TokenMap.dense(torch.zeros(3, 6, 2), Grid(1, 2, 3))
    assert tokens.positions.tolist() == [[0, 1, 2, 3, 4, 5]] * 3
    assert tokens.is_dense


def test_take_keeps_features_with_their_positions() -> None:
    features = torch.arange(12.0).view(2, 6, 1)
    tokens = TokenMap.dense(features, Grid(1, 2, 3))
    kept = torch.tensor([[0, 4], [2, 5]])
    thin = tokens.take(kept)
    assert not thin.is_dense and thin.grid == tokens.grid
    assert thin.positions.tolist() == kept.tolist()
    assert thin.features.squeeze(-1).tolist() == [[0.0, 4.0], [8.0, 11.0]]
    again = thin.take(torch.tensor([[1], [0]]))
    assert again.positions.tolist() == [[4], [2]]


def test_with_features_leaves_the_original() -> None:
    tokens = TokenMap.dense(torch.zeros(1, 1, 2), Grid(1, 1, 1))
    changed = tokens.with_features(torch.ones(1, 1, 2))
    assert tokens.features.sum() == 0 and changed.features.sum() == 2
    assert changed.positions is tokens.positions


def test_selection_repeats_by_branch() -> None:
    selection = Selection(torch.tensor([[1], [2]]), torch.tensor([[0, 0, 0], [0, 0, 0]]))
    assert selection.repeat(1) is selection
    both = selection.repeat(2)
    assert both.kept.tolist() == [[1], [2], [1], [2]]
    assert both.source.shape == (4, 3)


@given(st.integers(0, 2**16))
def test_gather_is_row_by_row_indexing(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, 7, 4, generator=generator)
    index = torch.randint(7, (3, 5), generator=generator)
    expected = torch.stack([features[row, index[row]] for row in range(3)])
    assert torch.equal(gather_tokens(features, index), expected)
