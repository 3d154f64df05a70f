"""Measuring, keeping what was measured, and planning on a real model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stepvar.cost import calibration as module
from stepvar.cost.calibration import calibrate, plan_speedup, subject_of
from stepvar.cost.costs import CostModel
from stepvar.cost.device import DeviceRates, device_key, rates_by_rows
from stepvar.cost.profile import Profile, measure_profile
from stepvar.cost.store import cache_file, cache_folder, kept
from stepvar.methods import SkipLast, StepVAR
from stepvar.models.infinity import Infinity
from stepvar.models.var import VAR
from tests.helpers import SQUARE, WIDE, make_settings
from tests.methods.families import ROWS, FamilyRow

RATES = DeviceRates(products=((1, 1e9), (64, 4e9)), attention=2e9, bandwidth=1e10, launch=1e-6)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEPVAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def known_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates without measuring them."""
    monkeypatch.setattr(module, "measure_rates", lambda device, dtype, advance: RATES)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("STEPVAR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "stepvar"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "stepvar"


def keep_rates(made: list[DeviceRates], key: dict[str, str], again: bool = False) -> DeviceRates:
    def measure() -> DeviceRates:
        made.append(RATES)
        return RATES

    return kept("device", key, measure, DeviceRates.to_dict, DeviceRates.from_dict, again)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", '{"key": {"a": "1"}}', '{"key": {"a": "1"}, "value": {"products": [[1, -2]]}}']
)
def test_measurements_are_kept_and_damaged_ones_remade(damage: str, own_cache: Path) -> None:
    made: list[DeviceRates] = []
    key = {"a": "1"}
    for _ in range(2):
        assert keep_rates(made, key) == RATES
    assert len(made) == 1 and [path.parent for path in own_cache.iterdir()] == [own_cache]
    cache_file("device", key).write_text(damage)
    assert keep_rates(made, key) == RATES and len(made) == 2
    assert keep_rates(made, key) == RATES and len(made) == 2  # the file is whole again
    keep_rates(made, {"a": "2"})
    keep_rates(made, key, again=True)
    assert len(made) == 4


def test_a_file_of_another_measurement_is_not_taken() -> None:
    made: list[DeviceRates] = []
    keep_rates(made, {"a": "1"})
    path = cache_file("device", {"a": "1"})
    path.write_text(path.read_text().replace('"a": "1"', '"a": "2"'))
    keep_rates(made, {"a": "1"})
    assert len(made) == 2


def test_without_a_place_to_write_it_is_measured_each_time(own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    made: list[DeviceRates] = []
    assert keep_rates(made, {}) == keep_rates(made, {}) == RATES
    assert len(made) == 2


def test_more_rows_never_take_less_time() -> None:
    rates = rates_by_rows((1, 10, 100), (1.0, 0.5, 4.0), per_row=2)
    assert rates == ((1, 2.0), (10, 20.0), (100, 50.0))


def test_device_key_says_what_rates_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    key = device_key(torch.device("cpu"), torch.bfloat16)
    assert key["dtype"] == "bfloat16" and key["torch"] == torch.__version__ and key["device"].startswith("cpu: ")
    assert key["threads"] == str(torch.get_num_threads())


@pytest.mark.parametrize("layers", [1, 3, 4])
def test_profiles_have_the_time_of_every_pass(tiny_model: Infinity, layers: int) -> None:
    of = subject_of(tiny_model, make_settings(WIDE), samples=2)
    steps: list[None] = []
    profile = measure_profile(of, layers, lambda: steps.append(None))
    assert list(profile.stack) == list(profile.thinned) == list(profile.rest) == list(range(len(WIDE)))
    assert all(seconds > 0 for seconds in (*profile.stack.values(), *profile.thinned.values()))
    assert profile.decode > 0 and profile.prepare > 0 and len(steps) == 3
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


@pytest.mark.usefixtures("known_device")
def test_calibration_is_measured_once(tiny_var: VAR, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []

    def measure(of: Any, layers: int, advance: Any) -> Profile:
        measured.append((of.samples, of.decode))
        return measure_profile(of, layers, advance)

    monkeypatch.setattr(module, "measure_profile", measure)
    plan = make_settings(SQUARE)
    first = calibrate(tiny_var, plan, progress=False)
    assert calibrate(tiny_var, plan, progress=False).profile == first.profile
    calibrate(tiny_var, plan, samples=2, progress=False)
    scales = calibrate(tiny_var, plan, scope="scales", progress=False)
    calibrate(tiny_var, make_settings(SQUARE, guidance=1.0), progress=False)
    assert measured == [(1, True), (2, True), (1, False), (1, True)]
    assert scales.profile.decode == 0 < first.profile.decode


@pytest.mark.usefixtures("known_device")
def test_a_method_fits_a_model(tiny_model: Infinity) -> None:
    plan = make_settings(WIDE)
    costs = calibrate(tiny_model, plan, scope="scales", progress=False).costs
    stages = StepVAR().stages(plan)
    asked = (costs.speedup(stages[0](0.2)) * costs.speedup(stages[0](1.0))) ** 0.5
    budget = plan_speedup(asked, tiny_model, "stepvar", plan, scope="scales", progress=False)
    assert isinstance(budget.method, StepVAR) and budget.planned == pytest.approx(asked, rel=0.1)
    assert costs.speedup(budget.method) == budget.planned
    assert "of the scales" in str(budget)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_family_can_be_measured_and_planned(row: FamilyRow) -> None:
    """Nothing here knows a family: what is counted is what runs, and a profile has all of its passes."""
    model, plan = row.model(), make_settings(row.schedule)
    of = subject_of(model, plan, scope="scales")
    profile = measure_profile(of, 2, lambda: None)
    assert list(profile.stack) == list(plan.computed)
    costs = CostModel(model, plan, 1, RATES, profile, "scales")
    assert costs.seconds(StepVAR(keep=0.3)) < costs.dense_seconds
    assert costs.seconds(SkipLast(1)) < costs.dense_seconds
