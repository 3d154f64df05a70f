"""Weights in eight bits come back close, and what is not packed comes back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepvar.checkpoints import read_state, save_weights
from stepvar.checkpoints.int8 import SCALES, pack, unpack
from stepvar.errors import CheckpointError


@given(st.integers(0, 2**31), st.floats(1e-4, 1e3))
def test_each_value_is_off_by_at_most_half_a_step_of_its_row(seed: int, size: float) -> None:
    torch.manual_seed(seed)
    matrix = torch.randn(16, 8, 16) * size * torch.rand(16, 1, 1)
    back = unpack(*pack({"m": matrix}).values())
    largest = matrix.abs().amax(dim=(1, 2), keepdim=True)
    assert ((back - matrix).abs() <= largest / 127 * 0.501).all()


def test_small_tensors_vectors_and_numbers_are_not_packed() -> None:
    weights = {"bias": torch.randn(4096), "few": torch.randn(3, 3), "ids": torch.arange(4096).view(64, 64)}
    stored = pack(weights, torch.float32)
    assert set(stored) == set(weights)
    assert all(torch.equal(stored[name], weights[name]) for name in weights)


def test_a_row_of_zeros_stays_zero() -> None:
    matrix = torch.randn(4, 1024)
    matrix[2] = 0
    assert (unpack(*pack({"m": matrix}).values())[2] == 0).all()


def test_a_packed_file_reads_like_any_other(tmp_path: Path) -> None:
    weights = {"a.weight": torch.randn(64, 64), "a.bias": torch.randn(64)}
    path = tmp_path / "w.safetensors"
    save_weights(path, weights, torch.float16, packed=True)
    state = read_state(path)
    assert set(state) == set(weights)
    assert "a.weight" + SCALES not in state
    assert state.meta["a.weight"].shape == (64, 64) and state.meta["a.weight"].dtype == torch.float32
    torch.testing.assert_close(read_state(path)["a.weight"], weights["a.weight"], atol=0.02, rtol=0)
    plain = tmp_path / "p.safetensors"
    save_weights(plain, weights, torch.float16)
    assert path.stat().st_size < 0.7 * plain.stat().st_size


def test_a_truncated_packed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.randn(64, 64)}, torch.float16, packed=True)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        read_state(path)
