"""The benchmark of the kernels runs without a GPU, and one broken case does not end it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import kernels
from benchmarks.kernel_cases import FULL, Case, Inputs, Outcome, norm_cases, pruning_cases


def broken_cases(given: Inputs) -> Iterator[Case]:
    def fail() -> Outcome:
        raise RuntimeError("no such kernel")

    good = next(norm_cases(given))
    yield Case("broken", fail, good.reference, 1, FULL)
    yield Case("wrong", lambda: good.reference()[::-1], good.reference, 1, FULL)
    yield good


def test_a_table_with_a_broken_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "GROUPS", (broken_cases, pruning_cases))
    kernels.main(["--out", str(tmp_path / "kernels.md")])
    rows = {
        line.split(" | ")[0][2:]: line for line in (tmp_path / "kernels.md").read_text().splitlines() if "|" in line
    }
    assert "RuntimeError: no such kernel" in rows["broken"]
    assert "too large" in rows["wrong"]
    assert "too large" not in rows["add_layer_norm, Infinity-2B"]
    assert sum(name.startswith(("texture_energy", "gather_rows")) for name in rows) == 4
