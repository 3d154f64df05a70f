"""Goldens of methods on Infinity: each stored decision is compared, and constants that are missing are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.files import GOLDENS, copy, put, run, tensors_of


def test_wrong_selections_of_sparsevar_are_counted(tmp_path: Path) -> None:
    path = copy(tmp_path, "sparsevar_006M")
    wrong = {
        name: tensors_of(path)[name].clone() for name in ("kept_order_s5", "recoverable_s6", "anchor_s4", "zeroed_s6")
    }
    for values in wrong.values():
        values[0, 3] += 1
    result = run(put(path, **wrong))
    assert (result.status, result.kind, result.differing["kept"]) == ("fail", "sparsevar", 4)


@pytest.mark.parametrize("change", [{"similarity": 0.5}, {"measure_chunk": 2}])
def test_other_constants_of_sparsevar_are_found(tmp_path: Path, change: dict[str, Any]) -> None:
    constants = json.loads(GOLDENS["sparsevar_006M"].read_text())["config"]["sparsevar"]
    assert run(copy(tmp_path, "sparsevar_006M", sparsevar=constants | change)).status == "fail"


@pytest.mark.parametrize("change", [{"decide_after": 2}, {"freq_ratio": 0.9}])
def test_other_constants_of_skipvar_are_found(tmp_path: Path, change: dict[str, Any]) -> None:
    constants = json.loads(GOLDENS["skipvar_branch_006M"].read_text())["config"]["skipvar"]
    assert run(copy(tmp_path, "skipvar_branch_006M", skipvar=constants | change)).status == "fail"


def test_missing_constants_are_named(tmp_path: Path) -> None:
    result = run(copy(tmp_path, "sparsevar_006M", sparsevar={"threshold": 0.96}))
    assert result.status == "fail" and "lacks the setting sparsevar.measure_chunk" in result.notes[0]
    constants = json.loads(GOLDENS["skipvar_skip_006M"].read_text())["config"]["skipvar"]
    del constants["branch"]["bias"]
    result = run(copy(tmp_path, "skipvar_skip_006M", skipvar=constants))
    assert result.status == "fail" and "skipvar.branch lacks one of mean, scale, weight, bias" in result.notes[0]
