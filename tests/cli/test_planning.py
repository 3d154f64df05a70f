"""What a generation will take, from the command line: nothing is fetched, nothing is computed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from stepvar.models.registry import FAMILIES


def numbers(out: str, first: str) -> list[str]:
    """The cells of a row."""
    row = next(line for line in out.splitlines() if re.match(rf"\W*{first}\b", line))
    return row.replace("│", " ").split()


def test_a_video_is_planned_without_its_weights(run: Any) -> None:
    result = run(
        "plan", "--model", "FoundationVision/InfinityStar", "--variant", "720p", "--seconds", 5, "--memory", 80
    )
    assert result.status == 0, result.err
    # The specification's figures for 128 text tokens: 9.26 PFLOP per row and 244,197 tokens, in 85 passes.
    cells = numbers(result.out, "all")
    assert cells[1:4] == ["85", "244197", "244197"]
    assert float(cells[4].replace(",", "")) == pytest.approx(2 * 9260, rel=0.01)
    assert "fits: the device has 80.0 GiB" in result.out
    assert 35 < float(numbers(result.out, "peak")[-1]) < 45
    thin = run("plan", "--model", "FoundationVision/InfinityStar", "--variant", "720p", "--keep", 0.5)
    own, dense = (float(cell.replace(",", "")) for cell in numbers(thin.out, "all")[4:])
    assert own < 0.6 * dense and dense == pytest.approx(float(cells[4].replace(",", "")))
    assert len(numbers(thin.out, "peak")) == 3


def test_what_does_not_fit_fails_with_advice(run: Any) -> None:
    result = run("plan", "--model", "FoundationVision/InfinityStar", "--memory", 24)
    assert result.status == 2 and "the device has 24.0 GiB" in result.err and "smaller variant" in result.err


@pytest.mark.parametrize(
    ("model", "variant", "options", "memory"),
    [
        ("Infinity", "8b", ["--offload", "sequential", "--blocks-on-device", 20], 24),
        ("Infinity", "8b", ["--offload", "model", "--cache-dtype", "int8"], 24),
        pytest.param(
            "InfinityStar",
            "480p",
            ["--offload", "sequential", "--blocks-on-device", 20],
            24,
            marks=pytest.mark.slow,  # the options of the first, the model of the last
        ),
        ("InfinityStar", "720p", ["--offload", "sequential", "--cache-dtype", "int8", "--tile", 20], 32),
    ],
)
def test_options_that_save_memory_make_large_models_fit(
    run: Any, model: str, variant: str, options: list[Any], memory: int
) -> None:
    command = ["plan", "--model", f"FoundationVision/{model}", "--variant", variant, "--memory", memory]
    assert run(*command).status == 2
    result = run(*command, *options)
    assert result.status == 0, result.err
    words = " ".join(result.out.split())
    assert (f"{options[1]} offload" in words) and ("cache int8" in words) == ("int8" in options)
    assert float(numbers(result.out, "weights while decoding")[-1]) < float(numbers(result.out, "weights")[-1])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_release_can_be_planned(run: Any, family: str) -> None:
    """Also dense, which a plan has beside the method."""
    for variant in FAMILIES[family].variants:
        result = run("plan", "--model", FAMILIES[family].repos[0], "--variant", variant, "--method", "stepvar")
        assert result.status == 0 and len(numbers(result.out, "peak")) == 3, result.err


def test_local_models_and_mistakes(run: Any, shared_model: Path) -> None:
    assert run("plan", "--model", shared_model, "--keep", "0.5").status == 0
    for arguments, word in (
        (["--model", "nowhere"], "nowhere"),
        (["--memory", "0"], "memory=0"),
        (["--seconds", "3"], "seconds=3"),
        (["--num-images", "0"], "num-images=0"),
        (["--dtype", "int8"], "int8"),
        (["--cache-dtype", "fp4"], "cache-dtype='fp4': must be int8, or left out"),
        (["--offload", "disk"], "offload='disk': must be one of text-encoder, model, sequential"),
        (["--offload", "model", "--blocks-on-device", "3"], "goes with --offload sequential only"),
        (["--offload", "sequential", "--blocks-on-device", "99"], "blocks_on_device=99: must be from 0 to"),
        (["--offload", "text-encoder"], "has no large text encoder"),
    ):
        result = run("plan", *arguments)
        assert result.status == 2 and word in result.err and result.err.count("\n") == 1


def test_quantised_weights_are_planned(run: Any) -> None:
    model = ("plan", "--model", "FoundationVision/Infinity", "--variant", "8b")
    plain = run(*model)
    own = {kind: run(*model, "--quantization", kind) for kind in ("int8", "fp8")}
    weights, operations = float(numbers(plain.out, "weights")[-1]), numbers(plain.out, "all")
    for kind, result in own.items():
        assert result.status == 0 and f"bfloat16 {kind}" in result.out.replace("\n", " ")
        assert 0.5 < float(numbers(result.out, "weights")[-1]) / weights < 0.62
        assert numbers(result.out, "all") == operations
        assert float(numbers(result.out, "scales")[-1]) < 1.2 * float(numbers(plain.out, "scales")[-1])
    assert run(*model, "--quantization", "int4").status == 2


def test_a_decision_is_planned_with_all_that_may_follow(run: Any) -> None:
    result = run("plan", "--method", "skipvar:ssim-0.88", "--resolution", "0.06M")
    assert result.status == 0, result.err
    assert "decided behind scale 3 (6x6)" in result.out
    names = ("skip 3", "skip 2", "skip 1", "conditional 3", "conditional 2", "conditional 1", "all")
    rows = [next(line for line in result.out.splitlines() if re.match(rf"\W*{name}\b.*%", line)) for name in names]
    shares = [float(row.replace("│", " ").split()[-2]) for row in rows]
    assert shares == sorted(shares) and shares[0] < 20 and 100 < shares[-1] < 120  # small images are decoded, too
    assert float(rows[-1].replace("│", " ").split()[-3]) == float(numbers(result.out, "all")[4])


def test_counts_that_the_image_decides_are_planned_at_most(run: Any) -> None:
    result = run("plan", "--method", "sparsevar:threshold", "--resolution", "0.06M")
    assert result.status == 0 and "kept: at most; sparsevar decides by the image how many" in result.out
    assert "at most" not in run("plan", "--method", "sparsevar", "--resolution", "0.06M").out
