import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stepvar.methods.propagation import nearest_kept, propagate
from stepvar.tokens import Grid, Selection, TokenMap

SIDES = st.sampled_from([1, 2, 3, 5, 7, 8, 11, 13])
GRIDS = st.builds(Grid, st.sampled_from([1, 1, 2, 3]), SIDES, SIDES)


def brute_force(kept: list[int], grid: Grid) -> list[int]:
    """For every cell the place in ``kept`` of the nearest one; the lower index wins a tie."""

    def place(index: int) -> tuple[int, int, int]:
        return index // (grid.h * grid.w), index // grid.w % grid.h, index % grid.w

    def distance(a: int, b: int) -> int:
        return sum((x - y) ** 2 for x, y in zip(place(a), place(b), strict=True))

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


@pytest.fixture
def maps() -> tuple[TokenMap, TokenMap, Selection]:
    """A dense line of four tokens per row, two of them kept, and those behind some blocks."""
    grid = Grid(1, 1, 4)
    before = TokenMap.dense(torch.tensor([[0.0, 1.0, 2.0, 3.0], [10.0, 11.0, 12.0, 13.0]]).unsqueeze(-1), grid)
    kept = torch.tensor([[0, 3], [1, 2]])
    selection = Selection(kept, nearest_kept(kept, grid))
    thin = before.take(kept)
    return before, thin.with_features(100.0 + 2.0 * thin.features), selection


def values(tokens: TokenMap) -> list[list[float]]:
    result: Tensor = tokens.features.squeeze(-1)
    return result.tolist()


def test_state_is_the_neighbours(maps: tuple[TokenMap, TokenMap, Selection]) -> None:
    dense = propagate(*maps, "state")
    assert values(dense) == [[100.0, 100.0, 106.0, 106.0], [122.0, 122.0, 124.0, 124.0]]
    assert dense.is_dense and torch.equal(dense.positions, maps[0].positions)


def test_update_is_added_to_ones_own_state(maps: tuple[TokenMap, TokenMap, Selection]) -> None:
    # The blocks added 100 to token 0, 103 to token 3; 111 and 112 in the second row.
    assert values(propagate(*maps, "update")) == [[100.0, 101.0, 105.0, 106.0], [121.0, 122.0, 124.0, 125.0]]


@pytest.mark.parametrize("what", ["state", "update"])
def test_propagating_from_every_token_changes_nothing(what: str) -> None:
    grid = Grid(1, 3, 5)
    before = TokenMap.dense(torch.randn(2, 15, 4), grid)
    everything = torch.arange(15).expand(2, -1)
    after = before.with_features(torch.randn(2, 15, 4))
    dense = propagate(before, after, Selection(everything, nearest_kept(everything, grid)), what)  # type: ignore[arg-type]
    torch.testing.assert_close(dense.features, after.features)
