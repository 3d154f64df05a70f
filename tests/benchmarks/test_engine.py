"""The benchmark of engines, where there is none but the eager one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import engine
from benchmarks.workload import random_pipeline
from stepvar.engine import Engine
from stepvar.methods import StepVAR
from stepvar.models.registry import FAMILIES
from tests.helpers import TINY, TINY_SWITTI


@pytest.fixture
def cells() -> engine.Cells:
    pipe = random_pipeline(FAMILIES["infinity"], TINY, torch.device("cpu"), torch.float32, "tiny")
    sizes = ["--model", "tiny", "--device", "cpu", "--resolution", "0.06M"]
    sizes = ["--model", "tiny", "--device", "cpu", "--resolution", "0.06M"]
    given = [*sizes, "--engines", "plain", "eager", "--methods", "dense", "stepvar"]
    return engine.Cells(pipe, engine.parse(given))


def test_every_engine_and_method_has_a_row(cells: engine.Cells) -> None:
    rows = cells.measure(2)
    assert [(row["engine"], row["method"]) for row in rows] == [
        (name, method) for name in ("plain", "eager") for method in ("dense", "stepvar")
    ]
    assert not cells.differ and all(row["ran"] == "eager" and row["whole"] >= row["loop"] for row in rows)
    lines = engine.markdown({"rows": rows}).splitlines()
    assert len(lines) == 2 + len(rows) and lines[2].count("1.00x") == 2


def test_texts_with_a_pooled_vector() -> None:
    pipe = random_pipeline(FAMILIES["switti"], TINY_SWITTI, torch.device("cpu"), torch.float32, "tiny")
    given = engine.parse(["--device", "cpu", "--batch", "2"])
    found = engine.generate(pipe, Engine("eager"), StepVAR(), given, 1)
    assert found["pixels"].shape == (2, 16, 16, 3) and found["engine"] == "eager"


def test_pixels_that_differ_are_told(cells: engine.Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = engine.generate

    def shifted(pipe: Any, own: Any, *rest: Any) -> Any:
        found = generate(pipe, own, *rest)
        return found | {"pixels": found["pixels"] + (own is cells.engines["eager"])}

    monkeypatch.setattr(engine, "generate", shifted)
    cells.run(("plain", "dense"), 0)
    cells.run(("eager", "dense"), 0)
    assert cells.differ == ["eager, dense, inputs 0"]


def test_a_result_says_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.Cells, "measure", lambda self, rounds: [])
    monkeypatch.setattr(engine, "random_pipeline", lambda *_, **__: type("", (), {"device": torch.device("cpu")})())
    monkeypatch.setattr("sys.argv", ["", "--rounds", "1"])
    assert engine.main(["--device", "cpu", "--methods", "dense", "--out", str(tmp_path / "engine.json")]) == 0
    assert '"command": "python -m' in (tmp_path / "engine.json").read_text()


def test_generations_of_one_seed_are_compared(
    cells: engine.Cells, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = engine.parse(["--resolution", "0.06M", "--methods", "dense", "--check-repeats", "3"])
    assert engine.check_repeats(cells.pipe, given)
    assert capsys.readouterr().out == "dense: 0 of 2 differ from the first, by [] values\n"
    noisy = iter((np.zeros(4), np.zeros(4), np.array([0, 1, 0, 1])))
    monkeypatch.setattr(engine, "generate", lambda *_: {"pixels": next(noisy)})
    assert not engine.check_repeats(cells.pipe, given)
    assert "1 of 2 differ from the first, by [2] values" in capsys.readouterr().out
