"""Generating from the command line: files, metadata, reports, comparisons."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stepvar import Pipeline, StepVAR
from stepvar.errors import UsageError
from stepvar.evaluation.comparison import compare, psnr
from stepvar.evaluation.statistics import Spread
from stepvar.media.metadata import read_metadata

PROMPT = "a large red circle on grass"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture
def generate(run, shared_model):
    def call(*arguments):
        result = run("generate", "--model", shared_model, *arguments)
        assert result.status == 0, result.err
        return result

    return call


def test_writes_an_image_and_says_so(generate, tmp_path: Path) -> None:
    result = generate(PROMPT, "--seed", 7)
    assert pixels(tmp_path / "scene.png").shape == (32, 32, 3)
    assert "scene.png: 32x32, seed 7" in result.out
    assert result.err == ""


def test_a_seed_gives_the_same_file(generate, tmp_path: Path) -> None:
    for name, seed in (("a.png", 3), ("b.png", 3), ("c.png", 4)):
        generate(PROMPT, "--seed", seed, "--out", name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "c.png"))


def test_the_seed_chosen_at_random_is_told_and_repeats(generate, tmp_path: Path) -> None:
    result = generate(PROMPT, "--out", "first.png")
    (seed,) = re.findall(r"seed (\d+)", result.out)
    generate(PROMPT, "--out", "again.png", "--seed", seed)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_keeping_all_tokens_is_dense_and_keeping_few_is_not(generate, tmp_path: Path) -> None:
    generate(PROMPT, "--seed", 1, "--method", "dense", "--out", "dense.png")
    generate(PROMPT, "--seed", 1, "--keep", 1, "--out", "all.png")
    generate(PROMPT, "--seed", 1, "--keep", 0.1, "--out", "few.png")
    assert np.array_equal(pixels(tmp_path / "dense.png"), pixels(tmp_path / "all.png"))
    assert not np.array_equal(pixels(tmp_path / "dense.png"), pixels(tmp_path / "few.png"))


def test_several_prompts_and_images_are_numbered(generate, tmp_path: Path) -> None:
    generate(PROMPT, "a blue star on snow", "--num-images", 2, "--seed", 5, "--out", "many.png")
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"many-{i}.png" for i in range(1, 5)]
    info = [read_metadata(tmp_path / f"many-{i}.png") for i in range(1, 5)]
    assert [fact["seed"] for fact in info] == ["5", "6", "7", "8"]
    assert [fact["prompt"] for fact in info] == [PROMPT] * 2 + ["a blue star on snow"] * 2
    generate("a blue star on snow", "--seed", 7, "--out", "alone.png")
    alone, batched = pixels(tmp_path / "alone.png"), pixels(tmp_path / "many-3.png")
    assert np.abs(alone.astype(int) - batched.astype(int)).max() <= 1


def test_metadata_says_how_to_generate_it_again(run, generate, tmp_path: Path) -> None:
    options = ("--seed", 2, "--keep", 0.25, "--last", 1, "--set", "scope=block", "--temperature", "0.9")
    generate(PROMPT, *options, "--negative-prompt", "a café at night")
    info = read_metadata(tmp_path / "scene.png")
    assert {key: info[key] for key in ("prompt", "seed", "model", "method", "temperature")} == {
        "prompt": PROMPT,
        "seed": "2",
        "model": "tiny",
        "method": "stepvar",
        "temperature": "0.9",
    }
    settings = json.loads(info["method_settings"])
    assert (settings["keep"], settings["last"], settings["scope"]) == (0.25, 1, "block")
    assert info["negative_prompt"] == "a café at night"
    assert "guidance_scale" not in info
    assert info.pop("repeat")
    shown = run("info", "scene.png")
    assert shown.status == 0
    assert all(re.search(rf"^{key} +{re.escape(value)}$", shown.out, re.M) for key, value in info.items())


@pytest.mark.parametrize("options", [("--offload", "model"), ("--offload", "sequential", "--blocks-on-device", 1)])
def test_offloaded_weights_give_the_same_image(generate, tmp_path: Path, options: tuple[Any, ...]) -> None:
    generate(PROMPT, "--seed", 1, "--out", "plain.png")
    generate(PROMPT, "--seed", 1, *options, "--out", "offloaded.png", "--preview", "preview.png")
    assert np.array_equal(pixels(tmp_path / "plain.png"), pixels(tmp_path / "offloaded.png"))
    generate(PROMPT, "--seed", 1, *options, "--compare", "--runs", 1, "--out", "compared.png")


def test_a_smaller_cache_and_slices(generate, tmp_path: Path) -> None:
    generate(PROMPT, "--seed", 1, "--num-images", 2, "--out", "plain.png")
    generate(PROMPT, "--seed", 1, "--num-images", 2, "--cache-dtype", "int8", "--vae-slicing", "--out", "small.png")
    for index in (1, 2):
        plain, small = (pixels(tmp_path / f"{name}-{index}.png").astype(int) for name in ("plain", "small"))
        assert np.abs(plain - small).mean() < 30


def test_report_has_the_right_totals(generate, tmp_path: Path) -> None:
    generate(PROMPT, "--keep", "0.5,0.25", "--report", "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [scale["tokens"] for scale in report["scales"]] == [1, 4, 16, 36, 64, 144, 256]
    assert [scale["kept"] for scale in report["scales"]] == [1, 4, 16, 36, 64, 72, 64]
    totals = report["totals"]
    assert (totals["tokens"], totals["kept"]) == (521, 257)
    assert totals["flops"] == sum(scale["flops"] for scale in report["scales"]) > 0
    assert totals["seconds"] == pytest.approx(
        sum(scale["seconds"] for scale in report["scales"]) + sum(report["stages"].values())
    )


def test_options_reach_the_pipeline(generate, shared_model: Path, tmp_path: Path) -> None:
    generate(
        *(PROMPT, "--seed", 1, "--method", "random", "--set", "seed=3", "--set", "blocks-before=1"),
        *("--guidance-scale", "1,1,1,2,2,3,3", "--top-k", 1, "--aspect-ratio", "3:2", "--resolution", "0.06M"),
        *("--report", "report.json", "--dtype", "bfloat16"),
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["method"], report["dtype"], report["schedule"]) == ("random", "bfloat16", "0.06M 0.666")
    assert pixels(tmp_path / "scene.png").shape == (28, 42, 3)
    info = read_metadata(tmp_path / "scene.png")
    assert json.loads(info["guidance_scale"]) == [1, 1, 1, 2, 2, 3, 3]
    assert json.loads(info["method_settings"])["seed"] == 3


def test_quiet_prints_nothing(generate, tmp_path: Path) -> None:
    result = generate(PROMPT, "--quiet")
    assert (result.out, result.err) == ("", "")
    assert (tmp_path / "scene.png").is_file()


def test_preview_shows_every_scale(generate, tmp_path: Path) -> None:
    generate(PROMPT, "--seed", 1, "--preview", "preview.png")
    generate(PROMPT, "--seed", 1, "--preview", "short.png", "--method", "skip-last", "--set", "count=3")
    whole, short = (Image.open(tmp_path / name) for name in ("preview.png", "short.png"))
    assert whole.width > 7 * 384 > short.width > 4 * 384


def test_unknown_words_warn_once_in_one_line(generate) -> None:
    result = generate("a quick red circle", "--compare", "--runs", 1)
    assert result.err.startswith("stepvar: warning: ") and result.err.count("\n") == 1
    assert "quick" in result.err
    assert "quick" in generate("a quick red circle").err  # each command warns again


def test_compare_writes_a_sheet_and_the_numbers(generate, tmp_path: Path) -> None:
    result = generate(
        PROMPT, "--compare", "--runs", 2, "--keep", 0.25, "--last", 1, "--report", "numbers.json", "--seed", 1
    )
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["token_share"] == pytest.approx(329 / 521)
    assert 0 < numbers["flop_share"] < 1
    assert 5 < numbers["psnr"] < 60
    assert len(numbers["dense_seconds"]) == len(numbers["method_seconds"]) == numbers["runs"] == 2
    assert f"{numbers['speedup']['median']:.2f} (" in result.out
    assert "329" in result.out
    assert Image.open(tmp_path / "scene.png").width > 4 * 384  # dense, stepvar, difference, one map
    assert read_metadata(tmp_path / "scene.png")["prompt"] == PROMPT


def test_compare_with_equal_images_is_valid_json(generate, tmp_path: Path) -> None:
    result = generate(PROMPT, "--compare", "--runs", 1, "--keep", 1, "--report", "numbers.json")
    assert json.loads((tmp_path / "numbers.json").read_text())["psnr"] is None
    assert "infinite" in result.out


def test_compare_takes_times_from_the_reports_round_by_round(shared_model: Path) -> None:
    pipe, calls = Pipeline.from_pretrained(shared_model), []

    class Watched:
        inputs = pipe.inputs

        def __call__(self, *arguments, **settings):
            output = pipe(*arguments, **settings)
            calls.append((settings["method"].name, settings["seed"], output.report.seconds))
            return output

    result = compare(Watched(), PROMPT, StepVAR(), seed=9, runs=2, warmup=1)  # type: ignore[arg-type]
    assert [name for name, _, _ in calls] == ["dense", "stepvar", "dense", "stepvar", "stepvar", "dense"]
    assert {seed for _, seed, _ in calls} == {9}
    assert result.dense_seconds == (calls[2][2], calls[5][2])
    assert result.other_seconds == (calls[3][2], calls[4][2])
    ratios = [calls[2][2] / calls[3][2], calls[5][2] / calls[4][2]]
    assert result.speedup == Spread.of(ratios)
    for runs, warmup, said in ((0, 1, "runs=0"), (1, -1, "warmup=-1")):
        with pytest.raises(UsageError, match=said):
            compare(pipe, PROMPT, "stepvar", 0, runs=runs, warmup=warmup)


def test_demo_writes_both_files_and_prints_the_table(run, shared_model: Path, tmp_path: Path) -> None:
    result = run("demo", "--model", shared_model, "--runs", 2, "--out", "shown.png")
    assert result.status == 0 and result.err == ""
    numbers = json.loads((tmp_path / "shown.json").read_text())
    assert numbers["runs"] == 2 and numbers["speedup"]["min"] <= numbers["speedup"]["median"]
    assert numbers["method_report"]["method"] == "stepvar"
    assert numbers["prompt"] == read_metadata(tmp_path / "shown.png")["prompt"]
    assert all(word in result.out for word in ("dense", "stepvar", "speed-up", "shown.png", "shown.json"))


def test_psnr_of_known_images() -> None:
    a, b = (Image.new("RGB", (32, 32), (level,) * 3) for level in (100, 110))
    assert psnr([a], [b]) == pytest.approx(28.1308, abs=1e-4)  # 20 log10(255 / 10)
    assert psnr([a, a], [a, b]) == pytest.approx(28.1308 + 3.0103, abs=1e-3)  # half the error
    assert psnr([a], [a]) == float("inf")


def test_quantised_weights_are_noted_in_file_and_report(generate, tmp_path: Path) -> None:
    options = ("--quantization", "int8", "--dtype", "bfloat16", "--report", "report.json")
    result = generate(PROMPT, "--seed", 7, *options)
    assert result.err == ""
    facts = read_metadata(tmp_path / "scene.png")
    assert (facts["dtype"], facts["quantization"]) == ("bfloat16", "int8")
    assert json.loads((tmp_path / "report.json").read_text())["quantization"] == "int8"
    generate(PROMPT, "--seed", 7, "--out", "plain.png")
    assert "quantization" not in read_metadata(tmp_path / "plain.png")


def test_fp8_on_the_cpu_says_once_that_it_is_emulated(generate, tmp_path: Path) -> None:
    result = generate(PROMPT, PROMPT, "--seed", 7, "--quantization", "fp8")
    assert result.err == (
        "stepvar: warning: quantization='fp8': the CPU emulates fp8 products, slowly and in float32; "
        "'int8' is faster here\n"
    )


def test_unknown_quantization(run) -> None:
    said = run("generate", PROMPT, "--quantization", "int4").error()
    assert said == "quantization='int4': must be one of fp8, int8"
