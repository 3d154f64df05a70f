"""What images show: questions one by one, and the distance of all images to real ones."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.leaderboard import __main__ as board
from benchmarks.leaderboard import tables
from benchmarks.leaderboard.judged import judged, markdown
from benchmarks.leaderboard.sets import kernel_distances
from stepvar.errors import UsageError
from stepvar.evaluation.metrics.distribution import kernel_distance
from stepvar.evaluation.run import RENDERS

COUNT, CHANNELS = 40, 16


def stored(values: NDArray[np.float64]) -> str:
    return base64.b64encode(values.astype("<f2").tobytes()).decode()


def images(shift: float, seeds: int = 1, number: int = 0) -> dict[Any, Any]:
    random = np.random.default_rng(number)
    return {
        (f"{prompt:05d}", seed): {"features": stored(random.normal(shift, 1, CHANNELS)), "right": {}}
        for prompt in range(COUNT)
        for seed in range(seeds)
    }


def test_with_an_image_per_prompt_it_is_the_matched_kernel_distance() -> None:
    real, dense, other = images(0.0, number=1), images(0.1, number=2), images(0.5, number=3)
    found = kernel_distances({"dense": dense, "other": other}, real, "dense")
    values = [
        torch.from_numpy(np.stack([np.frombuffer(base64.b64decode(r["features"]), "<f2") for r in rows.values()]))
        for rows in (other, real)
    ]
    expected = kernel_distance(values[0].double(), values[1].double(), matched=True)
    assert found["other"]["mean"] == pytest.approx(expected, rel=1e-9)
    assert found["other"]["low"] < found["other"]["mean"] < found["other"]["high"]
    assert found["dense"]["against_dense"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "count": COUNT}
    against = found["other"]["against_dense"]
    assert against["low"] > 0 and against["mean"] == pytest.approx(found["other"]["mean"] - found["dense"]["mean"])


def test_images_of_one_prompt_count_as_one_choice() -> None:
    """Every image twice: the same distance, and no narrower an interval."""
    real, once = images(0.0, number=1), images(0.3, number=2)
    twice = {(prompt, seed): row for (prompt, _), row in once.items() for seed in range(2)}
    shown = {(prompt, seed): row for (prompt, _), row in real.items() for seed in range(2)}
    one = kernel_distances({"dense": once}, real, "dense")["dense"]
    two = kernel_distances({"dense": twice}, shown, "dense")["dense"]
    assert {name: one[name] for name in ("mean", "low", "high")} == pytest.approx(
        {name: two[name] for name in ("mean", "low", "high")}
    )


def answered(garment: list[bool], colour: bool = True) -> dict[Any, Any]:
    return {
        (f"{place:05d}", 0): {"right": {"garment": right, "colour": colour}, "gram": 0.25, **own}
        for (place, right), own in zip(enumerate(garment), images(0.0).values(), strict=False)
        for own in [{"features": own["features"]}]
    }


def test_each_question_is_set_against_dense() -> None:
    rows = {
        "dense": answered([True] * 30 + [False] * 10),
        RENDERS: answered([True] * 40),
        "stepvar@1.6": answered([True] * 20 + [False] * 20),
        "high-pass@1.6": answered([True] * 29 + [False, True] + [False] * 9),
    }
    found = judged(rows, ["stepvar@1.6", "high-pass@1.6", "not run"])
    assert set(found) == set(rows) and found["stepvar@1.6"]["all"]["mean"] == 0.75
    text = markdown(found, ["stepvar@1.6", "high-pass@1.6"])
    head, _, photographs, dense, stepvar, high_pass = text.splitlines()
    assert head.startswith("| method | garment | colour | all questions | distance to photographs, thousandths |")
    assert head.endswith("| Gram distance to dense |")
    assert photographs.startswith("| the photographs themselves | 100 % (**+25.0**) | 100 % (+0.0) |")
    assert dense.startswith("| dense | 75 % | 100 % | 88 % |")
    assert stepvar.startswith("| `stepvar` at 1.6 | 50 % (**-25.0**) | 100 % (+0.0) | 75 % (**-12.5**) |")
    assert high_pass.startswith("| `high-pass` at 1.6 | 75 % (+0.0) |") and high_pass.endswith("| 0.25 |")


def test_where_nothing_is_asked_nothing_is_said() -> None:
    plain: dict[Any, Any] = {("x", 0): {"psnr": 1.0}}
    assert judged({"dense": plain, "a": plain}, ["a"]) == {}
    many: dict[Any, Any] = {("x", 0): {"right": {str(number): True for number in range(11)}}}
    assert judged({"dense": many}, []) == {}


def test_pages_can_include_that_part_alone() -> None:
    rows = {"dense": answered([True] * 40), "a@1.6": answered([False] * 40)}
    mean = {"mean": 30.0, "low": 29.0, "high": 31.0, "count": 8}
    entry = {"label": "a@1.6", "budget": 1.6, "speedup": 1.6, "psnr": mean, "ssim": mean, "cache": 1, "accuracy": {}}
    result = {"settings": {"budgets": [1.6], "cache": 1, "dtype": "float32"}, "entries": [entry], "leaders": {}}
    text = tables.markdown(result | {"judged": judged(rows, ["a@1.6"]), "images": 40, "dense_accuracy": None})
    before, _, part = text.partition(tables.SECTION)
    assert "### 1.6 times" in before and "| `a` at 1.6 | 0 % (**-100.0**) |" in part.partition(tables.SECTION_END)[0]


def test_a_judge_needs_its_photographs() -> None:
    given = board.parser().parse_args(["--judge", "probe.safetensors", "--out", "x"])
    from stepvar.evaluation.prompts import PromptSet

    nothing = PromptSet("none", ())
    with pytest.raises(UsageError, match="judge and photographs: one needs the other"):
        board.measures_of(nothing, torch.device("cpu"), given)
