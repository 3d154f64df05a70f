"""Every method of the registry x every family x t = 1 and t > 1 x square and not x batch x guidance on and off.

A method joins by its row in the registry, a family by its row in ``families.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan, Step
from stepvar.core.report import Recorder, Report
from stepvar.core.tokens import TokenMap
from stepvar.generation import generate
from stepvar.methods import METHODS, Compose, Method, make_method
from stepvar.methods.base import ModelInfo, RunBlocks, SublayerRef
from stepvar.models.registry import FAMILIES
from tests.helpers import equal_everywhere, make_settings
from tests.methods.families import LENGTHS, ROWS, FamilyRow

SMALLER: dict[str, dict[str, Any]] = {
    "fastvar": {"prune": (0.5,), "skip": 1, "blocks_before": 1, "blocks_after": 1},
}
"""Settings for methods whose defaults speak of more scales and blocks than the tiny models have."""

CASES: dict[str, Callable[[], Method]] = {
    **{name: lambda name=name: make_method(name, **SMALLER.get(name, {})) for name in METHODS},  # type: ignore[misc]
    "unconditional": lambda: make_method("drop-guidance", branch="unconditional"),
    "sublayers": lambda: make_method("stepvar", scope="sublayer", propagate="update", restore="cached"),
    "frames": lambda: make_method("coverage", selection="frame", restore="blend", temporal_weight=2.5),
    "together": lambda: make_method(
        "stepvar+drop-guidance+skip-last", **{"drop-guidance.last": 2, "stepvar.last": 2, "stepvar.keep": 0.4}
    ),
}

GUIDANCE = {"guided": (3.0, (0,)), "plain": (1.0, (0,)), "inside": (3.0, (0, -1))}


@dataclass(frozen=True)
class Seen(Method):
    """Another method, and how many tokens its blocks attended from, by (pass, block)."""

    method: Method = field(default_factory=Method)
    tokens: dict[tuple[int, int], int] = field(default_factory=dict)

    def edit(self, plan: Plan) -> Plan:
        return self.method.edit(plan)

    def check(self, plan: Plan, info: ModelInfo) -> None:
        self.method.check(plan, info)

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        return self.method.tokens_at(step, layer, depth)

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step) -> TokenMap:
        dense = self.method.run_stack(run, tokens, step)
        assert dense.is_dense and dense.features.shape == tokens.features.shape
        return dense

    def run_sublayer(self, run: Callable[[TokenMap], Tensor], tokens: TokenMap, ref: SublayerRef, step: Step) -> Tensor:
        def counted(thinned: TokenMap) -> Tensor:
            if ref.name == "self":
                self.tokens[(step.index, ref.layer)] = thinned.features.shape[1]
            return run(thinned)

        return self.method.run_sublayer(counted, tokens, ref, step)


class Recording:
    """A model that notes its logits and what was drawn from them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.logits: list[Tensor] = []
        self.symbols: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict(self, *arguments: Any) -> Tensor:
        self.logits.append(self.model.predict(*arguments))
        return self.logits[-1]

    def accumulate(self, state: Any, symbols: Tensor, step: Step, weights: Tensor | None) -> None:
        self.symbols.append(symbols)
        self.model.accumulate(state, symbols, step, weights)


@dataclass(frozen=True)
class Generation:
    """What a generation drew, pass by pass, and what it says of itself."""

    logits: list[Tensor]
    symbols: list[Tensor]
    latent: Tensor
    steps: list[Step]
    tokens: dict[tuple[int, int], int]
    report: Report


def run(row: FamilyRow, plan: Plan, method: Method, places: Sequence[int]) -> Generation:
    """Draws the images at these places of a batch; image i has the seed i."""
    model: Any = Recording(row.model())
    seen, recorder = Seen(method), Recorder()
    steps: list[Step] = []
    wanted = range(places[0], places[-1] + 1)
    state: Any = generate(
        model,
        row.condition(wanted),
        len(wanted),
        plan,
        seen,
        SeededNoise(wanted),
        recorder,
        lambda step, _: steps.append(step),
    )
    report = recorder.report(row.family, str(method), len(wanted), torch.float32)
    return Generation(model.logits, model.symbols, state.latent, steps, seen.tokens, report)


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_matrix(case: str, row: FamilyRow, guidance: str) -> None:
    method, (scale, places) = CASES[case](), GUIDANCE[guidance]
    plan = make_settings(row.schedule, scale, cfg_layers=places, top_p=0.9)
    batch = run(row, plan, method, range(len(LENGTHS)))
    check_counts(row, method.edit(plan), method, batch)
    assert all(logits.shape[0] == len(LENGTHS) and torch.isfinite(logits).all() for logits in batch.logits)
    assert torch.isfinite(batch.latent).all() and batch.latent.std() > 0
    alone = run(row, plan, method, [1])
    assert equal_everywhere([symbols[1:] for symbols in batch.symbols], alone.symbols)
    for together, single in zip(batch.logits, alone.logits, strict=True):
        torch.testing.assert_close(together[1:], single, atol=5e-4, rtol=0)


def check_counts(row: FamilyRow, plan: Plan, method: Method, drawn: Generation) -> None:
    """What was planned is what ran, and what is reported."""
    depth = row.model().config.depth
    assert [step.index for step in drawn.steps] == list(plan.passes)
    for step, scale in zip(drawn.steps, drawn.report.scales, strict=True):
        planned = [method.tokens_at(step, layer, depth) for layer in range(depth)]
        extra = row.first_tokens if step.index == 0 else 0
        assert [drawn.tokens[(step.index, layer)] for layer in range(depth)] == [count + extra for count in planned]
        assert scale.kept == min(planned) and scale.tokens == step.grid.size
        assert scale.branches == step.branches == plan.branches(step.index)


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.neutral is not None])
def test_neutral_settings_are_dense_to_the_bit(name: str, row: FamilyRow) -> None:
    plan = make_settings(row.schedule)
    dense = run(row, plan, Method(), [0])
    neutral = run(row, plan, make_method(name, **(METHODS[name].neutral or {})), [0])
    assert equal_everywhere(dense.logits, neutral.logits) and torch.equal(dense.latent, neutral.latent)
    assert dense.report.flops == neutral.report.flops


@pytest.mark.parametrize("row", [ROWS[0], ROWS[-1]], ids=str)
def test_half_precision(row: FamilyRow) -> None:
    model = row.model.__wrapped__().bfloat16()  # type: ignore[attr-defined]
    row = replace(row, model=lambda: model)
    for case in CASES.values():
        drawn = run(row, make_settings(row.schedule), case(), [0, 1])
        assert torch.isfinite(drawn.latent).all()


@pytest.mark.parametrize("name", METHODS)
def test_methods_do_something(name: str) -> None:
    """Every method but dense changes the picture, and none computes more than dense generation."""
    row, plan = ROWS[0], make_settings(ROWS[0].schedule)
    dense, other = run(row, plan, Method(), [0]), run(row, plan, CASES[name](), [0])
    if name == "dense":
        assert torch.equal(dense.latent, other.latent)
    else:
        assert not torch.equal(dense.latent, other.latent)
        assert other.report.flops < dense.report.flops


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_one_branch_alone_draws_what_guidance_would_mix(row: FamilyRow) -> None:
    """Guidance of all but 0 and 1 runs both branches and mixes next to nothing of the other one into the logits."""
    passes = range(len(row.schedule))
    for branch, almost in (("conditional", 1 + 1e-7), ("unconditional", 1e-7)):
        mixed = make_settings(
            row.schedule, [almost if row.schedule.scales_from_end(index) == 1 else 3.0 for index in passes]
        )
        both = run(row, mixed, Method(), [0, 1])
        alone = run(row, make_settings(row.schedule), make_method("drop-guidance", branch=branch), [0, 1])
        assert {step.branches for step in both.steps} == {2} and alone.steps[-1].branches == 1
        assert equal_everywhere(both.symbols, alone.symbols)
        for one, other in zip(both.logits, alone.logits, strict=True):
            torch.testing.assert_close(one, other, atol=5e-4, rtol=0)


def test_every_family_is_here() -> None:
    assert {name.replace("_", "-") for name in FAMILIES} <= {row.family for row in ROWS}
    assert {row.schedule.grids[-1].t > 1 for row in ROWS} == {True, False}


def test_a_method_of_ones_own_composes_with_the_others() -> None:
    """What is not in the registry works as well: the seam asks for no name."""
    row, plan = ROWS[0], make_settings(ROWS[0].schedule)
    seen = Seen(make_method("stepvar"))
    drawn = run(row, plan, Compose(seen, make_method("drop-guidance")), [0])
    assert drawn.steps[-1].branches == 1 and seen.tokens == drawn.tokens
