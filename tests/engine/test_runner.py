"""What the engine captures, keeps and drops; without a GPU, by captured generations that only count."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stepvar.core.noise import SeededNoise, StreamNoise
from stepvar.core.report import Recorder
from stepvar.engine import Engine, runner
from stepvar.engine.graphs import FULL
from stepvar.generation import generate
from stepvar.methods import Method
from stepvar.models.infinity import TextCondition
from tests.helpers import SQUARE, make_model, make_settings, make_text

MIB = 2**20


class Counted:
    """Stands for a captured generation."""

    nbytes = 100 * MIB

    def __init__(self, *_: Any) -> None:
        self.used = 0

    def replay(self, *_: Any) -> str:
        return "replayed"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(Engine, "_replays", lambda self, device: True)
    monkeypatch.setattr(runner, "CapturedGeneration", Counted)
    monkeypatch.setattr(runner, "_free_unused", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("", (), {"total_memory": 1000 * MIB})())
    return Engine("graphs", memory=250 * MIB)


MODEL = make_model()


def run(engine: Engine, samples: int = 1, noise: Any = None, **settings: Any) -> str:
    """Generates a number of images, which is a kind of its own, and says what ran."""
    plan = Method().plan(make_settings(SQUARE, 1.0, **settings), MODEL.info, samples)
    condition = TextCondition(make_text(range(samples)))
    recorder = Recorder()
    engine.generate(MODEL, condition, plan, Method(), noise or SeededNoise(range(samples)), recorder=recorder)
    return recorder.engine


def test_the_second_of_a_kind_is_captured(engine: Engine) -> None:
    assert [run(engine), run(engine), run(engine), run(engine, 2)] == [
        "eager: first generation of its kind",
        "graphs",
        "graphs",
        "eager: first generation of its kind",
    ]


def test_kinds_in_use_are_not_dropped_for_another(engine: Engine) -> None:
    """Dropping them in turn would capture all of them again and again."""
    for samples in (1, 2, 3):
        run(engine, samples)
    rounds = [[run(engine, samples) for samples in (1, 2, 3)] for _ in range(3)]
    assert rounds == 3 * [["graphs", "graphs", f"eager: {FULL}"]]


def test_a_kind_that_is_no_longer_used_makes_room(engine: Engine) -> None:
    for samples in (1, 2, 1, 2):
        run(engine, samples)
    assert run(engine, 3).startswith("eager: first")
    later = [run(engine, samples) for _ in range(runner.STALE + 2) for samples in (2, 3)]
    assert later[1] == f"eager: {FULL}" and later[-2:] == ["graphs", "graphs"]
    assert run(engine, 1).startswith("eager: first"), "the oldest is not held any more"


def test_one_that_is_larger_than_the_limit_is_kept_alone(engine: Engine) -> None:
    engine.memory = MIB
    assert [run(engine), run(engine), run(engine)][1:] == ["graphs", "graphs"]


def test_what_cannot_be_captured_runs_eagerly(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def __init__(self, *_: Any) -> None:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(runner, "CapturedGeneration", Refused)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    assert [run(engine), run(engine), run(engine)][1:] == 2 * [
        "eager: not captured (operation not permitted when stream is capturing)"
    ]


def test_captured_generations_give_way_when_memory_runs_out(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run(engine), run(engine)
    attempts = []

    def once_out_of_memory(*arguments: Any) -> Any:
        attempts.append(len(engine._held()))
        if len(attempts) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(*arguments)

    monkeypatch.setattr(runner, "generate", once_out_of_memory)
    assert "memory ran out" in run(engine, 2)
    assert attempts == [1, 0]
    with pytest.raises(torch.OutOfMemoryError):  # nothing is held that could give way
        attempts.clear()
        run(engine, 3)


def test_numbers_of_a_generator_are_not_drawn_twice(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run(engine), run(engine)

    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner, "generate", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        run(engine, 2, StreamNoise(torch.Generator().manual_seed(1)))
    assert not engine._held(), "the next one finds the memory free"


def test_a_model_that_was_moved_is_captured_anew(engine: Engine) -> None:
    run(engine), run(engine)
    weight = next(MODEL.parameters())
    old = weight.data
    weight.data = old.clone()
    try:
        assert run(engine).startswith("eager: first")
    finally:
        weight.data = old


def test_runs_to_warm_up() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [Engine(name).warmup_runs(cuda) for name in ("auto", "graphs", "eager")] == [2, 2, 1]
    assert Engine("auto").warmup_runs(cpu) == 1
