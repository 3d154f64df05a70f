"""SparVAR's two kinds of sparse attention, written out key by key on grids that are not square."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan
from stepvar.core.tokens import ScaleSchedule
from stepvar.cost.dry_run import count_flops
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods import Compose, DropGuidance, Method, ScaleKV, SkipLast, SparVAR, StepVAR
from stepvar.methods.sparvar import SparVARState
from tests.helpers import equal_everywhere, make_settings
from tests.methods.families import ROWS, FamilyRow
from tests.methods.helpers import plan_of
from tests.methods.test_matrix import Recording

SMALL = {"group": 7, "multiple": 3, "local_windows": (3, 3), "sink": 2, "windows": (1, 1, 3), "block": 4}
METHOD = SparVAR(sparse_scales=3, **SMALL)  # type: ignore[arg-type]
WIDE_IMAGE, HART_WIDE = ROWS[1], ROWS[4]


def run(row: FamilyRow, method: Method, count: int = 2) -> tuple[list[Tensor], Any, Plan]:
    model: Any = Recording(row.model())
    plan = method.plan(make_settings(row.schedule), model.info, count)
    states: list[Any] = []

    class Noting:
        def __getattr__(self, name: str) -> Any:
            return getattr(method, name)

        def start(self, plan: Plan) -> Any:
            states.append(method.start(plan))
            return states[-1]

    noting: Any = Noting()
    generate(model, row.condition(range(count)), plan, noting, SeededNoise(range(count)))
    return model.logits, states[0], plan


def visible(step: Any, layout: list[tuple[int, int, int, int]], prefix: int) -> Tensor:
    """CSLA by the definition: pairs that are near, then whole blocks with any such pair."""
    grid = step.grid
    keys = [None] * prefix + [(t, y, x) for t, _, h, w in layout for y, x in product(range(h), range(w))]
    near = torch.zeros(grid.size, len(keys), dtype=torch.bool)
    shapes = {t: (end, h, w) for t, end, h, w in layout}
    for i, (row, column) in enumerate(product(range(grid.h), range(grid.w))):
        for j, key in enumerate(keys):
            if key is None or key[0] < METHOD.sink:
                near[i, j] = True
                continue
            t, y, x = key
            end, h, w = shapes[t]
            window = METHOD.windows[-end] if end <= len(METHOD.windows) else -1
            apart = abs(round(row / grid.h * h) - y), abs(round(column / grid.w * w) - x)
            near[i, j] = max(apart) <= window // 2
    seen = torch.zeros_like(near)
    for i, j in product(range(0, grid.size, METHOD.block), range(0, len(keys), METHOD.block)):
        part = slice(i, i + METHOD.block), slice(j, j + METHOD.block)
        seen[part] = near[part].any()
    return seen


@pytest.mark.parametrize("prefix", [0, 5])
def test_blocks_are_seen_by_the_places_of_their_keys(prefix: int) -> None:
    plan = plan_of(METHOD, WIDE_IMAGE.schedule)
    grids = WIDE_IMAGE.schedule.grids
    for step in plan.steps[-3:]:
        layout = [(t, len(grids) - t, grid.h, grid.w) for t, grid in enumerate(grids[: step.index + 1])]
        expected = visible(step, layout, prefix)
        keys = torch.empty(1, 1, expected.shape[1], 8)
        lists = METHOD._visible_blocks(step, keys)
        assert lists.counts is not None
        for group, count in enumerate(lists.counts.tolist()):
            listed = lists.places[0, 0, group, :count].sort().values
            assert torch.equal(listed.long(), expected[group * METHOD.block].nonzero().flatten())
        average = METHOD._seen_per_query(step, prefix)
        assert average == -(-int(expected.sum()) // step.grid.size)
        if not prefix:
            assert step.keys_per_query[-1] == average < plan.attended(step)[-1]


def test_keys_chosen_once_serve_the_scales_behind() -> None:
    """Masses, the same relative group, a run of own keys, and the rest of dense attention resized, query by query."""
    generator = torch.Generator().manual_seed(0)
    plan = plan_of(METHOD, WIDE_IMAGE.schedule, samples=1)
    state = METHOD.start(plan)
    before = sum(grid.size for grid in WIDE_IMAGE.schedule.grids[:3])
    lists: list[Tensor] = []
    rest = torch.empty(0)
    for step in plan.steps[-3:]:
        size = step.grid.size
        before += size
        q, k, v = (
            torch.randn(2, 2, count, 4, generator=generator, dtype=torch.float64) for count in (size, before, before)
        )
        shares = (q @ k.mT).softmax(-1)
        groups = -(-size // METHOD.group)
        if step.scales_from_end == 3:
            attended = METHOD._choose(q, k, v, 0, step, state)
            count = max(1, round(0.2 * before / 3)) * 3
            for g in range(groups):
                lists.append(shares[:, :, g * 7 : g * 7 + 7].sum(2).topk(count).indices)
            torch.testing.assert_close(attended, shares @ v, atol=1e-5, rtol=1e-5)
        else:
            attended = METHOD._reuse(q, k, v, 0, step, state)
            places = [min(max(round((g + 0.5) / groups * len(lists) - 0.5), 0), len(lists) - 1) for g in range(groups)]
            own = [neighbourhood(range(g * 7, min(size, g * 7 + 7)), step.grid.h, step.grid.w) for g in range(groups)]
            length = max(-(-len(cells) // 3) * 3 for cells in own)
            starts = [min(before - size + min(cells), before - length) for cells in own]
            runs = [torch.arange(start, start + length).expand(2, 2, -1) for start in starts]
            lists = [torch.cat([lists[place], run], -1) for place, run in zip(places, runs, strict=True)]
        sparse = torch.empty_like(q)
        for i in range(size):
            listed = lists[i // 7]
            assert all(len(set(one.tolist())) == listed.shape[-1] for one in listed.flatten(0, 1))
            picked = listed.unsqueeze(-1).expand(-1, -1, -1, 4)
            weights = (q[:, :, i : i + 1] @ k.gather(2, picked).mT).softmax(-1)
            sparse[:, :, i : i + 1] = weights @ v.gather(2, picked)
        if step.scales_from_end == 3:
            rest = (shares @ v - sparse).transpose(2, 3).reshape(4, 4, step.grid.h, step.grid.w)
        else:
            resized = torch.nn.functional.interpolate(rest, (step.grid.h, step.grid.w), mode="bilinear")
            torch.testing.assert_close(
                attended, sparse + resized.reshape(2, 2, 4, -1).transpose(2, 3), atol=1e-5, rtol=1e-5
            )


def neighbourhood(queries: range, height: int, width: int) -> set[int]:
    """The cells around some queries, 3x3 for each."""
    cells = set()
    for query, down, right in product(queries, (-1, 0, 1), (-1, 0, 1)):
        y, x = min(max(query // width + down, 0), height - 1), min(max(query % width + right, 0), width - 1)
        cells.add(y * width + x)
    return cells


def test_seeing_everything_is_dense() -> None:
    everything = SparVAR(sparse_scales=2, cs4a_layers=0, sink=100)
    for row in (WIDE_IMAGE, HART_WIDE):
        for one, other in zip(run(row, everything)[0], run(row, Method())[0], strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


@pytest.mark.parametrize("row", [WIDE_IMAGE, HART_WIDE], ids=str)
def test_flops_are_those_of_the_lists(row: FamilyRow) -> None:
    """What a plan says of keys per query is what the dry run counts; a scale where keys are chosen costs more."""
    model = row.model()
    condition = row.condition(range(1))
    sparse, dense = (one.plan(make_settings(row.schedule), model.info, 1) for one in (METHOD, Method()))
    found, whole = (count_flops(model, condition, plan, one) for plan, one in ((sparse, METHOD), (dense, Method())))
    for step in sparse.steps:
        saved = sum(
            (keys - seen) * step.grid.size
            for keys, seen in zip(sparse.attended(step), step.keys_per_query, strict=True)
        )
        expected = whole[step.index] - 4 * step.rows * model.config.width * saved
        if step.scales_from_end == 3:
            assert found[step.index] > expected
        elif row.family == "infinity":
            assert found[step.index] == expected < whole[step.index] or step.scales_from_end > 3
        else:  # blocks begin at the text in front, which a plan does not count
            assert abs(found[step.index] - expected) <= 8 * step.rows * model.config.width * step.grid.size * 8


def test_one_branch_goes_on_from_the_keys_of_both() -> None:
    for branch in ("conditional", "unconditional"):
        drop = DropGuidance(last=1, branch=branch)
        alone, state, plan = run(WIDE_IMAGE, Compose(METHOD, drop))
        both, _, _ = run(WIDE_IMAGE, METHOD)
        assert equal_everywhere(alone[:-1], both[:-1]) and not torch.equal(alone[-1], both[-1])
        assert plan.steps[-1].branches == 1
        inner: SparVARState = state.parts["sparvar"]
        assert inner.chosen[0].places.shape[0] == 2 == len(inner.chosen[0].rest)


def test_attention_is_left_alone_where_tokens_are_pruned() -> None:
    both = Compose(METHOD, StepVAR(keep=0.5, last=1))
    logits, state, plan = run(WIDE_IMAGE, both)
    sparse, _, _ = run(WIDE_IMAGE, METHOD)
    assert equal_everywhere(logits[:-1], sparse[:-1]) and torch.isfinite(logits[-1]).all()
    assert plan.steps[-1].keys_per_query == plan.attended(plan.steps[-1])
    assert {index for index, _ in state.parts["sparvar"].complete} == set(range(5))


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Compose(METHOD, SkipLast(3)), r"sparse_scales=3: the last 3 scales are not run, .* give at least 4"),
        (Compose(METHOD, ScaleKV(budget=0.2, window=4)), r"chooses among all keys, and another method drops some"),
        (Compose(METHOD, StepVAR(keep=0.5, last=3)), r"prunes tokens at each of the last 3 scales"),
        (SparVAR(sparse_scales=6), r"sparse_scales=6: the schedule has 6 scales"),
    ],
)
def test_what_it_cannot_serve(method: Method, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_of(method, WIDE_IMAGE.schedule)


def test_clips_are_refused() -> None:
    clips: ScaleSchedule = ROWS[-1].schedule
    with pytest.raises(UsageError, match="of clips that do not see them; use a method that prunes tokens"):
        plan_of(METHOD, clips)


def test_windows_that_see_nothing_are_refused() -> None:
    for windows in ((-1,), (3, -1, 3), (3, 3)):
        with pytest.raises(UsageError, match="sink=0: a scale without a window of its own sees nothing"):
            SparVAR(sink=0, windows=windows)
    assert SparVAR(sink=0, windows=(0, 0, 0)).sink == 0
