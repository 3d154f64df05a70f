"""Loading takes little more memory than the weights loaded, pages of mapped files included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoint_writer import Layout
from tests.measure_loading import STATUS, measure

LIMIT = 1.15

pytestmark = pytest.mark.skipif(not STATUS.is_file(), reason="needs the status files of Linux")


def test_a_small_checkpoint(tmp_path: Path) -> None:
    result = measure(tmp_path, 40, "flat", torch.bfloat16, torch.bfloat16)
    assert result["target"] > 35e6
    assert 0.9 < result["ratio"] < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["flat", "ema", "safetensors", "shards", "bin shards"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_a_checkpoint_of_200_megabytes(tmp_path: Path, layout: Layout, stored: torch.dtype) -> None:
    result = measure(tmp_path, 200, layout, stored, torch.bfloat16)
    assert result["target"] > 180e6
    assert 0.9 < result["ratio"] < LIMIT
