"""What stands in for packages that the published code imports; the published code itself is not here."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks.stand_ins import NeverCalled, flash_attn_func, flash_attn_varlen_kvpacked_func, importable


def explicit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of (L, H, c) by its formula."""
    weights = torch.einsum("qhc,khc->hqk", scale * q, k).softmax(-1)
    return torch.einsum("hqk,khc->qhc", weights, v)


def test_attention_keeps_the_layout_and_the_scale() -> None:
    q, k, v = (torch.randn(2, length, 3, 8) for length in (5, 7, 7))
    expected = torch.stack([explicit(q[row], k[row], v[row], 0.7) for row in range(2)])
    torch.testing.assert_close(flash_attn_func(q, k, v, softmax_scale=0.7), expected)


def test_joined_sequences_do_not_see_each_other() -> None:
    q, kv = torch.randn(2 * 4, 3, 8), torch.randn(5 + 2, 2, 3, 8)
    ends_q, ends_k = torch.tensor([0, 4, 8]), torch.tensor([0, 5, 7])
    out = flash_attn_varlen_kvpacked_func(q, kv, ends_q, ends_k, 4, 5, softmax_scale=0.3)
    k, v = kv.unbind(1)
    first, second = explicit(q[:4], k[:5], v[:5], 0.3), explicit(q[4:], k[5:], v[5:], 0.3)
    torch.testing.assert_close(out, torch.cat([first, second]))


def test_two_clones_with_packages_of_one_name_are_imported_one_after_the_other(tmp_path: Path) -> None:
    before, path = set(sys.modules), list(sys.path)
    for name in ("one", "two"):
        package = tmp_path / name / "infinity"
        package.mkdir(parents=True)
        package.joinpath("__init__.py").write_text(f"from flash_attn import flash_attn_func\nname = {name!r}")
    for name in ("one", "two"):
        with importable(tmp_path / name):
            assert import_module("infinity").name == name
    assert sys.path == path and not {"infinity", "flash_attn", "timm"} & (set(sys.modules) - before)


def test_a_package_that_is_only_imported_says_so_when_called() -> None:
    with pytest.raises(RuntimeError, match=r"cv2\.imwrite: only stands in"):
        NeverCalled("cv2").imwrite("a.png")
