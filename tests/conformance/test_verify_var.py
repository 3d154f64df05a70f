"""Goldens of the VAR family must fail when anything is off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar.conformance import GoldenResult, verify

GOLDENS = Path(__file__).parents[1] / "goldens"


def edited(folder: Path, name: str, **settings: Any) -> Path:
    """A golden with other settings."""
    for path in GOLDENS.glob(f"{name}.*"):
        shutil.copy(path, folder)
    path = folder / f"{name}.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"config": about["config"] | settings}))
    return path


def run(path: Path, **options: Any) -> GoldenResult:
    (result,) = verify([path], **options)
    return result


def test_everything_stored_is_compared() -> None:
    generation, sampled, tokenizer = (
        run(GOLDENS / f"{name}.json") for name in ("var_d3", "var_d3_sampled", "vqvae_enc")
    )
    assert generation.kind == "var" and tokenizer.kind == "vq tokenizer"
    assert set(generation.errors) == {"tokens", "blocks", "hidden", "logits", "latents", "image"}
    assert set(sampled.errors) == {"logits"} and set(tokenizer.errors) == {"tokens", "hidden", "latents", "image"}
    for result in (generation, sampled, tokenizer):
        assert result.passed and set(result.differing) == {"indices"}


@pytest.mark.parametrize(
    "settings", [{"cfg": 3.9}, {"labels": [15, 5]}, {"seed": 1}, {"labels": [-1, 4]}, {"labels": None}], ids=str
)
def test_other_settings_are_found(tmp_path: Path, settings: dict[str, Any]) -> None:
    result = run(edited(tmp_path, "var_d3", **settings))
    assert result.status == "fail" and result.errors["logits"] > 1e-3


@pytest.mark.parametrize("settings", [{"g_seed": 43}, {"top_k": 20}, {"top_p": 0.5}, {"more_smooth": True}], ids=str)
def test_other_sampling_is_found(tmp_path: Path, settings: dict[str, Any]) -> None:
    result = run(edited(tmp_path, "var_d3_sampled", **settings))
    assert result.status == "fail" and result.differing["indices"] > 0


def test_soft_codes_of_one_class_are_hard(tmp_path: Path) -> None:
    assert run(edited(tmp_path, "var_d3", more_smooth=True)).passed


def test_other_weight_names_are_found(tmp_path: Path) -> None:
    result = run(edited(tmp_path, "var_d3", shared_aln=True))
    assert result.status == "fail" and "does not fit the model" in result.notes[0]


def test_wrong_index_is_found(tmp_path: Path) -> None:
    path = edited(tmp_path, "var_d3")
    data = path.with_suffix(".safetensors")
    tensors = load_file(data)
    tensors["idx_3"][1, 5] += 1
    save_file(tensors, data)
    assert run(path).notes == ("indices: 1 differ",)


def test_low_precision_compares_what_precedes_the_first_index() -> None:
    for name, groups in (
        ("var_d3", {"hidden", "logits", "image"}),
        ("vqvae_enc", {"hidden", "tokens", "latents", "image"}),
    ):
        result = run(GOLDENS / f"{name}.json", dtype=torch.bfloat16)
        assert result.passed and set(result.errors) == groups and not any(result.differing.values())
