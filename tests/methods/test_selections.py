"""What the selections beside StepVAR's keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.errors import UsageError
from stepvar.methods import Coverage, L2Norm, LatentDelta, MeanDistance, SparseVAR, StepVAR, TaperedPruning
from stepvar.methods.coverage import cell_sides, lattice
from stepvar.methods.propagation import nearest_kept
from stepvar.methods.pruning import Pruning
from stepvar.methods.restoration import cell_positions
from stepvar.methods.taper import factor
from stepvar.models.infinity import Infinity
from tests.helpers import SQUARE, WIDE, Watch, draw, make_settings

CPU = torch.device("cpu")


class Blocks:
    """Blocks that add their number to every token, and ten times as much to the odd ones."""

    depth = 3

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        for block in range(first, self.depth if last is None else last):
            odd = (tokens.positions % 2).unsqueeze(-1)
            tokens = tokens.with_features(tokens.features + block * (1 + 9 * odd))
        return tokens


def kept_at_last(method: Pruning, maps: list[Tensor], schedule: ScaleSchedule) -> list[int]:
    """Which tokens of the last scale are kept when these maps (N, C) enter the blocks."""
    steps = list(make_settings(schedule, 1.0).steps(1))
    for step, features in zip(steps, maps, strict=True):
        method.run_stack(Blocks(), TokenMap.dense(features.unsqueeze(0), step.grid), step)
    return steps[-1].selections[0][0].tolist()


def test_sizes_and_distances() -> None:
    line = ScaleSchedule.of([(1, 1), (1, 4)])
    maps = [torch.zeros(1, 1), torch.tensor([[5.0], [5.0], [1.0], [-6.0]])]
    assert kept_at_last(L2Norm(keep=(0.25,)), maps, line) == [3]
    assert kept_at_last(L2Norm(keep=(0.5,)), maps, line) == [0, 3]
    assert kept_at_last(MeanDistance(keep=(0.5,)), [maps[0], torch.tensor([[9.0], [8.0], [7.0], [0.0]])], line) == [
        0,
        3,
    ]


def test_latent_change_is_that_since_the_scale_before() -> None:
    schedule = ScaleSchedule.of([(1, 2), (1, 4)])
    # Resampled to four cells the earlier map is 0, 1, 3, 4: cell 2 changes by 4, cell 1 by 2, the others by none.
    maps = [torch.tensor([[0.0], [4.0]]), torch.tensor([[0.0], [3.0], [7.0], [4.0]])]
    assert kept_at_last(LatentDelta(keep=(0.25,)), maps, schedule) == [2]
    assert kept_at_last(LatentDelta(keep=(0.5,)), maps, schedule) == [1, 2]


def test_latent_change_sees_what_enters_the_blocks(tiny_model: Infinity) -> None:
    """Also for selections further up the stack."""
    plan = make_settings(WIDE)
    watch = Watch()
    draw(tiny_model, plan, watch)
    inside = draw(tiny_model, plan, LatentDelta(last=1, blocks_before=2)).steps[-1].selections
    outside = draw(tiny_model, plan, LatentDelta(last=1)).steps[-1].selections
    assert torch.equal(inside[0], outside[0])
    assert len(watch.seen) == len(WIDE) * 12


def test_sparsevar_keeps_what_a_block_changed_at_the_scale_before() -> None:
    schedule = ScaleSchedule.of([(1, 8), (1, 8)])
    maps = [torch.zeros(8, 1)] * 2
    assert kept_at_last(SparseVAR(keep=(0.5,), block=1, restore="nearest"), maps, schedule) == [1, 3, 5, 7]
    # The first block changes nothing: all tie, and the first ones stay.
    assert kept_at_last(SparseVAR(keep=(0.5,), block=0, restore="nearest"), maps, schedule) == [0, 1, 2, 3]
    # Anchors are at 2 and 6.
    assert kept_at_last(SparseVAR(keep=(0.5,)), maps, schedule) == [1, 2, 3, 6]


def test_sparsevar_fills_from_anchors() -> None:
    schedule = ScaleSchedule.of([(1, 8), (1, 8)])
    steps = list(make_settings(schedule, 1.0).steps(1))
    method = SparseVAR(keep=(0.5,))
    for step in steps:
        tokens = TokenMap.dense(10.0 * torch.arange(8.0).view(1, 8, 1), step.grid)
        out = method.run_stack(Blocks(), tokens, step).features.flatten().tolist()
    # Kept: 1, 2, 3, 6. Blocks add 3 to the even ones and 30 to the odd ones; 0 takes anchor 2, the others anchor 6.
    assert out == [23.0, 40.0, 23.0, 60.0, 23.0, 63.0, 63.0, 63.0]


def test_sparsevar_goes_on_from_thinned_scales(tiny_model: Infinity) -> None:
    drawn = draw(tiny_model, make_settings(SQUARE), SparseVAR(keep=(0.5, 0.5)))
    assert [len(step.selections) for step in drawn.steps] == [0, 0, 0, 1, 1]
    assert drawn.steps[-1].memo["block_error"].values.shape == (2, 64, 1)


@pytest.mark.parametrize(
    ("method", "said"),
    [(SparseVAR(block=4), "block=4: the model has 4 blocks"), (SparseVAR(block=9), "block=9")],
)
def test_the_measuring_block_exists(tiny_model: Infinity, method: SparseVAR, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        draw(tiny_model, make_settings(SQUARE), method)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cover": 0.0}, "cover=0.0: must be above 0"),
        ({"cover": 1.5}, "cover=1.5"),
        ({"restore": "anchors"}, "restore='anchors'"),
    ],
)
def test_wrong_settings_of_coverage(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Coverage(**settings)


SIDES = st.integers(1, 12)


@given(st.builds(Grid, st.integers(1, 3), SIDES, SIDES), st.integers(1, 80), st.integers(0, 99))
def test_coverage_bounds_the_distance_to_the_nearest_kept_token(grid: Grid, count: int, seed: int) -> None:
    count = min(count, grid.size)
    step = Step(0, grid, 1, 1, 1, 1.0, 1.0, make_settings(ScaleSchedule((grid,)), 1.0))
    scores = torch.rand(2, grid.size, generator=torch.Generator().manual_seed(seed))
    scores[1] = torch.arange(grid.size)  # all high scores in one corner
    method = Coverage()
    kept = method.choose(scores, count, step)
    assert kept.shape == (2, count) and all(len(set(row)) == count for row in kept.tolist())
    frames, side = cell_sides(grid, max(1, count // 2))
    cells = cell_positions(grid, CPU)
    nearest = kept.gather(1, nearest_kept(kept, grid))
    bound = 2 * (side - 1) ** 2 + (frames - 1) ** 2
    for row in nearest:
        assert (cells[row] - cells).square().sum(dim=1).max() <= bound


def test_the_best_of_each_cell_comes_first() -> None:
    grid = Grid(1, 2, 4)
    assert cell_sides(grid, 2) == (1, 2)
    assert lattice(grid, 2, CPU)[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert cell_sides(Grid(5, 2, 2), 3) == (2, 2)
    assert cell_sides(Grid(2, 4, 4), 8) == (1, 2)
    step = Step(0, grid, 1, 1, 1, 1.0, 1.0, make_settings(ScaleSchedule((grid,)), 1.0))
    scores = torch.tensor([[9.0, 8.0, 1.0, 2.0, 7.0, 6.0, 3.0, 0.0]])
    assert Coverage().choose(scores, 4, step).tolist() == [[0, 1, 4, 6]]
    assert StepVAR().choose(scores, 4, step).tolist() == [[0, 1, 4, 5]]


@pytest.mark.parametrize("taper", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("schedule", [SQUARE, WIDE], ids=["square", "wide"])
def test_taper_spreads_the_same_tokens(schedule: ScaleSchedule, taper: float) -> None:
    method = TaperedPruning(keep=0.5, last=3, taper=taper)
    steps = list(make_settings(schedule).steps(1))
    counts = [method.count_at(step) for step in steps]
    even = [StepVAR(keep=0.5, last=3).count_at(step) for step in steps]
    assert abs(sum(counts) - sum(even)) <= 2
    if taper == 0:
        assert counts == even
    if taper == 1:
        pruned = {count for step, count in zip(steps, counts, strict=True) if count < step.grid.size}
        assert len(pruned) == 1
    assert all(count <= step.grid.size for step, count in zip(steps, counts, strict=True))


def test_taper_saturates_small_scales() -> None:
    # Half of 116 is 58: the smallest scale is whole, the others share what is left of it.
    assert factor([16, 36, 64], 0.5, 1.0) == pytest.approx(21.0)
    assert factor([4, 36, 64], 1.0, 0.5) * 64**-0.5 == pytest.approx(1.0)
    counts = [TaperedPruning(keep=0.5, last=3, taper=1.0).count_at(step) for step in make_settings(SQUARE).steps(1)]
    assert counts == [1, 4, 16, 21, 21]
    with pytest.raises(UsageError, match="taper=2"):
        TaperedPruning(taper=2)
    with pytest.raises(UsageError, match="give one number"):
        TaperedPruning(keep=(0.5, 0.5))
