"""From speed-ups to settings, on devices whose times are known exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepvar.checkpoints.loading import LoadedModel, meta_model
from stepvar.core.plan import Plan, Step
from stepvar.core.report import Report, ScaleReport
from stepvar.cost.speedup import Fitted, Search, fit_speedup, measure_ahead
from stepvar.cost.store import cache_file, cache_folder, load, save
from stepvar.cost.timings import Timings
from stepvar.errors import UsageError
from stepvar.methods import METHODS, Dense, FastVAR, Method, Random, SkipLast, StepVAR
from stepvar.methods.compose import Compose
from stepvar.methods.drop_guidance import DropGuidance
from stepvar.methods.pruning import FLOOR
from stepvar.models.infinity import Infinity
from stepvar.pipeline import Pipeline
from stepvar.text import WordEncoder
from tests.helpers import TINY

Law = Callable[[Plan, Step], float]
"""Seconds of the blocks of a pass."""


def by_tokens(plan: Plan, step: Step) -> float:
    return step.rows * sum(step.tokens) * 1e-6


def with_attention(plan: Plan, step: Step) -> float:
    pairs = zip(step.tokens, plan.attended(step), strict=True)
    return step.rows * sum(tokens * (1 + seen / 4000) for tokens, seen in pairs) * 1e-6


def fused(plan: Plan, step: Step) -> float:
    """Blocks so fast that starting them takes longer than the work of few tokens."""
    return plan.depth * 2e-4 + 0.1 * with_attention(plan, step) ** 1.2


LAWS = (by_tokens, with_attention, fused)

REST = 0.02
"""Seconds of what no method changes at a pass."""


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    """A released model without its weights: nothing here runs it."""
    return Pipeline(meta_model("FoundationVision/Infinity", "2b"), None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEPVAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Method]:
    """A device that obeys a law, and what it was asked to run."""
    law: Law = getattr(request, "param", with_attention)
    ran: list[Method] = []

    def generate(self: Search, plan: Plan, method: Method) -> Report:
        ran.append(method)
        stages = {"condition": 0.1, "prepare": 0.0} | ({"decode": 0.4} if method == Method() else {})
        return report(plan, law, stages)

    monkeypatch.setattr(Search, "_generate", generate)
    return ran


def report(plan: Plan, law: Law, stages: dict[str, float]) -> Report:
    scales = tuple(
        ScaleReport(step.index, step.grid.shape, step.grid.size, step.grid.size, 1, REST + law(plan, step))
        for step in plan.steps
    )
    return Report("", "", plan.samples, "cpu", "float32", scales, stages, 0)


def achieved(pipe: Pipeline, method: Method, law: Law, fixed: float = 0.5) -> float:
    """The speed-up that a method really has on a device."""
    plans = [one.plan(pipe.settings(), pipe.model.info, 1) for one in (Method(), method)]
    dense, own = (fixed + sum(REST + law(plan, step) for step in plan.steps) for plan in plans)
    return dense / own


@pytest.mark.parametrize("device", LAWS, indirect=True)
@pytest.mark.parametrize("method", [StepVAR(), Random(seed=3), Compose(StepVAR(), DropGuidance(2))], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_what_is_asked_is_met_whatever_the_device(
    pipe: Pipeline, device: list[Method], method: Method, share: float, request: pytest.FixtureRequest
) -> None:
    law = request.node.callspec.params["device"]
    ends = [stage(end) for stage, end in ((method.speedup_schedule(pipe.settings())[0], 0.0),)]
    ends.append(method.speedup_schedule(pipe.settings())[-1](1.0))
    slow, fast = (achieved(pipe, end, law) for end in ends)
    asked = slow * (fast / slow) ** share
    fitted = fit_speedup(pipe, asked, method, progress=False)
    assert achieved(pipe, fitted.method, law) == pytest.approx(asked, rel=0.05)
    assert fitted.expected == pytest.approx(asked, rel=0.01) and not fitted.is_near_only
    assert len(set(map(repr, device))) <= 5


@pytest.mark.usefixtures("device")
def test_the_scales_alone_are_another_matter(pipe: Pipeline) -> None:
    image, scales = (fit_speedup(pipe, 1.5, scope=scope, progress=False) for scope in ("image", "scales"))
    assert achieved(pipe, scales.method, with_attention, fixed=0.0) == pytest.approx(1.5, rel=0.05)
    assert image.method.keep < scales.method.keep or image.method.last > scales.method.last  # type: ignore[attr-defined]
    assert "1.5 times as fast asked of the scales, 1.50 expected" in str(scales)
    assert scales.to_dict()["speedup_of"] == "scales" and scales.dense_seconds < image.dense_seconds


def test_what_was_measured_is_not_measured_again(pipe: Pipeline, device: list[Method]) -> None:
    first = fit_speedup(pipe, 1.5, progress=False)
    count = len(device)
    assert fit_speedup(pipe, 1.5, progress=False) == first and len(device) == count
    fit_speedup(pipe, 1.5, "random", progress=False)
    fit_speedup(pipe, 1.5, samples=2, progress=False)
    assert len(device) > count
    count = len(device)
    measure_ahead(pipe, progress=False)
    assert len(device) > count and fit_speedup(pipe, 1.5, progress=False).method.name == "stepvar"


@pytest.mark.usefixtures("device")
def test_pruning_widens_before_it_keeps_less_than_the_floor(pipe: Pipeline) -> None:
    first = pipe.settings().late_scales()
    gentle, extreme = (fit_speedup(pipe, asked, scope="scales", progress=False).method for asked in (1.4, 5.0))
    assert isinstance(gentle, StepVAR) and isinstance(extreme, StepVAR)
    assert gentle.last == first and FLOOR < gentle.keep < 1  # type: ignore[operator]
    assert extreme.keep < FLOOR and extreme.last > first  # type: ignore[operator]


@pytest.mark.usefixtures("device")
def test_other_settings_stay(pipe: Pipeline) -> None:
    fitted = fit_speedup(pipe, 1.5, Random(seed=5, propagate="update"), progress=False).method
    assert isinstance(fitted, Random) and (fitted.seed, fitted.propagate) == (5, "update")
    both = fit_speedup(pipe, 1.6, Compose(DropGuidance(3), StepVAR(structure_weight=1.0)), progress=False).method
    assert isinstance(both, Compose) and both.parts[0] == DropGuidance(3)
    assert isinstance(both.parts[1], StepVAR) and both.parts[1].structure_weight == 1.0


@pytest.mark.usefixtures("device")
def test_whole_scales_come_as_near_as_they_can(pipe: Pipeline) -> None:
    fitted = fit_speedup(pipe, 3.0, SkipLast(), scope="scales", progress=False)
    reachable = [achieved(pipe, SkipLast(count), with_attention, 0.0) for count in range(1, 12)]
    nearest = min(reachable, key=lambda speedup: max(speedup / 3, 3 / speedup))
    assert fitted.expected == pytest.approx(nearest)
    assert fitted.is_near_only == (abs(nearest / 3 - 1) > 0.05)
    skipping = fit_speedup(pipe, 1.5, FastVAR(), progress=False)
    assert achieved(pipe, skipping.method, with_attention) == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_asked(pipe: Pipeline, name: str) -> None:
    """Stages give methods that serve the settings, and a larger share never costs more."""
    try:
        method = METHODS[name]()
    except UsageError:
        pytest.skip("needs settings")
    for stage in method.speedup_schedule(pipe.settings()):
        fitted = [stage(share / 4) for share in range(5)]
        speedups = [achieved(pipe, one, by_tokens) for one in fitted]
        assert speedups == sorted(speedups) and all(one.name == name for one in fitted)
    assert bool(method.speedup_settings) == bool(method.speedup_schedule(pipe.settings()))


@pytest.mark.usefixtures("device")
def test_speedups_that_are_none(pipe: Pipeline) -> None:
    for asked in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=rf"speedup={asked}: must be a number above 0 and at most 1000"):
            fit_speedup(pipe, asked, progress=False)
    with pytest.raises(UsageError, match=r"must be at least 1, and with stepvar here at most \d+\.\d\d"):
        fit_speedup(pipe, 0.5, progress=False)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("method", [StepVAR(), SkipLast(), DropGuidance()], ids=str)
def test_impossible_speedups_name_the_largest(pipe: Pipeline, method: Method) -> None:
    with pytest.raises(UsageError, match=r"speedup=50: with .* at most (\d+\.\d\d) can be had") as caught:
        fit_speedup(pipe, 50, method, progress=False)
    largest = float(str(caught.value).split("at most ")[1].split()[0])
    assert fit_speedup(pipe, largest, method, progress=False).expected == pytest.approx(largest, rel=0.01)


def test_dense_has_nothing_to_spare(pipe: Pipeline) -> None:
    with pytest.raises(UsageError, match="speedup=2: method 'dense' has nothing to spare"):
        fit_speedup(pipe, 2.0, Dense(), progress=False)
    with pytest.raises(UsageError, match="method 'dense' has nothing to spare"):
        measure_ahead(pipe, Dense(), progress=False)


@pytest.mark.parametrize("name", ["skipvar", "sparsevar:threshold"])
def test_what_the_image_decides_cannot_be_asked_for(pipe: Pipeline, name: str) -> None:
    with pytest.raises(UsageError, match=r"speedup=2: .* decides by the image what is run, .*; choose another"):
        fit_speedup(pipe, 2.0, name, progress=False)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("words", [None, ["house", "tree"]])
def test_a_real_model_is_measured_with_words_that_it_knows(
    tiny_model: Infinity, own_cache: Path, words: list[str] | None
) -> None:
    encoder = None if words is None else WordEncoder(words, {}, TINY.text_channels, layers=1, hidden=8)
    pipe = Pipeline(LoadedModel("tiny", "infinity", tiny_model, encoder, {}), encoder)
    fitted = fit_speedup(pipe, 1.0, "random", pipe.settings(resolution="0.06M"), progress=False)
    assert isinstance(fitted, Fitted) and fitted.dense_seconds > 0 and fitted.expected >= 0.99
    (kept,) = own_cache.iterdir()
    timings = Timings.from_dict(json.loads(kept.read_text())["value"])
    assert set(timings.stages) == {"condition", "prepare", "decode"}
    assert all(len(measured) in (1, 2, 3, 4, 5) for measured in timings.passes.values())


# Times in between, and their files.


def test_times_are_interpolated_and_never_fall() -> None:
    timings = Timings({0: {100: 4.0, 50: 3.0, 10: 3.5}})
    seconds = [timings.pass_seconds(0, tokens) for tokens in (5, 10, 30, 50, 75, 100, 200)]
    assert seconds == [1.75, 3.5, 3.5, 3.5, 3.75, 4.0, 8.0]


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("STEPVAR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "stepvar"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "stepvar"


def test_what_is_saved_is_loaded_under_its_own_key() -> None:
    save("speedup", {"a": "1"}, [1, 2])
    assert load("speedup", {"a": "1"}) == [1, 2] and load("speedup", {"a": "2"}) is None
    path = cache_file("speedup", {"a": "1"})
    path.write_text(path.read_text().replace('"a": "1"', '"a": "2"'))
    assert load("speedup", {"a": "1"}) is None


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", '{"key": {}, "value": {"passes": {"0": {"1": -2}}}}', "both"]
)
def test_damaged_files_are_measured_again(pipe: Pipeline, device: list[Method], damage: str, own_cache: Path) -> None:
    fit_speedup(pipe, 1.5, progress=False)
    (kept,) = own_cache.iterdir()
    stored: Any = json.loads(kept.read_text())
    stored["value"] = {"passes": {"0": {"1": "x"}}, "stages": {}}
    kept.write_text(json.dumps(stored) if damage == "both" else damage)
    device.clear()
    assert fit_speedup(pipe, 1.5, progress=False).expected == pytest.approx(1.5, rel=0.01) and device


def test_without_a_place_to_write_it_is_measured_each_time(
    pipe: Pipeline, device: list[Method], own_cache: Path
) -> None:
    own_cache.write_text("a file where the folder should be")
    fit_speedup(pipe, 1.5, progress=False)
    count = len(device)
    fit_speedup(pipe, 1.5, progress=False)
    assert len(device) == 2 * count
