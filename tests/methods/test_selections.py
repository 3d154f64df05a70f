"""What the selections beside StepVAR's keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.errors import UsageError
from stepvar.methods import Coverage, LatentDelta, Magnitude, StepVAR, make_method
from stepvar.methods.coverage import cell_sides, lattice
from stepvar.methods.pruning import Pruning, taper_factor
from stepvar.methods.restoration import cell_positions, nearest_kept
from stepvar.models.infinity import Infinity
from tests.helpers import SQUARE, WIDE, Watch, generate_infinity, make_settings
from tests.methods.helpers import plan_of

CPU = torch.device("cpu")


class Blocks:
    """Blocks that add their number to every token, and ten times as much to the odd ones."""

    depth = 3

    def entered(self, tokens: TokenMap, layer: int = 0) -> TokenMap:
        return tokens

    def enter(self, tokens: TokenMap, first: int = 0) -> TokenMap:
        return tokens

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        for block in range(first, self.depth if last is None else last):
            odd = (tokens.positions % 2).unsqueeze(-1)
            tokens = tokens.with_features(tokens.features + block * (1 + 9 * odd))
        return tokens


def kept_at_last(method: Pruning, maps: list[Tensor], schedule: ScaleSchedule) -> list[int]:
    """Which tokens of the last scale are kept when these maps (N, C) enter the blocks."""
    plan = plan_of(method, schedule, 1.0)
    state = method.start(plan)
    for step, features in zip(plan.steps, maps, strict=True):
        method.run_stack(Blocks(), TokenMap.dense(features.unsqueeze(0), step.grid), step, state)
    return state.selections[len(plan.steps) - 1][0][0].tolist()


def test_sizes_and_distances() -> None:
    line = ScaleSchedule.of([(1, 1), (1, 4)])
    maps = [torch.zeros(1, 1), torch.tensor([[5.0], [5.0], [1.0], [-6.0]])]
    assert kept_at_last(Magnitude(keep=(0.25,)), maps, line) == [3]
    assert kept_at_last(Magnitude(keep=(0.5,)), maps, line) == [0, 3]
    assert kept_at_last(
        Magnitude(centred=True, keep=(0.5,)), [maps[0], torch.tensor([[9.0], [8.0], [7.0], [0.0]])], line
    ) == [
        0,
        3,
    ]


def test_latent_delta_is_that_since_the_scale_before() -> None:
    schedule = ScaleSchedule.of([(1, 2), (1, 4)])
    # Resampled to four cells the earlier map is 0, 1, 3, 4: cell 2 changes by 4, cell 1 by 2, the others by none.
    maps = [torch.tensor([[0.0], [4.0]]), torch.tensor([[0.0], [3.0], [7.0], [4.0]])]
    assert kept_at_last(LatentDelta(keep=(0.25,)), maps, schedule) == [2]
    assert kept_at_last(LatentDelta(keep=(0.5,)), maps, schedule) == [1, 2]


def test_latent_delta_sees_what_enters_the_blocks(tiny_model: Infinity) -> None:
    """Also for selections further up the stack."""
    settings = make_settings(WIDE)
    watch = Watch()
    generate_infinity(tiny_model, settings, watch)
    inside = generate_infinity(tiny_model, settings, LatentDelta(last=1, blocks_before=2)).selections[5]
    outside = generate_infinity(tiny_model, settings, LatentDelta(last=1)).selections[5]
    assert torch.equal(inside[0], outside[0])
    assert len(watch.seen) == len(WIDE) * 12


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cover": 0.0}, "cover=0.0: must be a number above 0"),
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
    scores = torch.rand(2, grid.size, generator=torch.Generator().manual_seed(seed))
    scores[1] = torch.arange(grid.size)  # all high scores in one corner
    method = Coverage()
    kept = method.choose(scores, count, grid)
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
    scores = torch.tensor([[9.0, 8.0, 1.0, 2.0, 7.0, 6.0, 3.0, 0.0]])
    assert Coverage().choose(scores, 4, grid).tolist() == [[0, 1, 4, 6]]
    assert StepVAR().choose(scores, 4, grid).tolist() == [[0, 1, 4, 5]]


@pytest.mark.parametrize("taper", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("schedule", [SQUARE, WIDE], ids=["square", "wide"])
def test_taper_spreads_the_same_tokens(schedule: ScaleSchedule, taper: float) -> None:
    method = StepVAR(keep=0.5, last=3, taper=taper)
    steps = plan_of(method, schedule).steps
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
    assert taper_factor([16, 36, 64], 0.5, 1.0) == pytest.approx(21.0)
    assert taper_factor([4, 36, 64], 1.0, 0.5) * 64**-0.5 == pytest.approx(1.0)
    method = StepVAR(keep=0.5, last=3, taper=1.0)
    assert [method.count_at(step) for step in plan_of(method, SQUARE).steps] == [1, 4, 16, 21, 21]
    assert make_method("stepvar:taper", keep=0.3) == StepVAR(keep=0.3, taper=0.5)
    with pytest.raises(UsageError, match="taper=2"):
        StepVAR(taper=2)
    with pytest.raises(UsageError, match="give one number"):
        StepVAR(keep=(0.5, 0.5), taper=0.5)
