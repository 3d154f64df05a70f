"""The benchmarks of cost, on tiny models of every family with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import budget, speed
from benchmarks.subjects import VARIANTS, Drawing, random_model
from stepvar.cost.calibration import subject_of
from stepvar.cost.costs import CostModel
from stepvar.cost.device import DeviceRates
from stepvar.cost.planner import fit
from stepvar.methods import Method, SkipLast, StepVAR
from stepvar.models.registry import FAMILIES
from tests.helpers import CLIPS, SQUARE, TINY, TINY_HART, TINY_STAR, TINY_VAR, make_settings

CONFIGS: dict[str, Any] = {"infinity": TINY, "var": TINY_VAR, "hart": TINY_HART, "infinity_star": TINY_STAR}
RATES = DeviceRates(products=((1, 1e9), (64, 4e9)), attention=2e9, bandwidth=1e10, launch=1e-6)


def tiny_drawing(family: str, dtype: torch.dtype = torch.float32) -> Drawing:
    model = random_model(FAMILIES[family], CONFIGS[family], torch.device("cpu"), dtype)
    plan = make_settings(CLIPS if FAMILIES[family].draws_video else SQUARE)
    return Drawing("tiny", model, subject_of(model, plan).encode(), plan, decode=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_draws_with_random_weights(family: str, dtype: torch.dtype) -> None:
    of = tiny_drawing(family, dtype)
    weights = dict(of.model.named_parameters())
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert {weight.dtype for weight in weights.values()} >= {dtype} and of.model.dtype == dtype
    report = of.run(StepVAR(keep=0.5, last=1))
    assert report.stages["decode"] > 0 and report.kept < report.tokens


def test_released_sizes_of_all_families_are_offered() -> None:
    assert {"125m", "2b", "8b", "480p", "d16"} <= set(VARIANTS)


def test_speed_shows_settings_splits_and_scales() -> None:
    of = tiny_drawing("infinity")
    result = speed.measure(of, 2, {"keep 0.5, last 2": StepVAR(keep=0.5, last=2)})
    result["info"] = {}
    text = speed.markdown(result)
    assert "| keep 0.5, last 2 | " in text and "| ms | loop over scales | prepare | decode | whole |" in text
    assert "| ms | 1x1 | 2x2 | 4x4 | 6x6 | 8x8 |" in text and len(result["dense"]["scale_seconds"]) == 5
    row = result["rows"][0]
    assert row["seconds"]["whole"] > row["seconds"]["loop"] and row["flop_share"] < 1


def test_methods_that_skip_scales_are_compared_scale_by_scale() -> None:
    of = tiny_drawing("infinity")
    result = speed.measure(of, 1, {"short": SkipLast(2)})
    assert len(result["rows"][0]["scale_seconds"]) == 3


def test_budget_benchmark_reports_what_was_asked_and_achieved() -> None:
    of = tiny_drawing("var")
    costs = CostModel(of.model, of.plan, 1, RATES)
    found = [(name, fit(asked, method, costs)) for name, method, asked in
             (("stepvar", StepVAR(), 1.3), ("skip-last", SkipLast(), 1.1))]  # fmt: skip
    ratios = budget.measure(of, found, 2)
    assert len(ratios) == 2 and all(len(one) == 2 and min(one) > 0 for one in ratios)
    rows = budget.rows(found, ratios)
    text = budget.markdown({"rows": rows, "refused": [], "speedup_of": "whole pictures", "rounds": 2})
    assert "| stepvar | 1.3 | 1.30 |" in text and "(nearest)" in text


def test_budget_benchmark_lists_what_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    of = tiny_drawing("var")
    costs = CostModel(of.model, of.plan, 1, RATES)
    monkeypatch.setattr(budget, "calibrate", lambda *_, **__: type("Done", (), {"costs": costs}))
    found, refused = budget.plans(of, ["stepvar", "dense"], [1.2, 1000.0], again=False)
    assert [name for name, _ in found] == ["stepvar"] and isinstance(found[0][1].method, Method)
    assert [(one["method"], one["asked"]) for one in refused] == [("stepvar", 1000), ("dense", 1.2), ("dense", 1000)]
