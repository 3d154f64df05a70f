"""Work counted from shapes, against what runs count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan
from stepvar.core.report import Recorder, Report
from stepvar.generation import generate
from stepvar.methods import METHODS, FastVAR, HighPass, Method, make_method
from stepvar.models.blocks import planned_works
from stepvar.models.infinity import TextCondition
from stepvar.models.var import ClassCondition
from stepvar.models.work import ScaleWork, feed_forward_work, self_attention_work
from tests.helpers import SQUARE, TINY, WIDE, make_model, make_settings, make_text, make_var
from tests.methods.families import LENGTHS as LENGTHS_OF_ROWS
from tests.methods.families import ROWS, FamilyRow

LENGTHS = (5, 3)
CHOSEN = [*map(make_method, METHODS), HighPass(keep=(0.3, 0.2), blocks_before=1), FastVAR((0.5,), 1, 1, 1)]


def counted(model: Any, plan: Plan, method: Method, samples: int, text: int = 0) -> list[ScaleWork]:
    """The work of every scale that a method runs."""
    return [work for _, work in planned_works(model, method.edit(plan), method, samples, text)]


def reported(model: Any, condition: Any, plan: Plan, method: Method, samples: int) -> Report:
    recorder = Recorder()
    generate(model, condition, samples, plan, method, SeededNoise(range(samples)), recorder)
    return recorder.report("tiny", str(method), samples, model.dtype)


@pytest.mark.parametrize("method", CHOSEN, ids=repr)
@pytest.mark.parametrize("guidance", [3.0, 1.0, (3.0, 3.0, 3.0, 1.0, 1.0, 1.0)], ids=["guided", "plain", "early"])
@pytest.mark.parametrize("patchify", [False, True])
def test_infinity_runs_what_was_counted(method: Method, guidance: Any, patchify: bool) -> None:
    model, plan = make_model(replace(TINY, patchify=patchify)), make_settings(WIDE, guidance)
    report = reported(model, TextCondition(make_text(LENGTHS)), plan, method, len(LENGTHS))
    works = counted(model, plan, method, len(LENGTHS), text=max(LENGTHS))
    assert [work.flops for work in works] == [scale.flops for scale in report.scales]


@pytest.mark.parametrize("method", CHOSEN, ids=repr)
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("guidance", [3.0, 1.0, (3.0, 3.0, 1.0, 1.0, 1.0)], ids=["guided", "plain", "early"])
def test_var_runs_what_was_counted(method: Method, guidance: Any, smooth: bool) -> None:
    model, plan = make_var(), make_settings(SQUARE, guidance, smooth=(0.5,) * 5 if smooth else ())
    report = reported(model, ClassCondition((1, 2)), plan, method, 2)
    works = counted(model, plan, method, 2)
    assert [work.flops for work in works] == [scale.flops for scale in report.scales]


def test_guidance_in_the_stack_is_counted() -> None:
    model, plan = make_model(), make_settings(WIDE, 3.0, cfg_layers=(-2,))
    method = make_method("stepvar")
    report = reported(model, TextCondition(make_text((4,))), plan, method, 1)
    assert [w.flops for w in counted(model, plan, method, 1, text=4)] == [scale.flops for scale in report.scales]


def test_operations_of_sublayers_by_hand() -> None:
    # 6 tokens of 4 channels: three projections in and one out, 4 x 4 each; scores and sums over 10 tokens.
    assert self_attention_work(2, 3, 4, seen=10).flops == 2 * 6 * (4 * 16) + 2 * 6 * 2 * 10 * 4
    assert feed_forward_work(2, 3, 4, hidden=16).flops == 2 * 6 * 2 * 4 * 16


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("name", ["dense", "stepvar", "skip-last", "drop-guidance"])
def test_every_family_runs_what_was_counted(row: FamilyRow, name: str) -> None:
    model, plan, method = row.model(), make_settings(row.schedule), make_method(name)
    report = reported(model, row.condition(range(1)), plan, method, 1)
    works = counted(model, plan, method, 1, text=LENGTHS_OF_ROWS[0])
    assert [work.flops for work in works] == [scale.flops for scale in report.scales]
