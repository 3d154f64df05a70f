"""What a method keeps of an earlier pass, on a later grid and for the branches that run there."""

from __future__ import annotations

import pytest
import torch

from stepvar.core.plan import Settings, Step
from stepvar.core.resolve import resolve
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.methods.cached_features import CachedFeatures, resample

GRIDS = ScaleSchedule.of([(1, 2), (1, 3)])


def steps(guidance: tuple[float, float], samples: int = 1) -> list[Step]:
    return list(resolve(Settings(GRIDS, guidance, (1.0, 1.0)), samples, depth=1).steps)


def test_area_mixes_the_cells_that_overlap() -> None:
    line = torch.tensor([[[0.0], [4.0]]])
    assert resample(line, Grid(1, 1, 2), Grid(1, 1, 3), "area").flatten().tolist() == [0.0, 2.0, 4.0]
    assert resample(line, Grid(1, 1, 2), Grid(1, 1, 4), "trilinear").flatten().tolist() == [0.0, 1.0, 3.0, 4.0]


def test_time_is_an_axis_like_the_others() -> None:
    clip = torch.arange(2.0).view(1, 2, 1)
    assert resample(clip, Grid(2, 1, 1), Grid(4, 1, 1), "area").flatten().tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [((3.0, 3.0), [0.0, 1.0, 2.0, 3.0]), ((3.0, 1.0), [0.0, 1.0]), ((3.0, 0.0), [2.0, 3.0])],
)
def test_each_branch_finds_its_own_rows(guidance: tuple[float, float], expected: list[float]) -> None:
    first, second = steps(guidance, samples=2)
    past = CachedFeatures.of(TokenMap.dense(torch.arange(4.0).view(4, 1, 1).expand(4, 2, 1), first.grid), first)
    assert past.at(second, second.rows, "area")[:, 0, 0].tolist() == expected
    assert past.at(second, 1, "area")[:, 0, 0].tolist() == expected[:1]


def test_a_branch_that_did_not_run_takes_the_other() -> None:
    past = CachedFeatures(torch.arange(2.0).view(2, 1, 1), Grid(1, 1, 1))
    guided, alone = steps((3.0, 3.0), 2)[1], steps((3.0, 0.0), 2)[1]
    assert past.at(guided, 4, "area")[:, 0, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert past.at(alone, 2, "area")[:, 0, 0].tolist() == [0.0, 1.0]
