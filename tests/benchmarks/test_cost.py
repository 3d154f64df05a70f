"""The benchmarks of cost, on tiny models of every family with random weights."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import speed
from benchmarks.tables import RESULTS
from benchmarks.workload import VARIANTS, Workload, random_pipeline
from stepvar.cost.speedup import Fitted
from stepvar.errors import UsageError
from stepvar.methods import Method, StepVAR
from stepvar.models.registry import FAMILIES
from tests.helpers import CLIPS, SQUARE, TINY, TINY_HART, TINY_STAR, TINY_STAR_T2I, TINY_SWITTI, TINY_VAR, make_settings

CONFIGS: dict[str, Any] = {
    "infinity": TINY,
    "var": TINY_VAR,
    "hart": TINY_HART,
    "infinity_star": TINY_STAR,
    "star": TINY_STAR_T2I,
    "varedit": TINY,
    "switti": TINY_SWITTI,
}


def tiny_workload(family: str, dtype: torch.dtype = torch.float32) -> Workload:
    pipe = random_pipeline(FAMILIES[family], CONFIGS[family], torch.device("cpu"), dtype, "tiny")
    schedule = CLIPS if FAMILIES[family].video else replace(SQUARE, kv_scope=pipe.schedule().kv_scope)
    return Workload.of(pipe, make_settings(schedule), decode=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_generates_with_random_weights(family: str, dtype: torch.dtype) -> None:
    of = tiny_workload(family, dtype)
    weights = dict(of.pipe.model.named_parameters())
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert {weight.dtype for weight in weights.values()} >= {dtype} and of.pipe.dtype == dtype
    report = of.run(StepVAR(keep=0.5, last=1))
    assert report.stages["decode"] > 0 and report.kept < report.tokens


def test_released_sizes_of_all_families_are_offered() -> None:
    assert {"125m", "2b", "8b", "480p", "d16"} <= set(VARIANTS)


def chosen(**given: Any) -> Namespace:
    return Namespace(**{"keep": [], "last": [], "methods": [], "speedups": []} | given)


def test_speed_shows_settings_splits_and_scales() -> None:
    of = tiny_workload("infinity")
    compared, refused = speed.settings(of, chosen(keep=[0.5], last=[2], methods=["skip-last"]))
    assert list(compared) == ["keep 0.5, last 2", "skip-last"] and refused == []
    result = speed.measure(of, 2, compared)
    text = speed.markdown(result)
    assert "| keep 0.5, last 2 | " in text and "| ms | loop over scales | prepare | decode | whole |" in text
    assert "| ms | 1x1 | 2x2 | 4x4 | 6x6 | 8x8 |" in text and len(result["dense"]["scale_seconds"]) == 5
    kept, skipped = result["rows"]
    assert kept["seconds"]["whole"] > kept["seconds"]["loop"] and kept["flop_share"] < 1
    assert len(skipped["scale_seconds"]) == 4 and 0 < skipped["peak"] <= result["dense"]["peak"]


def test_speedups_are_held_to_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(self: Workload, speedup: float, method: Method) -> Fitted:
        if speedup > 10 or str(method) == "dense":
            raise UsageError(f"speedup={speedup:g}: too much")
        return Fitted(method, speedup, 1.31, self.scope, 1.0, 1.31)

    monkeypatch.setattr(Workload, "fit", fit)
    of = tiny_workload("var")
    compared, refused = speed.settings(of, chosen(methods=["stepvar", "skip-last", "dense"], speedups=[1.3, 1000.0]))
    assert list(compared) == ["stepvar, 1.3x of the image asked", "skip-last, 1.3x of the image asked"]
    assert [(one["method"], one["asked"]) for one in refused] == [
        ("stepvar", 1000), ("skip-last", 1000), ("dense", 1.3), ("dense", 1000),
    ]  # fmt: skip
    result = speed.measure(of, 2, compared) | {"refused": refused}
    row = result["rows"][0]
    assert row["achieved"] == row["whole_speedup"] and row["deviation"] == row["achieved"]["median"] / 1.3 - 1
    text = speed.markdown(result)
    assert "| stepvar | 1.3 | 1.31 |" in text and "Refused: `speedup=1000: too much`" in text


@pytest.mark.parametrize("name", ["speed-scenes", "budget-scenes"])
def test_stored_results_still_make_tables(name: str) -> None:
    text = speed.markdown(json.loads((RESULTS / f"{name}.json").read_text()))
    assert text.startswith("|") and "x (" in text
    assert ("| stepvar | 1.5 | 1.50 | 1.50x" in text) == (name == "budget-scenes")
