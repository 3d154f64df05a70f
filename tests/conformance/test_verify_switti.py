"""Goldens of the Switti family must fail when anything is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conformance.files import copy, put, run, tensors_of

OWN_SCALE, CACHED = "switti_d3", "switti_ar_smooth"


def test_everything_stored_is_compared() -> None:
    groups = {"text", "text keys", "tokens", "blocks", "hidden", "logits", "latents", "image"}
    for name in (OWN_SCALE, CACHED):
        result = run(name)
        assert result.kind == "switti" and set(result.errors) == groups and set(result.differing) == {"indices"}
        assert result.passed and result.errors["text keys"] < 1e-5 and result.errors["text"] < 1e-5


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (OWN_SCALE, {"use_ar": True}),
        (OWN_SCALE, {"rope_size": 64}),
        (CACHED, {"smooth_start_si": 3}),
        (CACHED, {"turn_on_cfg_start_si": 2}),
    ],
    ids=str,
)
def test_other_settings_are_found(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    result = run(copy(tmp_path, name, **settings))
    assert result.status == "fail" and result.notes


def test_other_weight_names_are_found(tmp_path: Path) -> None:
    result = run(copy(tmp_path, OWN_SCALE, use_crop_cond=False))
    assert result.status == "fail" and "does not fit the model" in result.notes[0]


def test_a_wrong_soft_code_is_found(tmp_path: Path) -> None:
    path = copy(tmp_path, CACHED)
    codes = tensors_of(path)["soft_3"]
    codes[0, 5] += 0.01
    assert run(put(path, soft_3=codes)).notes == ("latents: error 1.0e-02 above 2e-03",)


def test_low_precision_compares_what_precedes_the_first_index() -> None:
    result = run(OWN_SCALE, dtype=torch.bfloat16)
    assert result.passed and set(result.errors) == {"text", "text keys", "hidden", "logits", "image"}
    assert not any(result.differing.values())
