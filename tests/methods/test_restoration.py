from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.errors import UsageError
from stepvar.methods import Method, restoration
from stepvar.methods.cached_features import CachedFeatures
from stepvar.methods.restoration import (
    RESTORATIONS,
    Anchors,
    Blend,
    Cached,
    Nearest,
    Restoration,
    cell_positions,
    nearest_kept,
    restore_from_sources,
)
from tests.methods.helpers import plan_of

SIDES = st.sampled_from([1, 2, 3, 5, 7, 8, 11, 13])
GRIDS = st.builds(Grid, st.sampled_from([1, 1, 2, 3]), SIDES, SIDES)


def brute_force(kept: list[int], grid: Grid, temporal_weight: float = 1.0) -> list[int]:
    """For every cell the place in ``kept`` of the nearest one; the lower index wins a tie."""

    def place(index: int) -> tuple[int, int, int]:
        return index // (grid.h * grid.w), index // grid.w % grid.h, index % grid.w

    def distance(a: int, b: int) -> Fraction:
        t, h, w = ((x - y) ** 2 for x, y in zip(place(a), place(b), strict=True))
        return Fraction(temporal_weight) ** 2 * t + h + w

    return [
        min(range(len(kept)), key=lambda rank: (distance(cell, kept[rank]), kept[rank])) for cell in range(grid.size)
    ]


@st.composite
def kept_sets(draw: st.DrawFn) -> tuple[Grid, list[list[int]]]:
    """A grid and for each of some rows as many kept cells."""
    grid = draw(GRIDS)
    count = draw(st.integers(1, min(grid.size, 40)))
    rows = draw(st.integers(1, 3))
    cells = st.lists(st.integers(0, grid.size - 1), min_size=count, max_size=count, unique=True)
    return grid, [sorted(draw(cells)) for _ in range(rows)]


@given(kept_sets())
def test_nearest_is_what_brute_force_finds(case: tuple[Grid, list[list[int]]]) -> None:
    grid, kept = case
    assert nearest_kept(torch.tensor(kept), grid).tolist() == [brute_force(row, grid) for row in kept]


@given(kept_sets(), st.sampled_from([0.0, 0.25, 0.5, 1.5, 2.0, 3.0, 100.0]))
def test_a_step_in_time_counts_like_some_cells(case: tuple[Grid, list[list[int]]], weight: float) -> None:
    grid, kept = case
    expected = [brute_force(row, grid, weight) for row in kept]
    assert nearest_kept(torch.tensor(kept), grid, weight).tolist() == expected
    assert Blend(1).sources(torch.tensor(kept), grid, weight).source.squeeze(-1).tolist() == expected


def test_numbers_stay_whole_on_the_largest_grid() -> None:
    """720p of InfinityStar, few tokens, the finest weight: against a direct search on some cells."""
    grid, weight = Grid(20, 45, 80), 10 + 1 / 64
    generator = torch.Generator().manual_seed(0)
    kept = torch.randperm(grid.size, generator=generator)[:50].sort().values
    cells = cell_positions(grid, torch.device("cpu")).double() * torch.tensor([weight, 1, 1])
    found = nearest_kept(kept[None], grid, weight)[0]
    some = torch.randperm(grid.size, generator=generator)[:2000]
    apart = (cells[some][:, None] - cells[kept]).square().sum(-1)
    assert torch.equal(apart.gather(1, found[some][:, None]).squeeze(1), apart.amin(dim=1))


@given(GRIDS)
def test_one_kept_cell_stands_in_for_all(grid: Grid) -> None:
    assert nearest_kept(torch.tensor([[grid.size // 2]]), grid).tolist() == [[0] * grid.size]


@given(GRIDS)
def test_every_cell_kept_is_the_identity(grid: Grid) -> None:
    everything = torch.arange(grid.size).expand(2, -1)
    assert torch.equal(nearest_kept(everything, grid), everything)


def test_ties_go_to_the_lower_index() -> None:
    # Cell 2 of a line lies between 0 and 4; the centre of a 3x3 grid is as far from all four corners.
    assert nearest_kept(torch.tensor([[0, 4]]), Grid(1, 1, 5)).tolist() == [[0, 0, 0, 1, 1]]
    assert nearest_kept(torch.tensor([[0, 4]]), Grid(1, 5, 1)).tolist() == [[0, 0, 0, 1, 1]]
    assert nearest_kept(torch.tensor([[2, 6, 8]]), Grid(1, 3, 3))[0, 4] == 0
    assert nearest_kept(torch.tensor([[0, 2]]), Grid(3, 1, 1)).tolist() == [[0, 0, 1]]


def test_distances_span_frames() -> None:
    grid = Grid(2, 1, 4)  # cell 7 is kept in the second frame, cell 0 in the first
    nearest = nearest_kept(torch.tensor([[0, 7]]), grid)
    assert nearest.tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]


@given(kept_sets(), st.integers(1, 5))
def test_the_nearest_few_are_what_brute_force_finds(case: tuple[Grid, list[list[int]]], neighbours: int) -> None:
    grid, kept = case
    selection = Blend(neighbours).sources(torch.tensor(kept), grid)
    cells = cell_positions(grid, torch.device("cpu")).tolist()
    assert selection.weights is not None
    for row, own in enumerate(kept):
        count = min(neighbours, len(own))
        for cell, place in enumerate(cells):
            far = [sum((a - b) ** 2 for a, b in zip(place, cells[k], strict=True)) for k in own]
            nearest = sorted(range(len(own)), key=lambda rank: (far[rank], rank))[:count]
            assert selection.source[row, cell].tolist() == nearest
            raw = torch.tensor([1 / max(far[rank], 1) for rank in nearest])
            torch.testing.assert_close(selection.weights[row, cell], raw / raw.sum())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = torch.tensor([[0, 7, 11], [3, 4, 19]])
    whole = Blend(2).sources(kept, Grid(1, 4, 5))
    monkeypatch.setattr(restoration, "CHUNK", 20)
    parts = Blend(2).sources(kept, Grid(1, 4, 5))
    assert torch.equal(whole.source, parts.source)


def test_spreading_leaves_kept_tokens_alone() -> None:
    grid = Grid(1, 1, 4)
    kept = torch.tensor([[0, 3], [1, 2]])
    values = torch.tensor([[100.0, 106.0], [122.0, 124.0]]).unsqueeze(-1)
    nearest = restore_from_sources(values, Nearest().sources(kept, grid)).squeeze(-1)
    assert nearest.tolist() == [[100.0, 100.0, 106.0, 106.0], [122.0, 122.0, 124.0, 124.0]]
    # At distances 1 and 2 the weights are 4/5 and 1/5.
    blend = restore_from_sources(values, Blend(2).sources(kept, grid)).squeeze(-1)
    expected = torch.tensor([[100.0, 101.2, 104.8, 106.0], [122.4, 122.0, 124.0, 123.6]])
    torch.testing.assert_close(blend, expected)


def test_anchors_are_one_in_each_square_of_each_frame() -> None:
    def anchors(stride: int, grid: Grid) -> list[int]:
        found = Anchors(stride).anchors(grid, torch.device("cpu"))
        assert len(found) == Anchors(stride).anchor_count(grid)
        return found.tolist()

    assert anchors(2, Grid(1, 4, 5)) == [6, 8, 9, 16, 18, 19]
    assert anchors(4, Grid(2, 1, 2)) == [1, 3]
    assert anchors(9, Grid(1, 3, 3)) == [4]
    assert len(anchors(4, Grid(1, 64, 64))) == 256


def test_anchors_stand_in_for_all_that_is_not_kept() -> None:
    anchors = Anchors(2)  # cells 1 and 3 of a line of four
    kept = torch.tensor([[0, 1, 3], [1, 2, 3]])
    assert anchors.sources(kept, Grid(1, 1, 4)).source.tolist() == [[0, 1, 1, 2], [0, 0, 1, 2]]


@pytest.mark.parametrize("restoration", RESTORATIONS.values(), ids=RESTORATIONS)
def test_restoration_from_every_token_changes_nothing(restoration: Restoration) -> None:
    (step,) = plan_of(Method(), ScaleSchedule.of([(3, 5)]), 1.0, samples=2).steps
    everything, values = torch.arange(15).expand(2, -1), torch.randn(2, 15, 4)
    cached = CachedFeatures(torch.randn(2, 15, 4), step.grid)
    restored = restoration.restore(values, restoration.sources(everything, step.grid), step, cached)
    assert torch.equal(restored, values)


def test_cached_values_fill_what_is_not_kept() -> None:
    first, second = plan_of(Method(), ScaleSchedule.of([(1, 2), (1, 4)]), 1.0).steps
    cached = CachedFeatures.of(TokenMap.dense(torch.tensor([[[1.0], [2.0]]]), first.grid), first)
    kept = torch.tensor([[0, 2]])
    restored = RESTORATIONS["cached"].restore(
        torch.tensor([[[7.0], [8.0]]]), Cached().sources(kept, second.grid), second, cached
    )
    assert restored.flatten().tolist() == [7.0, 1.0, 8.0, 2.0]


@pytest.mark.parametrize(("build", "said"), [(lambda: Blend(0), "neighbours=0"), (lambda: Anchors(0), "stride=0")])
def test_wrong_settings_of_restorations(build: Callable[[], Restoration], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build()
