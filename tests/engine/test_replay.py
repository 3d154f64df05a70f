"""What a replay reads and writes, without a GPU: a graph that runs its work again in place of kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan, Step
from stepvar.core.report import Recorder
from stepvar.core.stack import PassResult
from stepvar.engine import Engine, runner
from stepvar.engine.graphs import FULL, CapturedGeneration, CapturedPasses, Passes
from stepvar.engine.noise import NoiseTape
from stepvar.engine.request import Request
from stepvar.engine.static import copy_into
from stepvar.generation import generate
from stepvar.kernels.linear import Quantization
from stepvar.methods import Compose, DropGuidance, Method, SkipVAR, StepVAR, make_method
from stepvar.methods.skipvar import Probe, SkipVARState, Verdict
from stepvar.models.blocks import GenerationState
from stepvar.utils.tensors import signature
from tests.engine.test_capture import BOTH_MEDIA, ONE_EACH, QUANTISED_CASES
from tests.helpers import make_settings
from tests.methods.families import ROWS, FamilyRow

QUICK = ("stepvar", "fastvar")
"""Methods that run with the quick tests on every family; the others do so on one for images and one for videos."""


class WorkAgain:
    """Stands for a graph: its replay does the work again, with the tensors that were there when it was made."""

    def __init__(self, work: Callable[[], Any], result: Any) -> None:
        self.work, self.result = work, result

    def replay(self) -> None:
        new = self.work()
        if isinstance(self.result, GenerationState):
            vars(self.result).update(vars(new))
        else:
            copy_into(self.result, new)


class CapturedOnCPU(CapturedGeneration):
    """A captured generation whose graphs are :class:`WorkAgain`.

    That work runs on the host again, so what it notes in the states is undone before.
    """

    def _capture(self, work: Callable[[], Any]) -> Any:
        result = work()
        return WorkAgain(work, result), result

    def replay(self, request: Request, *room: Callable[[int], bool]) -> Any:
        vars(self.first.method_state).update(vars(request.method.start(self.plan)))
        self.first.method_state.use(self.first.tape)
        self.first.tape._place.clear()
        return super().replay(request, *room)

    def _branch(self, plan: Plan, request: Request, has_room: Callable[[int], bool]) -> Passes:
        state, method_state = copy.deepcopy((self.first.state, self.first.method_state))
        branch = super()._branch(plan, request, has_room)
        vars(branch.state).update(vars(state))
        vars(branch.method_state).update(vars(method_state))
        branch.method_state.use(branch._noise)
        if isinstance(branch, CapturedPasses):
            for step in plan.steps:
                if step.index in branch.totals:
                    branch.tape._place.pop(step.index, None)
        return branch


@pytest.fixture(autouse=True)
def no_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def __init__(self, *_: Any) -> None: ...
        def __enter__(self) -> Nothing:
            return self

        def __exit__(self, *_: Any) -> None: ...
        def wait_stream(self, _: Any) -> None: ...

    for name in ("Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)


@pytest.mark.parametrize(
    ("row", "method"),
    [
        pytest.param(
            row,
            method,
            id=f"{row}-{method}",
            marks=[] if row.family in BOTH_MEDIA or method in QUICK else [pytest.mark.slow],
        )
        for row in ONE_EACH
        for method in (*QUICK, "dense", "stepvar+drop-guidance", "sparsevar", "fastervar", "faststar")
    ],
)
@torch.inference_mode()
def test_a_replay_is_an_eager_generation_with_other_prompts_and_seeds(row: FamilyRow, method: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "fastvar": {"prune": (0.5,), "skip": 0, "blocks_before": 0, "blocks_after": 1},
        "fastervar": {"skip": 0, "unconditional": 1},
        "faststar": {"prune": (0.5,)},
    }
    check_replays(row.model(), row, make_method(method, **changes.get(method, {})))


@pytest.mark.parametrize(("row", "kind"), QUANTISED_CASES)
@torch.inference_mode()
def test_so_it_is_with_quantised_weights(row: FamilyRow, kind: Quantization) -> None:
    model = copy.deepcopy(row.model()).to(dtype=torch.bfloat16).quantize(kind)
    check_replays(model, row, make_method("stepvar"))


def check_replays(model: Any, row: FamilyRow, acting: Method) -> None:
    settings = make_settings(row.schedule, 3.0, top_p=0.9)
    plan = acting.plan(settings, model.info, 1)

    def asked(place: int, seed: int) -> Request:
        staged = model.stage(row.condition(range(place, place + 1)), plan, padded=True)
        return Request(model, staged, plan, acting, SeededNoise((seed,)), {}, Recorder())

    first = asked(0, 9)
    tape = NoiseTape(first.noise)
    recorded = eager(replace(first, noise=tape))
    assert torch.equal(recorded.latent, eager(first).latent)
    captured = CapturedOnCPU(first, tape)
    for place, seed in ((1, 4), (0, 9), (1, 5), (0, 3)):
        if signature(asked(place, seed).condition) != signature(first.condition):  # texts that the family does not pad
            assert row.family == "infinity-star"
            continue
        check_replay(captured, asked(place, seed))


def eager(request: Request) -> Any:
    asked = (request.model, request.condition, request.plan, request.method, request.noise)
    return generate(*asked, recorder=request.recorder)


def check_replay(captured: CapturedGeneration, request: Request) -> Recorder:
    """Whether it is what an eager generation is; gives what it recorded."""
    expected, again = eager(request), replace(request, recorder=Recorder(engine="graphs"))
    found = captured.replay(again)
    assert torch.equal(found.latent, expected.latent)
    kept, kept_again = ([t.tolist() for _, t in one.recorder.kept_maps()] for one in (request, again))
    assert kept == kept_again
    assert [step for step, _ in again.recorder.scales] == [step for step, _ in request.recorder.scales]
    assert again.recorder.plan == request.recorder.plan
    for (_, own), (_, wanted) in zip(again.recorder.totals, request.recorder.totals, strict=True):
        assert own is not None and wanted is not None and torch.equal(own, wanted)
    return again.recorder


@dataclass(frozen=True)
class Told(SkipVAR):
    """Decides what it is told, if that is what its small images are decided by."""

    choices: ClassVar[list[str]] = []

    def decide(self, result: PassResult, step: Step, state: SkipVARState) -> str:
        assert len(state.probes) == 2
        return self.choices.pop(0)


DECISIONS = (
    ("skip 1", "eager: first generation of its kind"),
    ("skip 1", "graphs"),
    ("conditional 2", "graphs up to the decision, then eager: first 'conditional 2' of its kind"),
    ("skip 2", "graphs up to the decision, then eager: first 'skip 2' of its kind"),
    ("skip 1", "graphs"),
    ("skip 2", "graphs"),
    ("conditional 2", "graphs"),
    ("skip 2", "graphs"),
)
"""What is decided in one generation after another, and how each runs."""

BESIDE = [(), (StepVAR(last=2),), (DropGuidance(last=1),)]


@pytest.mark.parametrize("beside", BESIDE, ids=lambda parts: "+".join(map(str, parts)))
def test_each_alternative_is_captured_when_it_comes_again(
    beside: tuple[Method, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    capture_on_cpu(monkeypatch)
    monkeypatch.setattr(Engine, "_make_room", lambda *_, **__: True)
    check_decisions(ROWS[0].model(), beside)


def capture_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_replays", lambda self, device: self.name != "eager")
    monkeypatch.setattr(runner, "CapturedGeneration", CapturedOnCPU)
    monkeypatch.setattr(runner, "_free_unused", lambda device: None)


MIB = 2**20


def test_an_alternative_is_captured_only_where_the_limit_has_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is captured at once holds 100 MiB here: what precedes the decision, and each alternative."""
    capture_on_cpu(monkeypatch)
    allocated = iter(range(0, 10**6 * MIB, 100 * MIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: next(allocated))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("", (), {"total_memory": 1000 * MIB})())
    eager = "graphs up to the decision, then eager: "
    full = f"{eager}{FULL}"
    decisions = (
        ("skip 1", "eager: first generation of its kind"),
        ("skip 1", "graphs"),
        ("skip 2", f"{eager}first 'skip 2' of its kind"),
        ("skip 2", "graphs"),
        ("conditional 2", f"{eager}first 'conditional 2' of its kind"),
        ("conditional 2", full),
        ("conditional 2", full),
        ("skip 2", "graphs"),
    )
    engine = Engine("graphs")
    check_decisions(ROWS[0].model(), (), decisions, engine)
    (held,) = engine._held().values()
    assert held.nbytes == 300 * MIB <= runner.SHARE * 1000 * MIB
    assert next(allocated) == 8 * 100 * MIB, "an alternative without room is captured once, to know its size"


def check_decisions(
    model: Any,
    beside: tuple[Method, ...],
    decisions: Sequence[tuple[str, str]] = DECISIONS,
    graphs: Engine | None = None,
) -> None:
    """Whether each generation is the eager one to the bit, and ran as it should."""
    method = Compose(Told(), *beside) if beside else Told()
    plan = method.plan(make_settings(ROWS[0].schedule, 3.0), model.info, 1)
    condition: Any = ROWS[0].condition(range(1))
    if model.device.type == "cpu":  # else the engine does so
        condition = model.stage(condition, plan, padded=True)

    def run(engine: Engine, choice: str, seed: int) -> tuple[torch.Tensor, Recorder]:
        Told.choices[:] = [choice]
        recorder = Recorder(model.device)
        state = engine.generate(model, condition, plan, method, SeededNoise((seed,)), recorder=recorder)
        return state.latent.clone(), recorder

    eager, graphs = Engine("eager"), graphs or Engine("graphs")
    for seed, (choice, says) in enumerate(decisions):
        (wanted, _), (found, recorder) = (run(engine, choice, seed) for engine in (eager, graphs))
        assert torch.equal(found, wanted)
        assert recorder.engine == says and recorder.plan is not None and recorder.plan.choice == choice


@torch.inference_mode()
def test_decisions_are_made_by_the_small_images_of_the_generation_itself() -> None:
    row, model, seen = ROWS[0], ROWS[0].model(), []

    class Watching(SkipVAR):
        def judge(self, before: Probe, after: Probe) -> Verdict:
            seen.append(super().judge(before, after))
            return seen[-1]

    check_replays(model, row, Watching())
    pairs = list(zip(seen[2::2], seen[3::2], strict=True))  # behind those of the two eager generations
    assert len(pairs) == 4 and all(expected == found for expected, found in pairs)
    assert len({found.features for _, found in pairs}) == 4


@torch.inference_mode()
def test_what_follows_a_decision_may_be_refused() -> None:
    row, model, method = ROWS[0], ROWS[0].model(), Told()
    plan = method.plan(make_settings(row.schedule, 3.0), model.info, 1)
    staged = model.stage(row.condition(range(1)), plan, padded=True)
    request = Request(model, staged, plan, method, SeededNoise((9,)), {}, Recorder())

    class Refusing(CapturedOnCPU):
        def _captured(self, plan: Plan, tape: NoiseTape) -> CapturedPasses:
            raise RuntimeError("not permitted")

    Told.choices[:] = ["skip 1"]
    tape = NoiseTape(request.noise)
    eager(replace(request, noise=tape))
    captured = Refusing(request, tape)
    new, refused = "first 'skip 3' of its kind", "not captured (not permitted)"
    for why in (new, refused, refused):
        Told.choices[:] = ["skip 3", "skip 3"]
        recorder = check_replay(captured, replace(request, recorder=Recorder()))
        assert recorder.engine == f"graphs up to the decision, then eager: {why}"


@torch.inference_mode()
def test_what_says_whether_features_are_finite_is_not_in_the_pool() -> None:
    """The pool's own would be those of the next replay, perhaps of another thread."""
    row = ONE_EACH[0]
    method, model = make_method("dense"), row.model()
    plan = method.plan(make_settings(row.schedule, 3.0), model.info, 1)
    staged = model.stage(row.condition(range(1)), plan, padded=True)
    recorder = Recorder()
    request = Request(model, staged, plan, method, SeededNoise((9,)), {}, recorder)
    tape = NoiseTape(request.noise)
    eager(replace(request, noise=tape, recorder=Recorder()))
    captured = CapturedOnCPU(request, tape)
    captured.replay(request)
    recorder.check_finite("dense")
    assert [step for step, _ in recorder.totals] == list(plan.steps)
    for total in captured.first.totals.values():
        assert total is not None
        total.fill_(torch.nan)
    recorder.check_finite("dense")
