"""Goldens of the VAR family must fail when anything is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conformance.files import copy, run


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
