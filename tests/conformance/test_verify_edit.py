"""Goldens of VAREdit fail where anything about the source is off."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepvar.conformance import results
from stepvar.models.varedit import VAREdit
from stepvar.models.varedit import model as module
from tests.conformance.files import copy, put, run, tensors_of

NAME = "varedit_006M_sq"


def test_one_level_of_the_source_is_found(tmp_path: Path) -> None:
    path = copy(tmp_path, NAME)
    source = tensors_of(path)["source_picture_u8"]
    source[100, 70] += 40
    result = run(put(path, source_picture_u8=source))
    assert result.status == "fail" and result.errors["logits"] > 2e-4


def test_another_reference_in_the_first_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "averaged", lambda entries, full, grid: entries[:, :, : grid.size])
    result = run(NAME)
    assert result.status == "fail" and result.differing["bits"] > 100 and result.differing["keys"] == 0


def test_a_source_that_every_block_sees_whole_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "averaged", lambda entries, full, grid: entries)
    assert run(NAME).differing["keys"] == 6


def test_an_edit_is_not_taken_for_an_image_of_infinity(tmp_path: Path) -> None:
    result = run(copy(tmp_path, NAME, kind="infinity"))
    assert (result.kind, result.status) == ("infinity", "fail") and "keys_seen" in " ".join(result.notes)


def test_the_source_has_bounds_of_its_own() -> None:
    assert results.GROUPS["source"].float32 == 5e-5
    assert VAREdit.policy[-2][1] == "exact"  # the encoder, in any precision
