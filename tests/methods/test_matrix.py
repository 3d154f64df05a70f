"""Every method of the registry x every family x t = 1 and t > 1 x square and not x batch x guidance on and off.

A method joins by its row in the registry, a family by its row in ``families.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.report import Recorder, Report
from stepvar.core.stack import Attention, AttentionInputs, ModelInfo, PassResult, RunBlocks, Sublayer, SublayerRef
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods import METHODS, Compose, Method, MethodState, make_method
from stepvar.models.registry import FAMILIES
from tests.helpers import equal_everywhere, make_settings
from tests.methods.families import LENGTHS, ROWS, FamilyRow
from tests.methods.helpers import work

SMALL_SPARVAR = {"group": 8, "multiple": 4, "sink": 2, "block": 8}

SMALLER: dict[str, dict[str, Any]] = {
    "fastervar": {"skip": 1, "unconditional": 2, "shares": (0.2, 0.45)},
    "faststar": {"prune": (0.3, 0.6)},
    "fastvar": {"prune": (0.5,), "skip": 1, "blocks_before": 1, "blocks_after": 1},
    "coverage": {"keep": 0.4},
    "lazyvar": {"keep": (0.4, 0.3)},
    "scalekv": {"budget": 0.3, "window": 4},
    "sparvar": {"sparse_scales": 2, **SMALL_SPARVAR},
}
"""Settings for methods whose defaults speak of more scales and blocks than the tiny models have.

Coverage at its default would part two tokens of equal scores, and rounding, not the image, would say which one stays.
"""

IMAGES_ONLY = {"lazyvar", "skipvar", "scalekv", "sparvar", "few-keys", "few-pairs"}
"""Methods that act on what later scales see of earlier ones, which clips do not."""

CASES: dict[str, Callable[[], Method]] = {
    **{name: lambda name=name: make_method(name, **SMALLER.get(name, {})) for name in METHODS},  # type: ignore[misc]
    "unconditional": lambda: make_method("drop-guidance", branch="unconditional"),
    "sublayers": lambda: make_method("stepvar", scope="sublayer", propagate="update", restore="cached"),
    "first-positions": lambda: make_method("fastervar", skip=0, unconditional=0, shares=(0.3,), positions="first"),
    "masked-update": lambda: make_method("faststar:masked-update", prune=(0.5,), selection="frame"),
    "frames": lambda: make_method("coverage", keep=0.4, selection="frame", restore="blend", temporal_weight=2.5),
    "blend": lambda: make_method("stepvar:blend"),
    "taper": lambda: make_method("stepvar:taper", keep=0.4, last=2),
    "reproduction": lambda: make_method("sparsevar:reproduction", threshold=0.97),
    "threshold": lambda: make_method("sparsevar:threshold", threshold=0.97),
    "mean-distance": lambda: make_method("magnitude:mean-distance"),
    "few-keys": lambda: make_method(
        "scalekv+stepvar+drop-guidance", **{"scalekv.budget": 0.3, "scalekv.window": 4, "stepvar.last": 2}
    ),
    "few-pairs": lambda: make_method(
        "sparvar+stepvar+drop-guidance", **{"stepvar.last": 1, "sparvar.sparse_scales": 3, **SMALL_SPARVAR}
    ),
    "plus-dropped": lambda: make_method("stepvar-plus", drop_guidance=2, structure="component"),
    "together": lambda: make_method(
        "stepvar+drop-guidance+skip-last", **{"drop-guidance.last": 2, "stepvar.last": 2, "stepvar.keep": 0.4}
    ),
}

REFUSED: dict[str, Callable[[FamilyRow, str], bool]] = {
    **dict.fromkeys(IMAGES_ONLY, lambda row, guidance: row.schedule.kv_scope != "all"),
    "lazyvar": lambda row, guidance: row.schedule.kv_scope != "all" or guidance == "inside",
}
"""What a method says before any work that it cannot serve."""

ALONE = ("skipvar", "reproduction", "threshold")
"""Cases in which each image says for itself what is run, so that several cannot run together."""

GUIDANCE = {"guided": (3.0, (0,)), "plain": (1.0, (0,)), "inside": (3.0, (0, -1))}


@dataclass(frozen=True)
class Seen(Method):
    """Another method, and how many tokens its blocks attended from, by (pass, block)."""

    method: Method = field(default_factory=Method)
    tokens: dict[tuple[int, int], int] = field(default_factory=dict)

    def edit(self, settings: Settings) -> Settings:
        return self.method.edit(settings)

    def check(self, plan: Plan, info: ModelInfo) -> None:
        self.method.check(plan, info)

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        return self.method.tokens_at(step, layer, depth)

    def cached_tokens(self, step: Step, layer: int, depth: int, keys: int) -> int:
        return self.method.cached_tokens(step, layer, depth, keys)

    def keys_per_query(self, step: Step, layer: int, depth: int, keys: int) -> int:
        return self.method.keys_per_query(step, layer, depth, keys)

    def alternatives(self, settings: Settings) -> tuple[int, Mapping[str, Settings]] | None:
        return self.method.alternatives(settings)

    def start(self, plan: Plan) -> MethodState:
        return self.method.start(plan)

    def run_attention(
        self, attend: Attention, inputs: AttentionInputs, ref: SublayerRef, step: Step, state: MethodState
    ) -> Tensor:
        return self.method.run_attention(attend, inputs, ref, step, state)

    def select_cached(
        self, inputs: AttentionInputs, count: int, ref: SublayerRef, step: Step, state: MethodState
    ) -> Tensor:
        return self.method.select_cached(inputs, count, ref, step, state)

    def code_mask(self, step: Step, state: MethodState) -> Tensor | None:
        return self.method.code_mask(step, state)

    def after_pass(self, result: PassResult, step: Step, state: MethodState) -> None:
        self.method.after_pass(result, step, state)

    def decide(self, result: PassResult, step: Step, state: MethodState) -> str:
        return self.method.decide(result, step, state)

    @property
    def acts_on_attention(self) -> bool:
        return self.method.acts_on_attention

    @property
    def acts_on_cache(self) -> bool:
        return self.method.acts_on_cache

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: MethodState) -> TokenMap:
        dense = self.method.run_stack(run, tokens, step, state)
        assert dense.is_dense and dense.features.shape == tokens.features.shape
        return dense

    def run_group(
        self, run: RunBlocks, maps: Sequence[TokenMap], steps: Sequence[Step], state: MethodState
    ) -> Sequence[TokenMap]:
        return self.method.run_group(run, maps, steps, state)

    def run_sublayer(self, run: Sublayer, tokens: TokenMap, ref: SublayerRef, step: Step, state: MethodState) -> Tensor:
        def counted(pruned: TokenMap) -> Tensor:
            counts = pruned.counts or (pruned.features.shape[1],)
            if ref.name == "self":
                for own, count in zip(step.together or (step,), counts, strict=True):
                    self.tokens[(own.index, ref.layer)] = count
            return run(pruned)

        return self.method.run_sublayer(counted, tokens, ref, step, state)


class Recording:
    """A model that notes its logits and what was sampled from them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.logits: list[Tensor] = []
        self.indices: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict(self, *arguments: Any) -> Tensor:
        self.logits.append(self.model.predict(*arguments))
        return self.logits[-1]

    def accumulate(
        self, state: Any, indices: Tensor, step: Step, weights: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        self.indices.append(indices)
        self.model.accumulate(state, indices, step, weights, mask)


@dataclass(frozen=True)
class Generation:
    """What a generation sampled, pass by pass, and what it says of itself; the plan is what ran."""

    logits: list[Tensor]
    indices: list[Tensor]
    latent: Tensor
    plan: Plan
    tokens: dict[tuple[int, int], int]
    report: Report


def run(row: FamilyRow, settings: Settings, method: Method, places: Sequence[int]) -> Generation:
    """Generates the images at these places of a batch; image i has the seed i."""
    model: Any = Recording(row.model())
    seen, recorder = Seen(method), Recorder()
    wanted = range(places[0], places[-1] + 1)
    plan = seen.plan(settings, model.info, len(wanted))
    state: Any = generate(model, row.condition(wanted), plan, seen, SeededNoise(wanted), recorder=recorder)
    report = recorder.report(row.family, str(method), len(wanted), torch.float32)
    assert recorder.plan is not None
    return Generation(model.logits, model.indices, state.latent, recorder.plan, seen.tokens, report)


ALWAYS = ("dense", "stepvar", "stepvar-plus", "fastvar", "sparsevar", "scalekv", "sparvar", "lazyvar", "sublayers")
"""Cases that run with every kind of guidance in the quick tests, one for each place where methods act."""


def cells() -> Iterator[Any]:
    """The cells of the matrix; of those that differ in guidance alone, most are among the slow tests."""
    for case, row, guidance in product(CASES, ROWS, GUIDANCE):
        quick = guidance == "guided" or case in ALWAYS
        yield pytest.param(
            case, row, guidance, id=f"{case}-{row}-{guidance}", marks=[] if quick else [pytest.mark.slow]
        )


@pytest.mark.parametrize(("case", "row", "guidance"), [*cells()])
def test_matrix(case: str, row: FamilyRow, guidance: str) -> None:
    method, (scale, places) = CASES[case](), GUIDANCE[guidance]
    settings = make_settings(row.schedule, scale, cfg_layers=places, top_p=0.9)
    if case in REFUSED and REFUSED[case](row, guidance):
        with pytest.raises(UsageError):
            run(row, settings, method, [1])
        return
    if case in ALONE:
        check_alone(row, settings, method)
        return
    batch = run(row, settings, method, range(len(LENGTHS)))
    check_counts(row, method, batch)
    assert all(logits.shape[0] == len(LENGTHS) and torch.isfinite(logits).all() for logits in batch.logits)
    assert torch.isfinite(batch.latent).all() and batch.latent.std() > 0
    alone = run(row, settings, method, [1])
    assert equal_everywhere([indices[1:] for indices in batch.indices], alone.indices)
    for together, single in zip(batch.logits, alone.logits, strict=True):
        torch.testing.assert_close(together[1:], single, atol=5e-4, rtol=0)


def check_alone(row: FamilyRow, settings: Settings, method: Method) -> None:
    """One image is generated, and counted as it ran; a batch is refused in a line."""
    with pytest.raises(UsageError, match="2 cannot run together; generate them one by one"):
        run(row, settings, method, range(len(LENGTHS)))
    for place in range(len(LENGTHS)):
        alone = run(row, settings, method, [place])
        check_counts(row, method, alone)
        assert all(torch.isfinite(logits).all() for logits in alone.logits)
        assert torch.isfinite(alone.latent).all() and alone.latent.std() > 0
        assert alone.report.choice == alone.plan.choice


def check_counts(row: FamilyRow, method: Method, generated: Generation) -> None:
    """What was planned is what ran, and what is reported."""
    for step, scale in zip(generated.plan.steps, generated.report.scales, strict=True):
        depth, extra = len(step.tokens), row.first_tokens if step.index == 0 else 0
        most = tuple(method.tokens_at(step, layer, depth) for layer in range(depth))
        assert step.tokens == most or (not method.static and step.tokens < most)
        assert [generated.tokens[(step.index, layer)] - extra for layer in range(depth)] == list(step.tokens)
        assert scale.kept == min(step.tokens) and scale.tokens == step.grid.size
        assert scale.branches == step.branches


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.neutral is not None])
def test_neutral_settings_are_dense_to_the_bit(name: str, row: FamilyRow) -> None:
    if name in REFUSED and REFUSED[name](row, "guided"):
        pytest.skip("not for clips")
    settings = make_settings(row.schedule)
    dense = run(row, settings, Method(), [0])
    neutral = run(row, settings, make_method(name, **(METHODS[name].neutral or {})), [0])
    assert equal_everywhere(dense.logits, neutral.logits) and torch.equal(dense.latent, neutral.latent)
    assert work(dense.plan) == work(neutral.plan)


@pytest.mark.parametrize("row", [ROWS[0], ROWS[-1]], ids=str)
def test_half_precision(row: FamilyRow) -> None:
    model = row.model.__wrapped__().bfloat16()  # type: ignore[attr-defined]
    row = replace(row, model=lambda: model)
    for name, case in CASES.items():
        if name in REFUSED and REFUSED[name](row, "guided"):
            continue
        generated = run(row, make_settings(row.schedule), case(), [0] if name in ALONE else [0, 1])
        assert torch.isfinite(generated.latent).all()


@pytest.mark.parametrize("name", METHODS)
def test_methods_do_something(name: str) -> None:
    """Every method but dense changes the image, and none computes more than dense generation."""
    row, plan = ROWS[0], make_settings(ROWS[0].schedule)
    dense, other = run(row, plan, Method(), [0]), run(row, plan, CASES[name](), [0])
    if name == "dense":
        assert torch.equal(dense.latent, other.latent)
    else:
        assert not torch.equal(dense.latent, other.latent)
        assert work(other.plan) < work(dense.plan)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_one_branch_alone_gives_what_guidance_would_combine(row: FamilyRow) -> None:
    """Guidance of all but 0 and 1 runs both branches and combines next to nothing of the other one into the logits."""
    passes = range(len(row.schedule))
    for branch, almost in (("conditional", 1 + 1e-7), ("unconditional", 1e-7)):
        mixed = make_settings(
            row.schedule, [almost if row.schedule.scales_from_end(index) == 1 else 3.0 for index in passes]
        )
        both = run(row, mixed, Method(), [0, 1])
        alone = run(row, make_settings(row.schedule), make_method("drop-guidance", branch=branch), [0, 1])
        assert {step.branches for step in both.plan.steps} == {2} and alone.plan.steps[-1].branches == 1
        assert equal_everywhere(both.indices, alone.indices)
        for one, other in zip(both.logits, alone.logits, strict=True):
            torch.testing.assert_close(one, other, atol=5e-4, rtol=0)


def test_every_family_is_here() -> None:
    assert {name.replace("_", "-") for name in FAMILIES} <= {row.family for row in ROWS}
    assert {row.schedule.grids[-1].t > 1 for row in ROWS} == {True, False}


def test_a_method_of_ones_own_composes_with_the_others() -> None:
    """What is not in the registry works as well: the seam asks for no name."""
    row, plan = ROWS[0], make_settings(ROWS[0].schedule)
    seen = Seen(make_method("stepvar"))
    generated = run(row, plan, Compose(seen, make_method("drop-guidance")), [0])
    assert generated.plan.steps[-1].branches == 1 and seen.tokens == generated.tokens
