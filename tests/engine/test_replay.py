"""What a replay reads and writes, without a GPU: a graph that runs its work again in place of kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from stepvar.core.noise import SeededNoise
from stepvar.core.report import Recorder
from stepvar.engine.graphs import CapturedGeneration
from stepvar.engine.noise import NoiseTape
from stepvar.generation import generate
from stepvar.kernels.linear import QUANTIZATIONS, Quantization
from stepvar.methods import Method, make_method
from stepvar.utils.tensors import signature
from tests.helpers import make_settings
from tests.methods.families import ROWS, FamilyRow

ONE_EACH = list({row.family: row for row in ROWS}.values())


class WorkAgain:
    """Stands for a graph: its replay does the work again, with the tensors that were there when it was made."""

    def __init__(self, work: Callable[[], Any], result: Any) -> None:
        self.work, self.result = work, result

    def replay(self) -> None:
        new = self.work()
        if self.result is not None:
            vars(self.result).update(vars(new))


class CapturedOnCPU(CapturedGeneration):
    """A captured generation whose graphs are :class:`WorkAgain`."""

    def _capture(self, work: Callable[[], Any]) -> Any:
        result = work()
        return WorkAgain(work, result), result

    def replay(self, *arguments: Any) -> Any:
        self.tape._place.clear()
        self.method_state.selections.clear()
        return super().replay(*arguments)


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


@pytest.mark.parametrize(
    "method", ["dense", "stepvar", "fastvar", "stepvar+drop-guidance", "sparsevar", "fastervar", "faststar"]
)
@pytest.mark.parametrize("row", ONE_EACH, ids=str)
@torch.inference_mode()
def test_a_replay_is_an_eager_generation_with_other_prompts_and_seeds(row: FamilyRow, method: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "fastvar": {"prune": (0.5,), "skip": 0, "blocks_before": 0, "blocks_after": 1},
        "fastervar": {"skip": 0, "unconditional": 1},
        "faststar": {"prune": (0.5,)},
    }
    check_replays(row.model(), row, make_method(method, **changes.get(method, {})))


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("row", ONE_EACH, ids=str)
@torch.inference_mode()
def test_so_it_is_with_quantised_weights(row: FamilyRow, kind: Quantization) -> None:
    model = copy.deepcopy(row.model()).to(dtype=torch.bfloat16).quantize(kind)
    check_replays(model, row, make_method("stepvar"))


def check_replays(model: Any, row: FamilyRow, acting: Method) -> None:
    settings = make_settings(row.schedule, 3.0, top_p=0.9)
    plan = acting.plan(settings, model.info, 1)

    def staged(place: int) -> Any:
        return model.stage(row.condition(range(place, place + 1)), plan, padded=True)

    tape = NoiseTape(SeededNoise((9,)))
    first = generate(model, staged(0), plan, acting, tape)
    assert torch.equal(first.latent, generate(model, staged(0), plan, acting, SeededNoise((9,))).latent)
    captured = CapturedOnCPU(model, staged(0), plan, acting, tape, {})
    for place, seed in ((1, 4), (0, 9), (1, 5), (0, 3)):
        if signature(staged(place)) != signature(staged(0)):  # texts of another length that the family does not pad
            assert row.family == "infinity-star"
            continue
        recorder = Recorder()
        expected = generate(model, staged(place), plan, acting, SeededNoise((seed,)), recorder=recorder)
        again = Recorder()
        found = captured.replay(staged(place), SeededNoise((seed,)), {}, again, None)
        assert torch.equal(found.latent, expected.latent)
        kept, kept_again = ([t.tolist() for _, t in one.kept_maps()] for one in (recorder, again))
        assert kept == kept_again


@torch.inference_mode()
def test_what_says_whether_features_are_finite_is_not_in_the_pool() -> None:
    """The pool's own would be those of the next replay, perhaps of another thread."""
    row = ONE_EACH[0]
    method, model = make_method("dense"), row.model()
    plan = method.plan(make_settings(row.schedule, 3.0), model.info, 1)
    staged = model.stage(row.condition(range(1)), plan, padded=True)
    tape = NoiseTape(SeededNoise((9,)))
    generate(model, staged, plan, method, tape)
    captured, recorder = CapturedOnCPU(model, staged, plan, method, tape, {}), Recorder()
    captured.replay(staged, SeededNoise((9,)), {}, recorder, None)
    recorder.check_finite("dense")
    assert [step for step, _ in recorder.totals] == list(plan.steps)
    for _, total in captured.totals:
        assert total is not None
        total.fill_(torch.nan)
    recorder.check_finite("dense")
