"""Guidance branches apart: two processes find what one does, with every method on every family.

The processes are threads here, which hand tensors to each other in memory;
``tests/pipeline/test_guidance_parallel.py`` has real ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.guidance import CONDITIONAL, UNCONDITIONAL
from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan
from stepvar.core.report import Recorder
from stepvar.core.split import split_plan, whole_plan
from stepvar.cost.dry_run import MetaExchange, dry_run
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods import Method, make_method
from tests.helpers import make_settings
from tests.methods.families import ROWS, FamilyRow
from tests.methods.test_matrix import ALONE, CASES, REFUSED

WAIT = 60.0
"""Seconds after which a thread stops waiting for one that failed."""


@dataclass
class Table:
    """Where two threads lay down what the other one takes."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    values: list[Tensor | None] = field(default_factory=lambda: [None, None])
    calls: int = 0

    def pass_on(self, branch: int, values: Tensor) -> tuple[Tensor, Tensor]:
        self.values[branch] = values.clone()
        self.barrier.wait(WAIT)
        first, second = self.values
        assert first is not None and second is not None
        self.calls += branch == 0
        self.barrier.wait(WAIT)
        return first, second


@dataclass(frozen=True)
class Threads:
    """The exchange of one of two threads."""

    table: Table
    branch: int

    def gather(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.table.pass_on(self.branch, values)

    def broadcast(self, values: Tensor, branch: int) -> Tensor:
        return self.table.pass_on(self.branch, values)[branch]


@dataclass
class Found:
    """What a generation left."""

    latent: Tensor
    kept: dict[int, list[Tensor]]
    plan: Plan
    calls: int = 0


def run(row: FamilyRow, plan: Plan, method: Method) -> Found:
    model, recorder = row.model(), Recorder(torch.device("cpu"))
    condition, noise = row.condition(range(plan.samples)), SeededNoise(range(7, 7 + plan.samples))
    state = generate(model, condition, plan, method, noise, recorder=recorder)
    kept = {index: list(maps) for index, maps in recorder.selections.items()}
    assert recorder.plan is not None
    return Found(model.latent(state).clone(), kept, recorder.plan)


def run_apart(row: FamilyRow, plan: Plan, make: Callable[[], Method]) -> tuple[Found, Found]:
    table = Table()

    def work(branch: int) -> Found:
        try:
            return run(row, split_plan(plan, Threads(table, branch)), make())
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, (0, 1))
    first.calls = table.calls
    return first, second


def plan_of(row: FamilyRow, method: Method, samples: int = 1, **settings: Any) -> Plan:
    settings = {"guidance": 3.0, "cfg_layers": (0,), **settings}
    return method.plan(make_settings(row.schedule, **settings), row.model().info, samples)


def check_alike(row: FamilyRow, case: str, samples: int = 1, **settings: Any) -> None:
    """What both find is what one finds: the plan and the kept tokens to the last, and the latent.

    To the bit, but in HART: one process runs the text of the unconditional branch as one token, two as several alike,
    and the diffusion head makes more of the last bits. A code that was another one would show as tenths.
    """
    make = CASES[case]
    plan = plan_of(row, make(), samples, **settings)
    one, (first, second) = run(row, plan, make()), run_apart(row, plan, make)
    tolerance = 5e-3 if row.family == "hart" else 0.0
    torch.testing.assert_close(first.latent, one.latent, atol=tolerance, rtol=0)
    assert first.plan == one.plan
    assert first.kept.keys() == one.kept.keys()
    for index, selections in one.kept.items():
        for whole, own in zip(selections, first.kept[index], strict=True):
            assert torch.equal(whole[: len(own)], own)
    last = split_plan(plan, Threads(Table(), 1)).steps[-1].index
    if last == plan.steps[-1].index and plan.decision is None:
        assert torch.equal(first.latent, second.latent)


KINDS = ("dense", "sparsevar", "plus-dropped", "unconditional")
"""Methods of other kinds: nothing to agree on, a mean over both branches, their difference, the other branch alone."""


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_two_processes_generate_what_one_does_in_every_family(row: FamilyRow) -> None:
    check_alike(row, "stepvar")


@pytest.mark.parametrize(
    "row", [row for row in ROWS if str(row) in ("infinity-square", "infinity-star-video-wide")], ids=str
)
@pytest.mark.parametrize("case", KINDS)
def test_two_processes_generate_what_one_does_with_methods_of_every_kind(row: FamilyRow, case: str) -> None:
    check_alike(row, case)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [(0,), (0, -1), (-1,)], ids=["logits", "both", "inside"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_two_processes_generate_what_one_does_with_any_method(
    row: FamilyRow, case: str, layers: tuple[int, ...]
) -> None:
    if REFUSED.get(case, lambda row, guidance: False)(row, "guided" if layers == (0,) else "inside"):
        pytest.skip("the method refuses the schedule")
    check_alike(row, case, 1 if case in ALONE else 2, cfg_layers=layers)


@pytest.mark.parametrize("case", ["skipvar", "few-pairs", "together", "fastervar"])
def test_methods_that_choose_or_remember_find_the_same_in_two_processes(case: str) -> None:
    check_alike(ROWS[0], case)


@pytest.mark.parametrize("guidance", [(1.0, 3.0, 1.0, 3.0, 1.0), (0.0, 3.0, 2.0, 0.0, 0.0)])
def test_passes_of_one_branch_between_guided_ones_reach_both_processes(guidance: tuple[float, ...]) -> None:
    scales = len(ROWS[0].schedule)
    check_alike(ROWS[0], "stepvar", guidance=(*guidance, *[guidance[-1]] * scales)[:scales])


def test_separate_selections_of_the_branches_add_the_codes_of_the_conditional_one() -> None:
    method = make_method("stepvar", branches="separate", pruned_codes=False)
    row = ROWS[0]
    plan = plan_of(row, method)
    one, (first, second) = run(row, plan, method), run_apart(row, plan, lambda: method)
    assert torch.equal(one.latent, first.latent)
    assert torch.equal(first.latent, second.latent)


def test_nothing_is_exchanged_once_guidance_is_off() -> None:
    row, method = ROWS[0], make_method("drop-guidance", last=2)
    plan = plan_of(row, method)
    first, _ = run_apart(row, plan, lambda: method)
    assert first.calls == len(plan.steps) - 2  # one for each guided pass: its logits
    second = split_plan(plan, Threads(Table(), 1))
    assert [step.index for step in second.steps] == [step.index for step in plan.steps[:-2]]


def test_each_process_runs_the_rows_of_its_own_branch_and_together_they_are_the_plan() -> None:
    plan = plan_of(ROWS[0], make_method("stepvar"), samples=2)
    first, second = (split_plan(plan, Threads(Table(), branch)) for branch in (0, 1))
    for step, one, other in zip(plan.steps, first.steps, second.steps, strict=True):
        assert (one.row_slice, other.row_slice) == (slice(0, 2), slice(2, 4))
        assert one.applies_cfg and other.applies_cfg and step.branches == 2
        assert CONDITIONAL in plan.settings.branches[step.index] and UNCONDITIONAL in plan.settings.branches[step.index]
    assert whole_plan(first) == plan


@pytest.mark.parametrize("row", ROWS, ids=str)
@torch.inference_mode()
def test_each_process_holds_the_keys_and_values_of_its_own_branch(row: FamilyRow) -> None:
    method = make_method("stepvar")
    plan, model, condition = plan_of(row, method, samples=2), row.model(), row.condition(range(2))

    def held(own: Plan) -> int:
        state = model.start(condition, own)
        return sum(getattr(state, name).nbytes for name in ("cache", "source") if hasattr(state, name))

    whole, *parts = (held(one) for one in (plan, *(split_plan(plan, Threads(Table(), branch)) for branch in (0, 1))))
    assert [2 * part for part in parts] == [whole, whole]
    assert (whole == 0) == (plan.schedule.kv_scope == "none")
    both, one = (dry_run(model, condition, own, method) for own in (plan, split_plan(plan, MetaExchange())))
    assert 2 * one.cache == both.cache and one.weights == both.weights
    assert one.scales < both.scales and sum(one.flops.values()) < sum(both.flops.values())


@pytest.mark.parametrize("guidance", [1.0, 0.0])
def test_a_plan_without_guidance_is_refused(guidance: float) -> None:
    plan = plan_of(ROWS[0], make_method("dense"), guidance=guidance)
    with pytest.raises(UsageError, match=f"guidance scale {guidance:g}.*leave parallel out"):
        split_plan(plan, Threads(Table(), 0))
