"""What images show: questions one by one, and the distance of all images to real ones."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.leaderboard import __main__ as board
from benchmarks.leaderboard import tables
from benchmarks.leaderboard.judged import judged, markdown
from benchmarks.leaderboard.sets import LEAST, Sums, kernel_distances
from stepvar.errors import UsageError
from stepvar.evaluation.metrics.distribution import kernel_distance
from stepvar.evaluation.metrics.learned import Unavailable
from stepvar.evaluation.prompts import Prompt, PromptSet
from stepvar.evaluation.run import RENDERS

COUNT, CHANNELS = 40, 16
CPU = torch.device("cpu")


def stored(values: NDArray[np.float64]) -> str:
    return base64.b64encode(values.astype("<f2").tobytes()).decode()


def features(rows: dict[Any, Any]) -> NDArray[np.float64]:
    found = [np.frombuffer(base64.b64decode(row["features"]), "<f2") for row in rows.values()]
    return np.stack(found).astype(np.float64)


def images(shift: float, seeds: int = 1, number: int = 0, count: int = COUNT) -> dict[Any, Any]:
    random = np.random.default_rng(number)
    return {
        (f"{prompt:05d}", seed): {"features": stored(random.normal(shift, 1, CHANNELS)), "right": {}}
        for prompt in range(count)
        for seed in range(seeds)
    }


def test_with_an_image_per_prompt_it_is_the_matched_kernel_distance() -> None:
    real, dense, other = images(0.0, number=1), images(0.1, number=2), images(0.5, number=3)
    found = kernel_distances({"dense": dense, "other": other}, real, "dense")
    own, shown = (torch.from_numpy(features(rows)) for rows in (other, real))
    assert found["other"]["mean"] == pytest.approx(kernel_distance(own, shown, matched=True), rel=1e-9)
    assert found["dense"]["against_dense"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "count": COUNT}
    against = found["other"]["against_dense"]
    assert against["low"] > 0 and against["mean"] == pytest.approx(found["other"]["mean"] - found["dense"]["mean"])


def test_sums_are_over_pairs_of_different_prompts_as_often_as_chosen() -> None:
    """Against two loops over all images, with the first prompt taken twice and the last one not at all."""
    rows, real = images(0.2, 2, 4, 5), images(0.0, 1, 5, 5)
    prompts = [f"{prompt:05d}" for prompt in range(5)]
    often = dict(zip(prompts, [2, 1, 1, 1, 0], strict=True))
    total = pairs = 0.0
    for (one, _), x in zip(rows, features(rows), strict=True):
        for (other, _), y in zip(real, features(real), strict=True):
            if one != other:
                weight = often[one] * often[other]
                total, pairs = total + weight * (x @ y / CHANNELS + 1) ** 3, pairs + weight
    chosen = np.array([list(often.values())], dtype=np.float64)
    assert Sums(rows, real, prompts).means(chosen) == pytest.approx([total / pairs])


def test_the_interval_is_as_wide_as_chance_makes_the_distance() -> None:
    """It holds the true distance of 0 nearly always, and its width is that of many such draws."""
    found = [
        kernel_distances({"dense": images(0.0, number=2 * draw)}, images(0.0, number=2 * draw + 1), "dense")["dense"]
        for draw in range(60)
    ]
    held = np.mean([one["low"] <= 0 <= one["high"] for one in found])
    width = np.mean([one["high"] - one["low"] for one in found])
    assert held >= 0.8 and 0.6 < width / (2 * 1.96 * np.std([one["mean"] for one in found])) < 1.7


def test_images_of_one_prompt_count_as_one_choice() -> None:
    """Every image twice, beside real ones whose second seeds show something else: nothing changes."""
    real, once = images(0.0, number=1), images(0.3, number=2)
    twice = {(prompt, seed): row for (prompt, _), row in once.items() for seed in range(2)}
    shown = real | {(prompt, 1): row for (prompt, _), row in images(5.0, number=3).items()}
    one = kernel_distances({"dense": once}, real, "dense")["dense"]
    two = kernel_distances({"dense": twice}, shown, "dense")["dense"]
    names = ("mean", "low", "high")
    assert [one[name] for name in names] == pytest.approx([two[name] for name in names])
    assert (one["count"], two["count"]) == (COUNT, 2 * COUNT)


def test_what_is_missing_is_missing_on_both_sides() -> None:
    dense, real = images(0.1, number=2), images(0.0, number=1)
    half = dict(list(dense.items())[: COUNT // 2])
    few = dict(list(dense.items())[: LEAST - 1])
    del real["00003", 0]
    real["00003", 1] = next(iter(images(0.0, number=9).values()))  # its other seed is there
    found = kernel_distances({"dense": dense, "half": half, "few": few}, real, "dense")
    assert found["half"]["against_dense"]["mean"] == 0.0 and found["half"]["count"] == COUNT // 2
    assert found["dense"]["count"] == COUNT and "few" not in found


def answered(garment: list[bool], shift: float = 0.0) -> dict[Any, Any]:
    return {
        key: {"right": {"garment": right, "colour": True}, "gram": 0.25, "features": row["features"]}
        for right, (key, row) in zip(garment, images(shift).items(), strict=True)
    }


def test_each_question_is_set_against_dense() -> None:
    rows = {
        "dense": answered([True] * 30 + [False] * 10, 0.1),
        RENDERS: answered([True] * 40),
        "stepvar@1.6": answered([True] * 20 + [False] * 20, 0.5),
        "high-pass@1.6": answered([True] * 29 + [False, True] + [False] * 9, 0.1),
    }
    found = judged(rows, ["stepvar@1.6", "high-pass@1.6", "not run"])
    assert set(found) == set(rows) and found["stepvar@1.6"]["all"]["mean"] == 0.75
    lines = markdown(found, ["stepvar@1.6", "high-pass@1.6", "not run"]).splitlines()
    assert lines[0].startswith("| images of | garment | colour | accuracy | distance to real images, thousandths |")
    assert lines[0].endswith("| Gram distance to dense |") and len(lines) == 6
    assert lines[2].startswith("| real images | 100 % (**+25.0**) | 100 % (+0.0) | 100 % (**+12.5**) |  |")
    distance = 1000 * found["dense"]["distance"]["mean"]
    assert lines[3].startswith(f"| `dense` | 75 % | 100 % | 88 % | {distance:.1f} |")
    farther = 1000 * found["stepvar@1.6"]["distance"]["against_dense"]["mean"]
    assert lines[4].startswith("| `stepvar` at 1.6 | 50 % (**-25.0**) | 100 % (+0.0) | 75 % (**-12.5**) |")
    assert farther > 10 and f" (**+{farther:.2f}**) | 0.25 |" in lines[4]
    assert lines[5].startswith("| `high-pass` at 1.6 | 75 % (+0.0) |") and "(+0.00) | 0.25 |" in lines[5]


def test_some_images_without_a_verdict_or_features() -> None:
    rows = {"dense": answered([True] * 40), RENDERS: answered([True] * 40), "a@2": answered([False] * 40)}
    rows["a@2"]["00000", 0] = {}
    found = judged(rows, ["a@2"])
    assert found["a@2"]["garment"]["count"] == 39 and "distance" not in found["a@2"] and "distance" in found["dense"]


def test_where_nothing_is_asked_nothing_is_said() -> None:
    plain: dict[Any, Any] = {("x", 0): {"psnr": 1.0}}
    assert judged({"dense": plain, "a": plain}, ["a"]) == {}
    many: dict[Any, Any] = {("x", 0): {"right": {str(number): True for number in range(11)}}}
    assert judged({"dense": many}, []) == {}


def test_pages_can_include_that_part_alone() -> None:
    rows = {"dense": answered([True] * 40), "a@1.6": answered([False] * 40), "b@1.3": answered([False] * 40)}
    mean = {"mean": 30.0, "low": 29.0, "high": 31.0, "count": 8}
    own = {"psnr": mean, "ssim": mean, "cache": 1, "accuracy": {}}
    entries = [{"label": label, "budget": at, "speedup": at, **own} for label, at in (("a@1.6", 1.6), ("b@1.3", 1.3))]
    result = {"settings": {"budgets": [1.6], "cache": 1, "dtype": "float32"}, "entries": entries, "leaders": {}}
    text = tables.markdown(result | {"judged": judged(rows, ["a@1.6", "b@1.3"]), "images": 40, "dense_accuracy": None})
    before, _, part = text.partition(tables.SECTION)
    part = part.partition(tables.SECTION_END)[0]
    assert "### 1.6 times" in before and part.index("`b` at 1.3") < part.index("| `a` at 1.6 | 0 % (**-100.0**) |")


def given(*more: str) -> Any:
    return board.parser().parse_args(["--out", "x", *more])


def test_a_judge_needs_its_photographs() -> None:
    with pytest.raises(UsageError, match="judge and photographs: one needs the other"):
        board.measures_of(PromptSet("none", ()), CPU, given("--judge", "probe.safetensors"))


def test_networks_measure_images_or_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "load_gram", lambda device: "gram")
    monkeypatch.setattr(board, "load_cvvdp", lambda device, fps: f"cvvdp {fps}")
    prompts = PromptSet("mine", (Prompt("a", "a red hat"),))
    found: Any = board.measures_of(prompts, CPU, given("--learned", "gram", "cvvdp"))
    assert found.distances == {"gram": "gram"} and found.clip_distances == {"cvvdp": "cvvdp 1"} and not found.domain
    assert board.measures_of(prompts, CPU, given()).distances == {}
    monkeypatch.setattr(board, "load_gram", lambda device: Unavailable("needs a package"))
    with pytest.raises(UsageError, match="learned gram: not available: needs a package"):
        board.measures_of(prompts, CPU, given("--learned", "gram"))


def test_all_prompts_are_looked_for_before_anything_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    class Judge:
        @classmethod
        def load(cls, probe: Path, photographs: Path, device: torch.device) -> Judge:
            return cls()

        def check(self, prompts: tuple[Prompt, ...]) -> None:
            raise UsageError(f"{len(prompts)} prompts")

    monkeypatch.setattr("training.wardrobe.judge.PhotographJudge", Judge)
    prompts = PromptSet("mine", (Prompt("a", "a red hat"), Prompt("b", "a cat")))
    with pytest.raises(UsageError, match="2 prompts"):
        board.measures_of(prompts, CPU, given("--judge", "p", "--photographs", "f"))
