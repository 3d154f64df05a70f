"""Which keys ScaleKV keeps, written out key by key, and how many it keeps of the released models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan
from stepvar.core.stack import AttentionInputs, ModelInfo, Projection, SublayerRef
from stepvar.core.tokens import ScaleSchedule
from stepvar.cost.dry_run import dry_run
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods import Capacities, Compose, DropGuidance, Method, MethodState, ScaleKV, StepVAR, make_method
from stepvar.models.infinity.config import CONFIGS
from stepvar.models.infinity.schedules import RATIOS, schedule_for
from tests.helpers import WIDE, equal_everywhere, make_settings
from tests.methods.families import ROWS, FamilyRow
from tests.methods.helpers import DEPTH, plan_of
from tests.methods.test_matrix import Recording

IMAGES = [row for row in ROWS if row.schedule.kv_scope == "all"]
HART = ROWS[4]
METHOD = ScaleKV(budget=0.3, window=4, kernel=3)


def make_inputs(rows: int, heads: int, kv_heads: int, own: int, keys: int, seed: int = 0) -> AttentionInputs:
    generator = torch.Generator().manual_seed(seed)
    q, p = torch.randn(2, rows, heads, own, 8, generator=generator)
    k = torch.randn(rows, kv_heads, keys, 8, generator=generator)
    return AttentionInputs(q, k, k, Projection(p, torch.randn(heads * 8, generator=generator)))


def kept_by_hand(inputs: AttentionInputs, window: list[int], kernel: int, count: int, prefix: int) -> Tensor:
    """The rule, one row, head and key at a time."""
    rows, heads, own, width = inputs.queries.shape
    kv_heads, total = inputs.keys.shape[1:3]
    assert inputs.projection.bias is not None
    bias = inputs.projection.bias.view(heads, width)
    always = [*range(prefix), *(total - own + place for place in window)]
    kept = torch.empty(rows, kv_heads, count, dtype=torch.long)
    for row in range(rows):
        for head in range(kv_heads):
            shared = range(head * heads // kv_heads, (head + 1) * heads // kv_heads)
            scores = [
                sum(
                    float((inputs.projection.queries[row, one, place] - bias[one]) @ inputs.keys[row, head, key])
                    for one in shared
                    for place in window
                )
                / math.sqrt(width)
                for key in range(total)
            ]
            pooled = []
            for key in range(total):
                near = range(max(0, key - kernel // 2), min(total, key + kernel // 2 + 1))
                pooled.append(max([scores[one] for one in near if one not in always], default=-math.inf))
            order = sorted((key for key in range(total) if key not in always), key=lambda key: -round(pooled[key], 4))
            kept[row, head] = torch.tensor(sorted([*always, *order[: count - len(always)]]))
    return kept


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2)])
@pytest.mark.parametrize("prefix", [0, 5])
def test_the_window_and_what_it_scores_highest_stay(heads: int, kv_heads: int, prefix: int) -> None:
    """Equal scores, which pooling makes, go to the lower index; a text in front stays; heads may share keys."""
    plan = plan_of(METHOD, WIDE)
    step = next(step for step in plan.steps if step.dropped[1] and step.is_read)
    keys = plan.attended(step)[1]
    count = keys - step.dropped[1]
    inputs = make_inputs(2, heads, kv_heads, step.grid.size, prefix + keys)
    kept = METHOD.select_cached(inputs, prefix + count, SublayerRef(1, "self", DEPTH), step, MethodState())
    h, w = step.grid.h, step.grid.w
    window = [y * w + x for y in ((h // 2 - 1) // 2, h // 2 + (h // 2 - 1) // 2) for x in middles(w)]
    assert torch.equal(kept, kept_by_hand(inputs, window, 3, prefix + count, prefix))


def middles(width: int) -> tuple[int, int]:
    return (width // 2 - 1) // 2, width // 2 + (width // 2 - 1) // 2


def test_the_window_is_where_there_is_room() -> None:
    method, cpu = ScaleKV(window=16), torch.device("cpu")
    grids = ScaleSchedule.of([(1, 1), (3, 9), (4, 4), (9, 13)]).grids
    assert method.window_of(grids[0], 1, cpu).tolist() == [0]
    assert method.window_of(grids[1], 27, cpu).tolist() == list(range(11, 27))  # three rows: the last 16 tokens
    assert method.window_of(grids[2], 16, cpu).tolist() == list(range(16))
    assert method.window_of(grids[3], 117, cpu).tolist() == [y * 13 + x for y in (0, 2, 4, 6) for x in (1, 4, 7, 10)]
    assert method.window_of(grids[3], 40, cpu).tolist() == [1, 3, 6, 8, 11, 13, 16, 18, 21, 23, 26, 28, 31, 33, 36, 38]
    assert method.window_of(grids[3], 5, cpu).tolist() == [0, 1, 2, 3, 4]


# How many stay.


@pytest.mark.parametrize("variant", ["2b", "8b"])
def test_published_capacities_add_up_to_650_a_layer(variant: str) -> None:
    depth = CONFIGS[variant].depth
    plan = make_method(f"scalekv:{variant}").plan(make_settings(schedule_for("1M", 1.0)), ModelInfo(depth), samples=1)
    held = [
        sum(keys - gone for keys, gone in zip(plan.attended(step), step.dropped, strict=True)) for step in plan.steps
    ]
    assert held[:7] == [depth * keys for keys in (1, 5, 21, 57, 121, 265, 521)]  # nothing leaves before 650
    assert held[7:12] == [650 * depth] * 5
    first = {"2b": (920, 632), "8b": (909, 629)}[variant]
    assert {keys - gone for keys, gone in zip(plan.attended(plan.steps[7]), plan.steps[7].dropped, strict=True)} == {
        *first
    }
    assert sum(plan.cache_tokens) < 0.1 * depth * plan.schedule.size


@pytest.mark.parametrize("ratio", [1.0, 0.571, 1.5])
@pytest.mark.parametrize(("depth", "keep"), [(32, 0.1), (40, 0.1), (12, 0.2), (4, 0.1), (1, 0.5)])
def test_shares_hold_on_average_on_every_schedule(depth: int, keep: float, ratio: float) -> None:
    near = min(RATIOS, key=lambda one: abs(one - ratio))
    for resolution in ("0.06M", "1M"):
        settings = make_settings(schedule_for(resolution, near))
        plan = ScaleKV(budget=keep).plan(settings, ModelInfo(depth), samples=1)
        whole = sum(grid.size for grid in plan.schedule.grids[:-1])
        for step in plan.steps[:-1]:
            held = sum(keys - gone for keys, gone in zip(plan.attended(step), step.dropped, strict=True))
            most = max(depth * (round(keep * whole) + 1), 16 * depth)
            assert held <= most
            assert not any(step.dropped) or held >= 0.9 * most or held == 16 * depth
        assert plan.cache_tokens[-1] <= plan.cache_tokens[0]


def test_few_layers_keep_everything_as_in_the_published_tables() -> None:
    plan = ScaleKV().plan(make_settings(schedule_for("1M", 1.0)), ModelInfo(32), samples=1)
    early, late = plan.steps[8], plan.steps[11]
    for step in (early, late):
        assert not any(step.dropped[:2]) and all(step.dropped[2:])
    kept = [keys - gone for keys, gone in zip(plan.attended(late), late.dropped, strict=True)]
    assert kept[1] == 6425 and kept[2] == (32 * 642 - 2 * 6425) // 30
    small = ScaleKV(budget=0.02).plan(plan.settings, ModelInfo(32), samples=1).steps[11]  # the others need windows
    assert all(small.dropped)


# What it means for a generation.


def run(row: FamilyRow, method: Method, count: int = 2, quantized: bool = False) -> tuple[list[Tensor], Any, Plan]:
    inner = row.model.__wrapped__().set_cache_dtype("int8") if quantized else row.model()  # type: ignore[attr-defined]
    model: Any = Recording(inner)
    plan = method.plan(make_settings(row.schedule), model.info, count)
    caches: list[Any] = []
    start = inner.new_cache

    def noted(*arguments: Any, **options: Any) -> Any:
        caches.append(start(*arguments, **options))
        return caches[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(inner), "new_cache", lambda self, *arguments, **options: noted(*arguments, **options))
        patch.setattr(type(inner), "finish", lambda self, state: None)
        generate(model, row.condition(range(count)), plan, method, SeededNoise(range(count)))
    return model.logits, caches[0], plan


@pytest.mark.parametrize("row", IMAGES, ids=str)
def test_buffers_hold_what_stays_and_no_more(row: FamilyRow) -> None:
    logits, cache, plan = run(row, METHOD)
    _, whole, dense = run(row, Method())
    # Of a text or a source image in front.
    prefixes = [keys.shape[2] - tokens for keys, tokens in zip(whole.keys, dense.cache_tokens, strict=True)]
    wanted = [prefix + tokens for prefix, tokens in zip(prefixes, plan.cache_tokens, strict=True)]
    assert [keys.shape[2] for keys in cache.keys] == wanted
    assert cache.nbytes < 0.5 * whole.nbytes if not any(prefixes) else cache.nbytes < whole.nbytes
    last = plan.steps[-2]
    stay = [keys - gone for keys, gone in zip(plan.attended(last), last.dropped, strict=True)]
    assert cache.lengths == [prefix + keys for prefix, keys in zip(prefixes, stay, strict=True)]
    taken = dry_run(row.model(), row.condition(range(2)), plan, METHOD)
    assert taken.cache == cache.nbytes and torch.isfinite(logits[-1]).all()


@pytest.mark.parametrize("row", [ROWS[0], HART], ids=str)
def test_eight_bits_round_what_stays_once(row: FamilyRow) -> None:
    plain, _, _ = run(row, METHOD)
    rounded, cache, _ = run(row, METHOD, quantized=True)
    dense = run(row, Method())[0]
    assert cache.keys[0].dtype == torch.int8
    # As far from the plain one as rounding makes dense generation, before bits flip.
    for place in range(2, 4):
        assert (rounded[place] - plain[place]).abs().max() <= 0.1 * dense[place].std()


def test_other_parts_see_what_stays() -> None:
    pruned, dropped = StepVAR(keep=0.5, last=2), DropGuidance(last=1)
    logits, _, plan = run(ROWS[1], Compose(METHOD, pruned, dropped))
    assert plan.steps[-1].branches == 1 and plan.steps[-1].tokens == (27,) * DEPTH
    assert plan.steps[-2].tokens == (18,) * DEPTH and plan.attended(plan.steps[-1])[1] < 60
    assert torch.isfinite(logits[-1]).all()
    alone = run(ROWS[1], Compose(METHOD, dropped))[0]
    assert equal_everywhere(alone[:-1], run(ROWS[1], METHOD)[0][:-1])


# What it cannot serve.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"window": 15}, "window=15: must be a square number"),
        ({"kernel": 4}, "kernel=4: must be odd"),
        ({"budget": 0}, "budget=0: must be a number above 0 and at most 1"),
        ({"capacities": "4b"}, "capacities='4b': must be one of shares, 2b, 8b, or a Capacities"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ScaleKV(**settings)


def test_tables_for_other_models_are_refused() -> None:
    with pytest.raises(UsageError, match=r"are those of 32 layers and 13 scales; this model has 4 layers .* 6 scales"):
        plan_of(make_method("scalekv:2b"), WIDE)
    with pytest.raises(UsageError, match="give at least one, each with a number per layer"):
        Capacities(((3, 4), (3,)))
    with pytest.raises(UsageError, match="a layer keeps 0 keys"):
        Capacities(((3, 0),))
    own = ScaleKV(capacities=Capacities(((30,) * DEPTH, (20,) * DEPTH)), base=1)
    assert plan_of(own, WIDE).attended(plan_of(own, WIDE).steps[-1]) == (20 + 54,) * DEPTH


def test_a_schedule_that_drops_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="no layer would drop a key at this schedule; keep a smaller share"):
        plan_of(ScaleKV(base=10**6), WIDE)
    assert not any(any(step.dropped) for step in plan_of(ScaleKV(budget=1), WIDE).steps)
