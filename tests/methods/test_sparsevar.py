"""What SparseVAR excludes, restores and adds; its reference outputs are among the goldens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Step
from stepvar.core.report import Recorder
from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.cost.dry_run import count_flops
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods import Compose, DropGuidance, SkipLast, SparseVAR, make_method
from stepvar.methods.sparsevar import (
    CellValues,
    SparseVARState,
    anchor_cells,
    comparable,
    nearest_cells,
    share_above,
)
from stepvar.models.infinity import Infinity, TextCondition
from tests.helpers import CLIPS, SQUARE, WIDE, generate_infinity, generate_star, make_settings, make_star, make_text
from tests.methods.helpers import DEPTH, noting_states, plan_of

CPU = torch.device("cpu")
SIDES = st.integers(1, 12)


def last_step(method: SparseVAR, schedule: ScaleSchedule) -> Step:
    return plan_of(method, schedule).steps[-1]


def state_of(error: Tensor, logits: Tensor, grid: Grid, method: SparseVAR) -> SparseVARState:
    """What a pass (errors (1, N), guided logits (1, N, V)) left."""
    features = CellValues(comparable(logits, method.features), grid)
    return SparseVARState(error=CellValues(error, grid), features=features)


def slow_exclusion(
    method: SparseVAR, error: list[float], logits: Tensor, source: Grid, grid: Grid, count: int
) -> dict[str, Any]:
    """The rule cell by cell: which tokens stay, and where each takes its features from."""

    def cell(index: int) -> tuple[int, int, int]:
        return index // (grid.h * grid.w), index // grid.w % grid.h, index % grid.w

    def parent(index: int) -> int:
        frame, row, column = cell(index)
        row, column, frame = row * source.h // grid.h, column * source.w // grid.w, frame * source.t // grid.t
        return (frame * source.h + row) * source.w + column

    rows, columns = ([*range(0, side, method.anchor_step), side - 1] for side in (grid.h, grid.w))
    if method.candidates == "nearest":
        rows, columns = sorted(set(rows)), sorted(set(columns))
    anchors = [(row, column) for row in rows for column in columns]
    errors = [error[parent(index)] for index in range(grid.size)]
    if method.keep_anchors:
        errors = [float("inf") if cell(index)[1:] in anchors else value for index, value in enumerate(errors)]
    order = sorted(range(grid.size), key=lambda index: errors[index])[-count:]
    width, cells = logits.shape[1], source.size

    def features(index: int) -> Tensor:
        place = parent(index)
        if method.features == "cell":
            return logits[place]
        flat = [(channel * cells + place) for channel in range(width)]
        return torch.stack([logits[at // width, at % width] for at in flat])

    anchor, recoverable = [], []
    for index in range(grid.size):
        frame, row, column = cell(index)
        near = anchors[:4]
        if method.candidates == "nearest":
            apart = sorted(((row - y) ** 2 + (column - x) ** 2, y, x) for y, x in anchors)
            near = [(y, x) for _, y, x in apart[:4]]
        places = [(frame * grid.h + y) * grid.w + x for y, x in near]
        alike = [float(torch.cosine_similarity(features(index), features(at), dim=0)) for at in places]
        best = max(range(len(alike)), key=lambda at: round(alike[at], 5))
        anchor.append(places[best])
        recoverable.append(index not in order and alike[best] > method.similarity)
    return {"order": order, "anchor": anchor, "recoverable": recoverable}


@pytest.mark.parametrize(
    ("source", "grid"), [(Grid(1, 4, 6), Grid(1, 5, 9)), (Grid(2, 3, 3), Grid(2, 5, 5)), (Grid(1, 1, 2), Grid(1, 2, 3))]
)
@pytest.mark.parametrize(
    "method",
    [
        SparseVAR(last=1, anchor_step=3, similarity=0.2),
        SparseVAR(last=1, candidates="first", features="scrambled", keep_anchors=False, similarity=0.1),
        SparseVAR(last=1, features="scrambled", anchor_step=2, similarity=-0.5, keep=0.9),
    ],
    ids=["meant", "reproduced", "mixed"],
)
def test_the_rule_is_that_cell_by_cell(method: SparseVAR, source: Grid, grid: Grid) -> None:
    step = last_step(method, ScaleSchedule((source, grid)))
    generator = torch.Generator().manual_seed(grid.size)
    logits = torch.randn(1, source.size, 6, generator=generator)
    error = torch.rand(1, source.size, generator=generator).round(decimals=1)  # equal errors are common
    found = method.exclude(step, state_of(error, logits, source, method))
    wanted = slow_exclusion(method, error[0].tolist(), logits[0], source, grid, method.count_at(step))
    assert found.order[0].tolist() == wanted["order"]
    assert found.recoverable[0].tolist() == wanted["recoverable"]
    assert found.anchor[0].tolist() == wanted["anchor"]
    assert sorted(wanted["order"]) == found.kept[0].tolist()
    assert found.excluded[0].nonzero().flatten().tolist() == sorted({*range(grid.size)} - {*wanted["order"]})


def test_an_excluded_token_takes_its_anchor_or_stays_as_it_entered() -> None:
    method, line = SparseVAR(last=1, keep=0.01, anchor_step=7), Grid(1, 1, 8)
    step = last_step(method, ScaleSchedule((line, line)))
    logits = torch.eye(3)[[0, 0, 0, 2, 2, 1, 1, 1]].unsqueeze(0)  # anchors are 0 and 7; cells 3 and 4 are like neither
    found = method.exclude(step, state_of(torch.zeros(1, 8), logits, line, method))
    assert found.kept.tolist() == [[0, 7]]
    assert found.source.tolist() == [[0, 0, 0, 3, 4, 7, 7, 7]]
    assert (found.excluded & ~found.recoverable).tolist() == [[False] * 3 + [True] * 2 + [False] * 3]


@given(SIDES, SIDES, st.integers(1, 5))
def test_anchors_hold_the_border_and_are_counted(h: int, w: int, stride: int) -> None:
    grid = Grid(2, h, w)
    anchors = anchor_cells(grid, stride, CPU).tolist()
    assert anchors == sorted(set(anchors)) and {0, w - 1, (h - 1) * w, h * w - 1} <= set(anchors)
    assert SparseVAR(anchor_step=stride).fewest(grid) == 2 * len(anchors)
    again = anchor_cells(grid, stride, CPU, again=True).tolist()
    assert sorted(set(again)) == anchors and len(again) == (-(-h // stride) + 1) * (-(-w // stride) + 1)


def test_cells_take_the_values_of_the_one_they_lie_in() -> None:
    assert nearest_cells(Grid(1, 1, 2), Grid(1, 1, 5), CPU).tolist() == [0, 0, 0, 1, 1]
    assert nearest_cells(Grid(2, 2, 2), Grid(2, 4, 3), CPU).view(2, 4, 3)[1, :, 0].tolist() == [4, 4, 6, 6]
    grid, coarse = Grid(1, 24, 32), Grid(1, 16, 20)
    image = torch.arange(320.0).view(1, 1, 16, 20)
    wanted = torch.nn.functional.interpolate(image, (24, 32), mode="nearest")
    assert nearest_cells(coarse, grid, CPU).tolist() == wanted.flatten().tolist()


def test_the_share_above_a_threshold() -> None:
    assert share_above(torch.tensor([[1.0, 4.0, 2.5, 0.0]]), 0.6).tolist() == [0.5]
    assert share_above(torch.zeros(1, 4), 0.6).tolist() == [0.0]  # nothing changed: 0 of 0 is above nothing


@pytest.mark.parametrize(
    ("settings", "share", "count"),
    [
        ({"threshold": 0.6, "keep": 1.0}, 0.5, 32),
        ({"threshold": 0.6, "keep": 0.25}, 0.5, 16),  # at most so many
        ({"threshold": 0.6, "keep": 1.0}, 0.02, 9),  # the anchors of 8x8: rows and columns 0, 4, 7
        ({"threshold": 0.6, "keep": 1.0}, 0.0, 9),
        ({"threshold": 0.6, "keep": 1.0, "keep_anchors": False}, 0.02, 1),
        ({"threshold": 0.6, "keep": 1.0, "keep_anchors": False}, 0.0, 1),
        ({"threshold": 0.6, "keep": 1.0, "keep_anchors": False, "none_above": "all"}, 0.0, 64),
        ({"threshold": 0.6, "keep": 1.0, "keep_anchors": False, "none_above": "all"}, 0.02, 1),
    ],
)
def test_a_threshold_counts_tokens_within_bounds(settings: dict[str, Any], share: float, count: int) -> None:
    method, grid = SparseVAR(last=1, **settings), Grid(1, 8, 8)
    step = last_step(method, ScaleSchedule((grid, grid)))
    error = torch.where(torch.arange(64) < round(share * 64), 1.0, 0.1).unsqueeze(0)
    error = error if share else torch.zeros(1, 64)
    state = state_of(error, torch.ones(1, 64, 4), grid, method)
    found = method.exclude(step, state)
    assert found.kept.shape[1] == count == state.counts[step.index] <= step.tokens[0]
    assert int(found.excluded.sum()) == 64 - count


def test_what_a_threshold_kept_is_what_is_reported(tiny_model: Infinity) -> None:
    method, condition = make_method("sparsevar:threshold", threshold=0.96), TextCondition(make_text((5,)))
    plan, recorder = method.plan(make_settings(SQUARE), tiny_model.info, 1), Recorder()
    generate(tiny_model, condition, plan, method, SeededNoise((0,)), recorder=recorder)
    ran = recorder.plan
    assert ran is not None and [step.tokens[0] for step in plan.steps[2:]] == [16, 36, 64]
    kept = [recorder.selections[index][0].shape[1] for index in (2, 3, 4)]
    assert [step.tokens[0] for step in ran.steps[2:]] == kept and kept[2] < 64
    assert [scale.kept for scale in recorder.report("", "", 1, torch.float32).scales[2:]] == kept
    spent, most = (count_flops(tiny_model, condition, one, method)[4] for one in (ran, plan))
    assert spent < most
    assert not method.static and not Compose(method, DropGuidance()).knows_counts


def test_what_is_not_recovered_enters_the_head_and_adds_no_codes(tiny_model: Infinity) -> None:
    kind, states = noting_states(SparseVAR)
    masks: list[Tensor] = []

    class Masking(kind):  # type: ignore[valid-type, misc]
        def code_mask(self, step: Step, state: SparseVARState) -> Tensor | None:
            mask = super().code_mask(step, state)
            masks.extend([] if mask is None else [mask])
            return mask

    generated = generate_infinity(tiny_model, make_settings(SQUARE), Masking(last=2, keep=0.3, similarity=0.97))
    assert len(masks) == 2 and states[0].sources == {2, 3}
    transformer, bare = tiny_model.transformer, ~masks[-1]
    entered = transformer.word_embed(generated.record["tokens_in_4"]) + transformer.lvl_embed.weight[4]
    hidden, kept = generated.record["hidden_4"], generated.kept(generated.steps[-1])[0]
    assert 0 < int(bare.sum()) < 64 - kept.shape[1] and not bare[0, kept[0]].any()
    torch.testing.assert_close(hidden[0, bare[0]], entered[0, bare[0]])
    torch.testing.assert_close(hidden[1, bare[0]], entered[0, bare[0]])
    others = (~bare[0]).nonzero().flatten()
    assert not torch.isclose(hidden[0, others], entered[0, others]).all(dim=1).any()


def test_tokens_that_did_not_run_have_no_error(tiny_model: Infinity) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Watching(SparseVAR):
        def exclude(self, step: Step, state: SparseVARState) -> Any:
            assert state.error is not None
            found = super().exclude(step, state)
            seen.append((state.error.values, found.kept))
            return found

    generate_infinity(tiny_model, make_settings(SQUARE), Watching(keep=0.4))
    (_, kept), (error, _) = seen[:2]
    assert error.shape == (1, 16) and sorted((error[0] > 0).nonzero().flatten().tolist()) == kept[0].tolist()


def test_inputs_by_area_are_a_setting(tiny_model: Infinity) -> None:
    settings = make_settings(WIDE)
    area = SparseVAR(keep=1.0, resampling="area")
    assert area.edit(settings) == replace(settings, resampling="area") and SparseVAR().edit(settings) is settings
    plain, other = (generate_infinity(tiny_model, settings, method) for method in (None, area))
    assert not torch.equal(plain.record["tokens_in_2"], other.record["tokens_in_2"])


def test_scales_from_the_end_of_short_schedules() -> None:
    def pruned(method: SparseVAR, schedule: ScaleSchedule) -> list[int]:
        return [step.index for step in plan_of(method, schedule).steps if step.tokens[0] < step.grid.size]

    assert pruned(SparseVAR(keep=0.3), WIDE) == [3, 4, 5]
    assert pruned(SparseVAR(keep=0.5), ScaleSchedule(SQUARE.grids[-3:])) == [1, 2]
    assert pruned(SparseVAR(keep=0.3, last=1), WIDE) == [5]
    assert SparseVAR().measured(32) == (12, 16) and SparseVAR().measured(1) == (0, 1)
    assert SparseVAR(blocks=(1, 2)).measured(DEPTH) == (1, 3)


def test_clips_that_the_next_attends_to_stay_whole() -> None:
    generated = generate_star(make_star(), make_settings(CLIPS), SparseVAR(keep=0.5))
    for step in generated.plan.steps:
        assert (step.tokens[0] < step.grid.size) == bool(generated.kept(step))
        assert not (step.is_context and generated.kept(step))
    assert generated.kept(generated.plan.steps[-1])


@pytest.mark.parametrize(
    ("method", "samples", "said"),
    [
        (SparseVAR(blocks=(2, 4)), 1, r"blocks=\(2, 4\): the model has 4 blocks, 0 to 3"),
        (SparseVAR(last=5), 1, "the first of 5 scales has not; prune at most the last 4 scales"),
        (make_method("sparsevar:reproduction"), 2, "2 cannot run together; generate them one by one"),
        (Compose(SparseVAR(last=1), SkipLast(1)), 1, "last=1: the last 1 scales are not run; give at least 2"),
    ],
)
def test_what_cannot_be_served_is_refused(tiny_model: Infinity, method: Any, samples: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        method.plan(make_settings(SQUARE), tiny_model.info, samples)


def test_wrong_settings() -> None:
    with pytest.raises(UsageError, match=r"blocks=\(3,\): give two, the first and the last"):
        SparseVAR(blocks=(3,))
    with pytest.raises(UsageError, match=r"threshold=1.5: must be a number"):
        SparseVAR(threshold=1.5)


def test_a_speedup_is_sought_by_the_share_alone() -> None:
    settings = make_settings(SQUARE)
    assert SparseVAR(threshold=0.6).speedup_schedule(settings) == ()
    stages = SparseVAR().speedup_schedule(settings)
    assert stages[0](0.0) == SparseVAR(keep=1.0, last=1) and stages[-1](1.0) == SparseVAR(keep=0.05, last=3)
