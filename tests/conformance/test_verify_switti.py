"""Goldens of the Switti family must fail when anything is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conformance.files import copy, run

OWN_SCALE, CACHED = "switti_d3", "switti_ar_smooth"


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
