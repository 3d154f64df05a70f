"""What runs behind the page, without the page."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from stepvar.checkpoints import LoadedModel
from stepvar.cost.speedup import Fitted
from stepvar.errors import UsageError
from stepvar.evaluation.comparison import psnr
from stepvar.methods import StepVAR
from stepvar.models.var import VAR
from stepvar.pipeline import Pipeline
from stepvar.serving.web.studio import Progress, Result, Studio, Wish
from stepvar.serving.web.turns import BusyError, Cancelled
from tests.pipeline.test_image_edits import photo, write_edit
from tests.serving.web.conftest import Gate, emptied

WISH = Wish("a red circle on grass", seed=3)


def same(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def result_of(studio: Studio, wish: Wish) -> Result:
    *_, last = studio.generate(wish, Event())
    assert isinstance(last, Result)
    return last


def test_a_picture_follows_every_scale_and_the_last_one_is_the_result(studio: Studio) -> None:
    *steps, result = studio.generate(WISH, Event())
    assert isinstance(result, Result)
    shown = [step.picture for step in steps if isinstance(step, Progress) and step.picture is not None]
    assert len(shown) == len(result.scales) == len(result.output.report.scales)
    assert same(shown[-1], result.output.images[0])
    assert not same(shown[0], shown[-1])


def test_progress_never_goes_back_within_a_generation_and_ends_at_one(studio: Studio) -> None:
    steps = [step for step in studio.generate(WISH, Event()) if isinstance(step, Progress)]
    for name in ("stepvar", "dense"):
        shares = [step.share for step in steps if step.share is not None and step.text.startswith(name)]
        assert shares == sorted(shares) and shares[-1] == 1.0


def test_images_are_those_of_the_pipeline_with_the_same_seed(studio: Studio, pipe: Pipeline) -> None:
    result = result_of(studio, replace(WISH, keep=0.4))
    method = pipe(WISH.prompt, seed=3, method=StepVAR(keep=0.4), progress=False).images[0]
    dense = pipe(WISH.prompt, seed=3, progress=False).images[0]
    assert result.dense is not None and result.psnr == psnr([dense], [method])
    assert same(result.output.images[0], method) and same(result.dense.images[0], dense)
    assert result.output.report.kept < result.dense.report.kept


def test_kept_tokens_are_drawn_for_each_pruned_scale(studio: Studio) -> None:
    result = result_of(studio, replace(WISH, keep=0.25))
    assert [caption for _, caption in result.kept] == ["12×12: 25 %", "16×16: 25 %"]
    assert result_of(studio, replace(WISH, method="dense")).kept == []


@pytest.mark.parametrize("wish", [replace(WISH, compare=False), replace(WISH, method="dense")])
def test_without_a_comparison_one_generation_runs(studio: Studio, wish: Wish) -> None:
    result = result_of(studio, wish)
    assert result.dense is None and result.psnr is None


def test_without_previews_no_picture_is_decoded_on_the_way(studio: Studio) -> None:
    *steps, result = studio.generate(replace(WISH, previews=False), Event())
    assert isinstance(result, Result) and result.scales == []
    assert all(step.picture is None for step in steps if isinstance(step, Progress))


def test_a_random_seed_is_one_seed_for_both_generations(studio: Studio) -> None:
    result = result_of(studio, replace(WISH, seed=None))
    assert result.dense is not None and result.output.seeds == result.dense.seeds == (result.seed,)


def test_a_negative_prompt_and_an_aspect_ratio_reach_the_model(studio: Studio) -> None:
    plain, other = result_of(studio, WISH), result_of(studio, replace(WISH, negative_prompt="a blue star"))
    assert not same(plain.output.images[0], other.output.images[0])
    wide = result_of(studio, replace(WISH, aspect_ratio=2.0)).output.images[0]
    assert wide.width == 2 * wide.height


def test_a_speedup_is_asked_of_the_pipeline_and_decides_the_settings(
    studio: Studio, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def for_speedup(speedup: float, method: str, **more: Any) -> Fitted:
        asked.append((speedup, method))
        return Fitted(StepVAR(keep=0.3, last=1), speedup, speedup, "image", 1.0, speedup)

    monkeypatch.setattr(pipe, "for_speedup", for_speedup)
    result = result_of(studio, replace(WISH, budget="speedup", speedup=1.7))
    assert asked == [(1.7, "stepvar")]
    assert result.output.report.settings["keep"] == 0.3 and result.output.report.settings["last"] == 1


def test_words_that_the_model_ignores_are_noted(studio: Studio) -> None:
    for word in ("fluffy", "furry"):  # though Python shows a warning of one place once
        (note,) = result_of(studio, replace(WISH, prompt=f"a {word} red circle")).notes
        assert word in note
    assert result_of(studio, WISH).notes == []


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish("  "), "prompt: is empty"),
        (replace(WISH, seed=-1), "seed=-1"),
        (replace(WISH, method="no-such"), "no-such"),
        (replace(WISH, aspect_ratio=9.0), "aspect_ratio=9"),
        (replace(WISH, keep=0.0), "keep=0"),
    ],
)
def test_what_cannot_be_generated_is_said_and_the_next_one_runs(studio: Studio, wish: Wish, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        list(studio.generate(wish, Event()))
    assert result_of(studio, WISH).output.images


def test_a_cancelled_request_ends_behind_its_scale(studio: Studio) -> None:
    stop, pictures = Event(), 0
    with pytest.raises(Cancelled):
        for step in studio.generate(WISH, stop):
            pictures += isinstance(step, Progress) and step.picture is not None
            stop.set()
    assert pictures <= 2
    assert result_of(studio, WISH).output.images


def test_a_visitor_who_cancels_is_answered_at_once_though_the_work_cannot_stop_yet(studio: Studio, gate: Gate) -> None:
    events = studio.generate(WISH, stop := Event())
    next(events)
    assert gate.reached.wait(60)
    stop.set()
    with pytest.raises(Cancelled):
        list(events)
    assert studio.turns.length == 1
    gate.open()
    emptied(studio)


def test_work_ends_when_nobody_takes_its_results(studio: Studio, gate: Gate) -> None:
    events = studio.generate(WISH, stop := Event())
    next(events)
    assert gate.reached.wait(60)
    events.close()  # type: ignore[attr-defined]
    assert stop.is_set()
    gate.open()
    emptied(studio)


def test_requests_wait_for_their_turn_and_one_too_many_is_refused(studio: Studio, gate: Gate) -> None:
    results: list[Result] = []
    first = threading.Thread(target=lambda: results.append(result_of(studio, WISH)))
    first.start()
    assert gate.reached.wait(60)
    second = studio.generate(WISH, Event())
    assert next(second) == Progress("Waiting: 1 ahead of you")
    with pytest.raises(BusyError, match="1 requests wait already"):
        next(studio.generate(WISH, Event()))
    gate.open()
    *_, last = second
    first.join(60)
    assert isinstance(last, Result) and same(last.output.images[0], results[0].output.images[0])


def test_one_that_waits_can_be_cancelled(studio: Studio, gate: Gate) -> None:
    first = threading.Thread(target=lambda: result_of(studio, WISH))
    first.start()
    assert gate.reached.wait(60)
    waiting = studio.generate(WISH, stop := Event())
    next(waiting)
    stop.set()
    with pytest.raises(Cancelled):
        next(waiting)
    emptied(studio, left=1)
    gate.open()
    first.join(60)


def test_a_model_of_classes_generates_a_class(tiny_var: VAR) -> None:
    studio = Studio(Pipeline(LoadedModel("tiny-var", "var", tiny_var, None, {}), None))
    result = result_of(studio, Wish("3", seed=1))
    assert same(result.output.images[0], studio.pipe(class_labels=3, seed=1, method="stepvar").images[0])
    studio.close()


def test_an_edit_shows_the_size_of_its_image_at_every_scale(tmp_path: Path) -> None:
    studio = Studio(Pipeline.from_pretrained(write_edit(tmp_path / "edit")))
    assert studio.images.edits and len(studio.images.shapes) == 1
    wish = Wish("make the sky red", seed=1, image=photo())
    result = result_of(studio, wish)
    assert {picture.size for picture, _ in result.scales} == {result.output.images[0].size} == {(40, 25)}
    assert result.dense is not None and result.psnr is not None and result.kept
    with pytest.raises(UsageError, match="image"):
        result_of(studio, replace(wish, image=None))
    studio.close()
