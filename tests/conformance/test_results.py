"""Comparing tensors, and what is said of the outcome."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from stepvar.conformance import GoldenResult, results_table, skipped_lines, verdict
from stepvar.conformance.golden import Golden
from stepvar.conformance.results import GROUPS, compare, limits


def test_pixels_may_be_one_level_apart() -> None:
    stored = torch.tensor([0, 100, 200, 255, 50], dtype=torch.uint8)
    golden = Golden(Path("g.json"), {}, True, {"img_u8_bgr": stored})
    near = torch.tensor([1, 99, 200, 254, 51], dtype=torch.uint8)
    assert compare(golden, "kind", {"img_u8_bgr": near}, {}).status == "pass"
    far = torch.tensor([255, 102, 200, 0, 51], dtype=torch.uint8)  # bytes must not wrap around
    result = compare(golden, "kind", {"img_u8_bgr": far}, {})
    assert (result.status, result.differing) == ("fail", {"pixels": 3})


def test_worst_error_of_a_group_decides() -> None:
    stored = {f"logits_{index}": torch.zeros(2, 3) for index in range(3)}
    golden = Golden(Path("g.json"), {}, True, stored)
    ours = {"logits_0": torch.full((2, 3), 0.1), "logits_1": torch.zeros(2, 3), "logits_2": torch.full((2, 3), -0.3)}
    result = compare(golden, "kind", ours, {"logits": 0.2})
    assert result.status == "fail" and result.errors == {"logits": pytest.approx(0.3)}
    assert compare(golden, "kind", ours, {"logits": 0.4}).status == "pass"
    for name in ours:  # a NaN is worst, wherever it comes
        broken = compare(golden, "kind", ours | {name: torch.full((2, 3), math.nan)}, {"logits": 0.4})
        assert broken.status == "fail" and math.isnan(broken.errors["logits"])
    shaped = compare(golden, "kind", ours | {"logits_1": torch.zeros(3, 2)}, {"logits": 0.4})
    assert shaped.notes == ("logits_1: shape (3, 2) instead of (2, 3)",)
    assert compare(golden, "kind", {}, {}).notes == ("nothing could be compared",)


def test_unconditional_rows_that_one_side_lacks_are_left_out() -> None:
    golden = Golden(Path("g.json"), {}, True, {"blockout_s2_l0": torch.tensor([[1.0], [2.0], [9.0], [9.0]])})
    assert compare(golden, "kind", {"blockout_s2_l0": torch.tensor([[1.0], [2.0]])}, {"blocks": 0.0}).passed
    assert not compare(golden, "kind", {"blockout_s2_l0": torch.tensor([[1.0], [3.0]])}, {"blocks": 0.0}).passed
    assert not compare(golden, "kind", {"blockout_s2_l0": torch.tensor([[1.0]])}, {"blocks": 0.0}).passed


def test_bounds_follow_the_precision_and_soft_codes() -> None:
    hard = Golden(Path("g.json"), {}, True, {"image": torch.zeros(1)})
    assert limits(hard)["logits"] == 2e-4 and limits(hard)["image"] == 1e-3
    soft = Golden(Path("g.json"), {}, True, {"s00.gumbel_exponential": torch.zeros(1)})
    assert limits(soft)["logits"] == 2e-3 and limits(soft)["image"] == 1e-3
    low = Golden(Path("g.json"), {}, True, soft.tensors, dtype=torch.bfloat16)
    assert limits(low)["logits"] == 0.5 and limits(low).keys() == GROUPS.keys()


def result(name: str, status: str, kind: str = "infinity", *notes: str) -> GoldenResult:
    return GoldenResult(name, kind, status, notes=notes)  # type: ignore[arg-type]


def test_verdict_is_one_line_that_says_yes_or_no() -> None:
    good, bad = result("a", "pass"), result("b", "fail")
    skipped, refused = result("c", "skipped", "tea"), result("d", "not supported", "tea")
    where = "(cpu, float32)"
    for results, line in (
        ([good, good], f"yes: this build reproduces the reference implementations on all 2 goldens {where}"),
        ([good, skipped], f"yes: this build reproduces the reference implementations on all 1 goldens {where}; 1 more"),
        ([good, bad, skipped], f"no: 1 of 2 goldens do not agree or cannot be run {where}: b"),
        ([good, refused], f"no: 1 of 2 goldens do not agree or cannot be run {where}: d"),
        ([skipped], f"no: nothing was compared {where}, 1 goldens were skipped"),
    ):
        assert verdict(results, "cpu, float32").startswith(line)
        assert "\n" not in verdict(results, "cpu, float32")


def test_skipped_goldens_have_a_line_for_each_kind() -> None:
    results = [result(name, "skipped", kind, "why") for name, kind in (("a", "tea"), ("b", "milk"), ("c", "tea"))]
    assert skipped_lines([result("d", "pass"), *results]) == [
        "skipped goldens of kind 'tea' (a, c): why",
        "skipped goldens of kind 'milk' (b): why",
    ]


def test_table_shows_errors_counts_and_notes() -> None:
    results = [
        GoldenResult("a", "infinity", "pass", {"logits": 1.2e-5}, {"bits": 0}),
        GoldenResult("b", "bit tokenizer", "fail", {"image": 0.5}, {"bits": 17}, ("image: too far",)),
        GoldenResult("c", "unknown", "skipped", notes=("no runner",)),
    ]
    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(results_table(results))
    text = capture.get()
    for part in ("1.2e-05", "5.0e-01", "17", "b: image: too far", "skipped", "logits", "bits"):
        assert part in text
    assert "no runner" not in text and "hidden" not in text
