"""Goldens of the VAR family must fail when anything is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conformance.files import copy, put, run, tensors_of


def test_everything_stored_is_compared() -> None:
    generation, sampled, tokenizer = (run(name) for name in ("var_d3", "var_d3_sampled", "vqvae_enc"))
    assert generation.kind == "var" and tokenizer.kind == "vq tokenizer"
    assert set(generation.errors) == {"tokens", "blocks", "hidden", "logits", "latents", "image"}
    assert set(sampled.errors) == {"logits"} and set(tokenizer.errors) == {"tokens", "hidden", "latents", "image"}
    for result in (generation, sampled, tokenizer):
        assert result.passed and set(result.differing) == {"indices"}


@pytest.mark.parametrize(
    "settings", [{"cfg": 3.9}, {"labels": [15, 5]}, {"seed": 1}, {"labels": [-1, 4]}, {"labels": None}], ids=str
)
def test_other_settings_are_found(tmp_path: Path, settings: dict[str, Any]) -> None:
    result = run(copy(tmp_path, "var_d3", **settings))
    assert result.status == "fail" and result.errors["logits"] > 1e-3


@pytest.mark.parametrize("settings", [{"g_seed": 43}, {"top_k": 20}, {"top_p": 0.5}, {"more_smooth": True}], ids=str)
def test_other_sampling_is_found(tmp_path: Path, settings: dict[str, Any]) -> None:
    result = run(copy(tmp_path, "var_d3_sampled", **settings))
    assert result.status == "fail" and result.differing["indices"] > 0


def test_soft_codes_of_one_class_are_hard(tmp_path: Path) -> None:
    assert run(copy(tmp_path, "var_d3", more_smooth=True)).passed


def test_other_weight_names_are_found(tmp_path: Path) -> None:
    result = run(copy(tmp_path, "var_d3", shared_aln=True))
    assert result.status == "fail" and "does not fit the model" in result.notes[0]


def test_wrong_index_is_found(tmp_path: Path) -> None:
    path = copy(tmp_path, "var_d3")
    indices = tensors_of(path)["idx_3"]
    indices[1, 5] += 1
    assert run(put(path, idx_3=indices)).notes == ("indices: 1 differ",)


def test_low_precision_compares_what_precedes_the_first_index() -> None:
    for name, groups in (
        ("var_d3", {"hidden", "logits", "image"}),
        ("vqvae_enc", {"hidden", "tokens", "latents", "image"}),
    ):
        result = run(name, dtype=torch.bfloat16)
        assert result.passed and set(result.errors) == groups and not any(result.differing.values())
