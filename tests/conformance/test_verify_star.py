"""Goldens of the STAR family must fail when anything is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conformance.files import copy, put, run, tensors_of

CODES, SAMPLER = "star_d3_codes", "star_sampler"


def test_everything_stored_is_compared() -> None:
    codes, sampler = run(CODES), run(SAMPLER)
    assert codes.kind == sampler.kind == "star" and codes.passed and sampler.passed
    assert set(codes.errors) == {"hidden", "logits", "latents"}
    assert set(sampler.errors) == {"tokens", "hidden", "logits", "latents", "image"}
    assert set(codes.differing) == set(sampler.differing) == {"indices"}


@pytest.mark.parametrize(
    "settings", [{"cfg": 3.9}, {"rope_norm": 32.0}, {"rope_theta": 1000.0}, {"logit_norm": False}, {"seed": 1}], ids=str
)
def test_other_settings_are_found(tmp_path: Path, settings: dict[str, Any]) -> None:
    result = run(copy(tmp_path, CODES, **settings))
    assert result.status == "fail" and result.differing["indices"] > 0


@pytest.mark.parametrize("settings", [{"sample_version": "new"}, {"top_k": 20}, {"sample_from_idx": 5}], ids=str)
def test_other_sampling_is_found(tmp_path: Path, settings: dict[str, Any]) -> None:
    result = run(copy(tmp_path, SAMPLER, **settings))
    assert result.status == "fail" and result.notes


@pytest.mark.parametrize("name", ["exp_4_6", "rand_5_2"])
def test_the_random_numbers_of_every_step_count(tmp_path: Path, name: str) -> None:
    path = copy(tmp_path, SAMPLER)
    result = run(put(path, **{name: tensors_of(path)[name].flip(1).contiguous()}))
    assert result.status == "fail" and result.differing["indices"] > 0


@pytest.mark.parametrize(
    ("name", "group"),
    [("sampler_logits_4_5", "logits"), ("logits_5_7", "logits"), ("codes_5", "latents"), ("hidden_3", "hidden")],
)
def test_wrong_number_is_found(tmp_path: Path, name: str, group: str) -> None:
    path = copy(tmp_path, SAMPLER)
    tensor = tensors_of(path)[name]
    tensor.view(-1)[-1] += 0.01
    result = run(put(path, **{name: tensor}))
    assert result.status == "fail" and result.notes[0].startswith(f"{group}: error") and len(result.notes) == 1


def test_wrong_index_is_found(tmp_path: Path) -> None:
    path = copy(tmp_path, SAMPLER)
    indices = tensors_of(path)["idx_5_3"]
    indices[0, 5] += 1
    assert run(put(path, idx_5_3=indices)).notes == ("indices: 1 differ",)


def test_a_sampler_that_the_model_lacks_is_found(tmp_path: Path) -> None:
    result = run(copy(tmp_path, CODES, sampler=True, sample_from_idx=4))
    assert result.status == "fail" and "does not fit the model" in result.notes[0]


def test_low_precision_compares_what_precedes_the_first_index() -> None:
    for name, groups in ((CODES, {"hidden", "logits"}), (SAMPLER, {"hidden", "logits", "image"})):
        result = run(name, dtype=torch.bfloat16)
        assert result.passed and set(result.errors) == groups and not any(result.differing.values())
