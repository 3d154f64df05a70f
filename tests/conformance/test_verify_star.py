"""Goldens of the STAR family must fail when anything is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conformance.files import copy, put, run, tensors_of

CODES, SAMPLER = "star_d3_codes", "star_sampler"


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


def test_a_sampler_that_the_model_lacks_is_found(tmp_path: Path) -> None:
    result = run(copy(tmp_path, CODES, sampler=True, sample_from_idx=4))
    assert result.status == "fail" and "does not fit the model" in result.notes[0]
