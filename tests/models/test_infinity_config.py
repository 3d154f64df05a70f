"""What the family fixes: schedules, positions, sizes."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.errors import CheckpointError, ExperimentalWarning, UsageError
from stepvar.kernels.norm import rotate
from stepvar.models.infinity import CONFIGS, RATIOS, RESOLUTIONS, Infinity, InfinityConfig, schedule_for
from stepvar.models.infinity.rope import frame_coordinates, rotary_table, rotary_tables
from tests.helpers import TINY, WIDE, generate_infinity, make_model, make_settings

# Schedules


@pytest.mark.parametrize(
    ("ratio", "published"),
    [
        (1.0, "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64"),
        (1.5, "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52"),
        (0.75, "1x1 2x2 3x4 6x8 9x12 12x16 15x20 18x24 21x28 27x36 36x48 45x60 54x72"),
        (0.333, "1x1 2x2 2x6 3x9 5x15 7x21 9x27 12x36 15x45 18x54 24x72 30x90 37x111"),
    ],
)
def test_schedules_are_the_published_ones(ratio: float, published: str) -> None:
    assert " ".join(str(grid) for grid in schedule_for("1M", ratio)) == published


def test_ratios_come_in_pairs() -> None:
    wide = sorted(ratio for ratio in RATIOS if ratio < 1)
    assert wide == [0.333, 0.4, 0.5, 0.571, 0.666, 0.75, 0.8]
    tall = sorted((ratio for ratio in RATIOS if ratio > 1), reverse=True)
    for low, high in zip(wide, tall, strict=True):
        assert [(w, h) for h, w in RATIOS[low]] == list(RATIOS[high])


def test_resolutions_are_prefixes() -> None:
    for ratio in RATIOS:
        full = schedule_for("1M", ratio)
        assert len(full) == 13
        for resolution, count in RESOLUTIONS.items():
            schedule = schedule_for(resolution, ratio)
            assert schedule.grids == full.grids[:count]
            assert schedule.frame == full.grids[-1]  # positions are those of the largest schedule


def test_square_token_counts() -> None:
    totals = {name: schedule_for(name, 1.0).size for name in RESOLUTIONS}
    assert totals == {"0.06M": 521, "0.25M": 2521, "0.60M": 6425, "1M": 10521}


@pytest.mark.parametrize(
    ("asked", "ratio"), [(1.49, 1.5), (2 / 3, 0.666), (16 / 9, 1.75), (9 / 16, 0.571), (100.0, 3.0), (1e-6, 0.333)]
)
def test_nearest_ratio_is_taken(asked: float, ratio: float) -> None:
    assert schedule_for("0.25M", asked) == schedule_for("0.25M", ratio)
    assert schedule_for("0.25M", asked).name == f"0.25M {ratio:g}"


def test_schedules_say_which_ratio_was_taken() -> None:
    schedule = schedule_for("1M", 16 / 9)
    assert (schedule.asked, schedule.ratio) == (16 / 9, 1.75)
    assert schedule == schedule_for("1M", 1.75)  # the ratio that was wanted is no part of what it is
    assert ScaleSchedule.of([(1, 1)]).ratio is None


def test_published_schedules_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for resolution in RESOLUTIONS:
            schedule_for(resolution, 1.0)


def test_2k_is_experimental() -> None:
    with pytest.warns(ExperimentalWarning, match="2K"):
        schedule = schedule_for("2K", 1.0)
    stretched = "1x1 2x2 4x4 7x7 10x10 16x16 23x23 30x30 38x38 54x54 71x71 91x91 128x128"
    assert " ".join(map(str, schedule)) == stretched and schedule.name == "2K 1"
    assert schedule.frame == Grid(1, 64, 64)  # positions are those of the largest published schedule


@pytest.mark.parametrize("ratio", RATIOS)
def test_2k_doubles_the_sides_of_1m(ratio: float) -> None:
    with pytest.warns(ExperimentalWarning):
        large = schedule_for("2K", ratio)
    small = schedule_for("1M", ratio)
    assert (large[-1].h, large[-1].w) == (2 * small[-1].h, 2 * small[-1].w)
    assert large[0] == small[0] and len(large) == len(small) <= TINY.levels
    assert all(a.size <= b.size for a, b in zip(small, large, strict=True))
    assert all(a.size < b.size for a, b in pairwise(large))


def test_2k_generates() -> None:
    model = make_model(replace(TINY, depth=1, block_chunks=1))
    with pytest.warns(ExperimentalWarning):
        schedule = model.schedule(3.0, "2K")
    plan = replace(make_settings(schedule, 1.0), passes=tuple(range(7)))
    assert torch.isfinite(generate_infinity(model, plan).state.latent).all()


def test_unknown_schedules_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"resolution '2M': choose one of 0.06M, 0.25M, 0.60M, 1M, 2K \(experimental\)"
    ):
        schedule_for("2M", 1.0)
    for ratio in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="must be a positive number"):
            schedule_for("1M", ratio)


# Positions


def test_coordinates_round_half_to_even() -> None:
    assert frame_coordinates(48, 72)[:9] == [0, 2, 3, 4, 6, 8, 9, 10, 12]  # 1.5, 4.5, 7.5 and 10.5 are halves
    assert frame_coordinates(4, 10) == [0, 2, 5, 8]  # 2.5 and 7.5
    assert frame_coordinates(3, 100) == [0, 33, 67]
    assert frame_coordinates(5, 5) == [0, 1, 2, 3, 4]


def test_coordinates_of_a_grid_finer_than_the_frame_stay_apart() -> None:
    assert frame_coordinates(8, 4) == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    assert len(set(frame_coordinates(91, 64))) == 91


def test_first_half_of_the_pairs_turns_with_the_row() -> None:
    cos, sin = rotary_table(Grid(1, 2, 3), Grid(1, 4, 9), head_dim=8)
    angles = torch.atan2(sin, cos).view(2, 3, 4)
    assert cos.shape == (6, 4)
    for row in range(2):
        for column in range(3):
            y, x = 2.0 * row, 3.0 * column
            exact = torch.tensor([y, y / 100, x, x / 100])  # frequencies 1 and 10000 ** -0.5
            turned = torch.atan2(exact.sin(), exact.cos())
            torch.testing.assert_close(angles[row, column], turned, atol=1e-5, rtol=0)


def test_products_depend_on_offsets_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator, dtype=torch.float64)
    grid = Grid(1, 9, 9)
    cos, sin = (table.double() for table in rotary_table(grid, grid, 16))

    def product(a: int, b: int) -> float:
        turned = [rotate(vector, (cos[None, None, [i]], sin[None, None, [i]])) for vector, i in ((q, a), (k, b))]
        return float((turned[0] * turned[1]).sum())

    def cell(row: int, column: int) -> int:
        return row * grid.w + column

    assert product(cell(0, 0), cell(2, 3)) == pytest.approx(product(cell(5, 4), cell(7, 7)), abs=1e-5)
    assert product(cell(0, 0), cell(2, 3)) != pytest.approx(product(cell(0, 0), cell(3, 2)), abs=1e-2)


def test_tables_are_in_the_coordinates_of_the_frame() -> None:
    tables = rotary_tables(WIDE, 32, torch.device("cpu"))
    assert len(tables) == len(WIDE)
    for grid, (cos, sin) in zip(WIDE, tables, strict=True):
        wanted = rotary_table(grid, WIDE[5], 32)
        assert cos.shape == (grid.size, 16)
        assert torch.equal(cos, wanted[0]) and torch.equal(sin, wanted[1])


# Configurations


def test_released_sizes() -> None:
    widths = {"125m": 3072, "2b": 8192, "8b": 14336}
    assert {name: CONFIGS[name].ffn_width for name in widths} == widths
    # Published widths of the feed-forward layer where the rounding meets a tie.
    assert [replace(TINY, width=width, heads=20).ffn_width for width in (2080, 3360)] == [8192, 13312]
    assert (CONFIGS["2b"].token_bits, CONFIGS["8b"].token_bits) == (32, 56)
    assert {config.stride for config in CONFIGS.values()} == {16}


@pytest.mark.parametrize(("name", "billions"), [("125m", 0.125), ("2b", 2.205), ("8b", 8.376)])
def test_parameter_counts(name: str, billions: float) -> None:
    with torch.device("meta"):
        model = Infinity(CONFIGS[name])
    count = sum(weight.numel() for weight in model.transformer.parameters())
    assert count / 1e9 == pytest.approx(billions, abs=0.001)


@pytest.mark.parametrize("change", [{"block_chunks": 3}, {"heads": 3}, {"text_channels": 100}])
def test_impossible_configurations(change: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(change))):
        replace(TINY, **change)  # type: ignore[arg-type]


def test_configuration_survives_a_file() -> None:
    assert InfinityConfig.from_dict(TINY.to_dict()) == TINY
    with pytest.raises(CheckpointError, match="unknown fields colour"):
        InfinityConfig.from_dict(TINY.to_dict() | {"colour": 1})
