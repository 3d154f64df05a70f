"""The load test of the server counts what it says it counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

from benchmarks.serving import Tally, main, table
from tests.cli.conftest import write_model


def test_growth_is_from_the_second_fifth_to_the_last() -> None:
    tally = Tally(memory=[(float(second), size) for second, size in enumerate([9, 9, 10, 10, 11, 11, 12, 12, 15, 15])])
    assert tally.growth() == pytest.approx(0.5)
    assert Tally(memory=[(0.0, 5.0)]).growth() == 0


def test_a_full_queue_and_a_client_that_left_are_no_errors() -> None:
    tally = Tally()
    tally.answers.update({"200": 5, "429": 3, "left": 2, "500": 1, "ConnectionResetError": 1})
    assert tally.errors == 2


def test_the_table_says_what_batches_gained() -> None:
    load = {"answers": {"200": 6}, "errors": 0, "memory_growth": 0.01}
    results: dict[str, Any] = {
        "alone": {"image_seconds": 0.5, "overhead": 0.02},
        "batches": {**load, "images_per_second": 3.0},
        "one_by_one": {**load, "images_per_second": 2.0},
    }
    shown = table(results)
    assert "| 1.50x |" in shown and "| 2.0 % | at most 5 % |" in shown and "| +1.0 % |" in shown


@pytest.mark.slow
def test_a_short_load_has_no_errors(tmp_path: Path) -> None:
    options = ["--clients", "4", "--alone", "2", "--minutes", "0.05", "--out", str(tmp_path / "out.json")]
    main(["--model", str(write_model(tmp_path / "model")), *options])
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert results["batches"]["errors"] == results["one_by_one"]["errors"] == 0
    assert results["batches"]["answers"]["200"] > 0
