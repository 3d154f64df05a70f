"""``method="auto"``: which method is chosen for a model and a speed-up, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepvar.core.plan import Plan
from stepvar.core.report import Report, ScaleReport
from stepvar.cost import auto
from stepvar.cost.auto import choices
from stepvar.cost.speedup import Search, fit_speedup
from stepvar.errors import UsageError
from stepvar.methods import METHODS, Compose, Method, Random, SkipLast, StepVAR, make_method, register
from stepvar.pipeline import Pipeline
from tests.cli.conftest import write_model


def row(method: str, psnr: float, **settings: Any) -> dict[str, Any]:
    return {"method": method, "settings": settings, "psnr": psnr}


TABLE = {
    "first": {
        "1.3": [row("random", 36.04, seed=3), row("stepvar", 35.0)],
        "2": [row("skip-last", 31.0), row("stepvar+drop-guidance", 30.0)],
    },
    "second": {"1.5": [row("stepvar", 33.0, structure_weight=1.0)]},
}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "tables", lambda: TABLE)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.from_pretrained(write_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def pipe(small: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A pipeline on a device whose time is the number of tokens and of branches."""
    monkeypatch.setenv("STEPVAR_CACHE", str(tmp_path / "cache"))

    def known_times(self: Search, plan: Plan, method: Method) -> Report:
        scales = tuple(
            ScaleReport(
                step.index, step.grid.shape, step.grid.size, step.grid.size, 1, 1e-6 * step.rows * sum(step.tokens)
            )
            for step in plan.steps
        )
        stages = {"condition": 0.0, "prepare": 0.0} | ({"decode": 1e-4} if method == Method() else {})
        return Report("", "", plan.samples, "cpu", "float32", scales, stages, 0)

    monkeypatch.setattr(Search, "_generate", known_times)
    return small


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("speedup", "expected"),
    [(0.5, Random(seed=3)), (1.3, Random(seed=3)), (1.6, Random(seed=3)), (1.7, SkipLast()), (9, SkipLast())],
)
def test_the_nearest_cost_that_was_compared_decides(speedup: float, expected: Method) -> None:
    """Nearest as a ratio: 1.6 lies nearer to 1.3 than to 2.0."""
    assert choices("first", speedup)[0].method == expected


@pytest.mark.usefixtures("table")
def test_the_order_of_the_table_is_kept_and_the_reason_given() -> None:
    first, second = choices("first", 1.3)
    assert (first.method, second.method) == (Random(seed=3), StepVAR())
    assert first.reason == "nearest to dense of 2 methods compared, baselines aside, at 1.3 times on first (36.0 dB)"
    assert second.reason == "number 2 of 2 methods compared, baselines aside, at 1.3 times on first (35.0 dB)"
    assert choices("second", 3.0)[0].method == StepVAR(structure_weight=1.0)
    assert isinstance(choices("first", 2.0)[1].method, Compose)


@pytest.mark.usefixtures("table")
def test_a_model_without_a_table_takes_another_ones_and_says_so() -> None:
    found = choices("Infinity-2B", 1.3)[0]
    assert found.method == Random(seed=3)
    assert "on first, since no comparison was made on Infinity-2B" in found.reason


def test_the_table_that_ships_can_be_read() -> None:
    """Written by the benchmark: known methods, settings that they take, the best first."""
    tables: Mapping[str, Any] = auto.tables()
    assert "scenes" in tables
    for costs in tables.values():
        for rows in costs.values():
            assert rows and all(make_method(row["method"], **row["settings"]) for row in rows)
            assert [row["psnr"] for row in rows] == sorted((row["psnr"] for row in rows), reverse=True)
    assert choices("scenes", 1.6)[0].method.speedup_settings


@pytest.mark.usefixtures("table")
def test_what_the_loop_has_to_gain_decides_where_an_image_was_asked_for(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where decoding takes its time, 1.5 times of an image are more of the loop: there another table is nearer."""
    plain = Search._generate

    def with_slow_decoding(self: Search, plan: Plan, method: Method) -> Report:
        report = plain(self, plan, method)
        return replace(report, stages=report.stages | ({"decode": 1e-3} if "decode" in report.stages else {}))

    monkeypatch.setattr(Search, "_generate", with_slow_decoding)
    monkeypatch.setattr(pipe, "name", "first")
    asked = fit_speedup(pipe, 1.5, Random(seed=3), progress=False)
    assert asked.loop > (1.3 * 2) ** 0.5 > asked.expected
    assert "aside, at 2 times on first" in fit_speedup(pipe, 1.5, "auto", progress=False).reason
    assert "aside, at 1.3 times" in fit_speedup(pipe, 1.5, "auto", scope="scales", progress=False).reason


@pytest.mark.usefixtures("table")
def test_what_cannot_serve_makes_room_for_the_next(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "name", "first")
    asked = fit_speedup(pipe, 1.2, Random(seed=3), scope="scales", progress=False)
    fitted = fit_speedup(pipe, 1.2, "auto", scope="scales", progress=False)
    assert fitted.method == asked.method and fitted.expected == asked.expected
    assert fitted.reason == choices("first", 1.2)[0].reason and asked.reason == ""
    assert str(fitted).endswith(f"\nauto: random, {fitted.reason}")
    assert fitted.to_dict()["chosen"] == f"random: {fitted.reason}" and "chosen" not in asked.to_dict()

    def refuse(self: Random, *_: Any) -> Any:
        raise UsageError("not on this model")

    monkeypatch.setattr(Random, "check", refuse)
    assert fit_speedup(pipe, 1.2, "auto", scope="scales", progress=False).method.name == "stepvar"
    monkeypatch.setattr(StepVAR, "check", refuse)
    with pytest.raises(UsageError, match="not on this model"):
        fit_speedup(pipe, 1.2, "auto", scope="scales", progress=False)


def test_a_call_reports_what_was_chosen_and_why(pipe: Pipeline) -> None:
    output = pipe("a red circle", method="auto", speedup=1.1, seed=1, progress=False)
    assert output.report.method != "auto" and f"on {pipe.name}" in output.report.chosen
    assert output.report.to_dict()["chosen"] == output.report.chosen
    assert pipe("a red circle", method="stepvar", seed=1, progress=False).report.chosen == ""
    assert pipe.for_speedup(1.1, "auto", progress=False).reason == output.report.chosen


def test_it_needs_a_speed_up() -> None:
    with pytest.raises(UsageError, match=r"method 'auto': is chosen for a speed-up; give one, too, such as 1.5"):
        make_method("auto")


def test_no_method_may_have_the_name() -> None:
    kind = type("Auto", (StepVAR,), {"name": "auto", "__dataclass_params__": None})
    with pytest.raises(UsageError, match="name='auto' is reserved; give it another"):
        register(kind)
    assert "auto" not in METHODS
