"""The places inside a generation where a method may act, each against another way to the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.stack import Attention, AttentionInputs, PassResult, SublayerRef
from stepvar.cost.dry_run import dry_run
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods import Compose, DropGuidance, Method, MethodState, SkipLast, StepVAR, make_method
from stepvar.models.blocks import BlockRun
from tests.helpers import equal_everywhere, make_settings
from tests.methods.families import ROWS, FamilyRow
from tests.methods.test_matrix import Recording

IMAGES = [row for row in ROWS if row.schedule.kv_scope == "all"]


@dataclass(frozen=True)
class Oldest(Method):
    """Lets the oldest keys of every layer but the first stay behind each pass."""

    most: int = 20

    def cached_tokens(self, step: Step, layer: int, depth: int, keys: int) -> int:
        return min(keys, self.most) if layer else keys

    def select_cached(
        self, inputs: AttentionInputs, count: int, ref: SublayerRef, step: Step, state: MethodState
    ) -> Tensor:
        return torch.arange(count).expand(*inputs.keys.shape[:2], count)


@dataclass(frozen=True)
class SeesOldest(Method):
    """The same by attention alone: every key stays, but few are seen."""

    most: int = 20
    prefix: int = 0

    def run_attention(
        self, attend: Attention, inputs: AttentionInputs, ref: SublayerRef, step: Step, state: MethodState
    ) -> Tensor:
        own, end = inputs.queries.shape[2], inputs.keys.shape[2]
        old = min(end - own, self.prefix + self.most if ref.layer else end)
        seen = torch.cat([torch.arange(old), torch.arange(end - own, end)])
        return attend(replace(inputs, keys=inputs.keys[:, :, seen], values=inputs.values[:, :, seen]))


def run(row: FamilyRow, method: Method, guidance: float = 3.0, count: int = 2) -> tuple[Any, Plan, list[Tensor]]:
    model: Any = Recording(row.model())
    plan = method.plan(make_settings(row.schedule, guidance), model.info, count)
    state: Any = generate(model, row.condition(range(count)), plan, method, SeededNoise(range(count)))
    return state, plan, model.logits


@pytest.mark.parametrize("row", IMAGES, ids=str)
def test_keys_that_left_the_cache_are_not_seen(row: FamilyRow) -> None:
    prefix = row.keys_in_front or getattr(row.model().config, "prefix", 0)
    _, plan, logits = run(row, Oldest())
    _, whole, wanted = run(row, SeesOldest(prefix=prefix))
    for one, other in zip(logits, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
    # Layers that keys leave hold those that stay, and the passes up to there.
    assert plan.cache_tokens[0] == whole.cache_tokens[0] and 20 <= plan.cache_tokens[1] <= 22
    assert not equal_everywhere(logits, run(row, Method())[2])


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_attention_of_the_model_s_own_changes_nothing(row: FamilyRow) -> None:
    class Same(Method):
        def run_attention(self, attend: Attention, inputs: AttentionInputs, *others: Any) -> Tensor:
            assert inputs.projection.queries.shape == inputs.queries.shape
            return attend(inputs)

    assert equal_everywhere(run(row, Same())[2], run(row, Method())[2])


def test_projected_queries_are_those_of_the_weights_alone() -> None:
    row, seen = ROWS[0], list[Tensor]()

    class Watch(Method):
        def run_attention(
            self, attend: Attention, inputs: AttentionInputs, ref: SublayerRef, step: Step, state: Any
        ) -> Tensor:
            if ref.layer == 0 and step.index == 0:
                seen.append(inputs.projection.without_bias(torch.tensor([0])))
            return attend(inputs)

    attention = row.model().block_list[0].sa
    entered = list[Tensor]()
    handle = attention.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    try:
        run(row, Watch())
    finally:
        handle.remove()
    queries = entered[0][:, :1] @ attention.joint.weight.chunk(3)[0].T
    torch.testing.assert_close(seen[0].transpose(1, 2).flatten(2), queries, atol=1e-6, rtol=1e-5)
    assert attention.q_bias.abs().max() > 0


def test_planned_memory_is_that_of_the_largest_moment() -> None:
    row, method = ROWS[0], Oldest()
    model = row.model()
    plan = method.plan(make_settings(row.schedule, 3.0), model.info, 2)
    taken = dry_run(model, row.condition(range(2)), plan, method)
    assert (
        taken.cache
        < dry_run(model, row.condition(range(2)), Method().plan(plan.settings, model.info, 2), Method()).cache
    )
    assert taken.cache == 2 * sum(plan.cache_tokens) * plan.rows * model.config.width * 4


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_masked_codes_add_nothing(row: FamilyRow) -> None:
    @dataclass(frozen=True)
    class Mask(Method):
        all_of_them: bool = True

        def code_mask(self, step: Step, state: MethodState) -> Tensor | None:
            if step.scales_from_end > 1:
                return None
            mask = torch.zeros(step.samples, step.grid.size, dtype=torch.bool)
            mask[:, :1] = not self.all_of_them
            return mask

    dense, skipped = run(row, Method())[0].latent, run(row, SkipLast(1))[0].latent
    masked, almost = run(row, Mask())[0].latent, run(row, Mask(all_of_them=False))[0].latent
    assert not torch.equal(masked, dense) and not torch.equal(masked, almost)
    if row.family == "infinity":  # others add more than codes, or go on from the scale that is skipped
        torch.testing.assert_close(masked, skipped)
        changed = (almost != masked).any(dim=1).float().mean()
        assert 0 < changed < 0.3


@dataclass
class Seen(MethodState):
    passes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Choose(Method):
    """Goes on in one of three ways behind the second pass."""

    choice: str = "short"

    def alternatives(self, settings: Settings) -> tuple[int, Mapping[str, Settings]]:
        ways = {"whole": settings, "short": SkipLast(1).edit(settings), "alone": DropGuidance(last=1).edit(settings)}
        return 1, ways

    def start(self, plan: Plan) -> Seen:
        return Seen()

    def after_pass(self, result: PassResult, step: Step, state: Seen) -> None:
        assert result.logits is not None and result.logits.shape[:2] == result.indices.shape[:2]
        assert result.decode(result.latent).shape[0] == step.samples
        state.passes.append(step.index)

    def decide(self, result: PassResult, step: Step, state: Seen) -> str:
        assert step.index == 1 == state.passes[-1]
        return self.choice


@pytest.mark.parametrize(
    ("choice", "method"), [("whole", Method()), ("short", SkipLast(1)), ("alone", DropGuidance(last=1))]
)
def test_a_choice_at_run_time_is_what_it_would_have_been_from_the_start(choice: str, method: Method) -> None:
    row = ROWS[0]
    state, plan, logits = run(row, Choose(choice=choice))
    wanted = run(row, method)
    assert equal_everywhere(logits, wanted[2]) and torch.equal(state.latent, wanted[0].latent)
    assert plan.cache_tokens == run(row, Method())[1].cache_tokens and not Choose().static


def test_a_choice_beside_pruning() -> None:
    row, pruning = ROWS[0], StepVAR(keep=0.5, last=2)
    composed = run(row, Compose(pruning, Choose("alone")))[2]
    assert equal_everywhere(composed, run(row, Compose(pruning, DropGuidance(last=1)))[2])


def test_random_numbers_are_those_of_the_images() -> None:
    drawn = list[Tensor]()

    class Draw(Method):
        def after_pass(self, result: PassResult, step: Step, state: MethodState) -> None:
            assert state.noise is not None
            drawn.append(state.noise.normal(step.index, 1000, (step.samples, 3), torch.device("cpu")))

    run(ROWS[0], Draw())
    run(ROWS[0], Compose(Draw(), DropGuidance(last=1)))
    half = len(drawn) // 2
    assert equal_everywhere(drawn[:half], drawn[half:])
    torch.testing.assert_close(drawn[0], SeededNoise(range(2)).normal(0, 1000, (2, 3), torch.device("cpu")))


@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "int8"])
@pytest.mark.parametrize("row", IMAGES, ids=str)
def test_fused_blocks_leave_attention_and_cache_to_the_method(
    row: FamilyRow, quantized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks that a GPU runs, here with plain kernels: keys that leave stand beside the cache there, too."""
    method = make_method("scalekv+drop-guidance", **{"scalekv.budget": 0.3, "scalekv.window": 4})
    sparse = make_method("sparvar", group=8, multiple=4, sink=2, block=8)
    if quantized:
        model = row.model.__wrapped__().set_cache_dtype("int8")  # type: ignore[attr-defined]
        row = replace(row, model=lambda: model)
    expected = [run(row, one)[2] for one in (method, sparse)]
    monkeypatch.setattr(BlockRun, "can_fuse", lambda self, tokens: True)
    fused = [run(row, one)[2] for one in (method, sparse)]
    for one, other in zip(expected, fused, strict=True):
        for place in range(3 if quantized else len(one)):  # in eight bits a difference of rounding becomes a step
            torch.testing.assert_close(one[place], other[place], atol=1e-2 if quantized else 2e-4, rtol=0)


class Wrong(Method):
    """One that gives what cannot be."""


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"run_attention": lambda self, attend, inputs, *_: inputs.queries[:, :1]}, r"run_attention\(\) gave \("),
        (
            {"cached_tokens": lambda self, *_: 0},
            r"cached_tokens\(\) gave 0 at pass 0 .*; give a whole number",
        ),
        ({"cached_tokens": lambda self, step, layer, depth, keys: keys + 1}, r"cached_tokens\(\) gave"),
        ({"cached_tokens": lambda self, step, layer, depth, keys: 1}, r"define select_cached\(\)"),
        (
            {
                "run_attention": lambda self, attend, inputs, *_: attend(inputs),
                "keys_per_query": lambda self, step, layer, depth, keys: keys + 1,
            },
            r"keys_per_query\(\) gave 2 at pass 0 .*; give a whole number from 1 to 1",
        ),
        ({"code_mask": lambda self, *_: torch.ones(3)}, r"code_mask\(\) gave \(3,\)"),
        ({"alternatives": lambda self, settings: (0, {"a": settings})}, r"define decide\(\)"),
        (
            {"alternatives": lambda self, settings: (0, {"a": settings}), "decide": lambda self, *_: "b"},
            r"decide\(\) gave 'b'; give one of its alternatives: a",
        ),
    ],
)
def test_impossible_answers_are_named(answers: dict[str, Any], said: str) -> None:
    method = type("Wrong", (Method,), answers)()
    with pytest.raises(UsageError, match=said):
        run(ROWS[0], method)


def test_keys_cannot_leave_where_clips_are_forgotten() -> None:
    row = next(row for row in ROWS if row.schedule.kv_scope == "clip")
    with pytest.raises(UsageError, match="here they see 'clip'"):
        run(row, Oldest())


@pytest.mark.parametrize(
    "parts", [(Oldest(), Choose()), (SeesOldest(), StepVAR(last=2)), (Oldest(), StepVAR(last=2), DropGuidance(last=1))]
)
def test_parts_that_act_at_different_places_go_together(parts: tuple[Method, ...]) -> None:
    for part, name in zip(parts, ("first", "second", "third"), strict=False):
        if type(part).__module__ == __name__:
            type(part).name = name
    state, plan, _ = run(ROWS[0], Compose(*parts))
    assert torch.isfinite(state.latent).all() and plan.steps


def test_two_that_act_at_one_place_do_not() -> None:
    class Other(Oldest):
        name = "other"

    with pytest.raises(UsageError, match="all act on the cache; keep one of them"):
        Compose(Oldest(), Other())
