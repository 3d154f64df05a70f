"""The method that CONTRIBUTING.md shows is complete, and passes the matrix like any other."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest

from stepvar.methods import METHODS, Method, make_method
from tests.methods import test_matrix as matrix
from tests.methods.families import ROWS, FamilyRow

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def shown(own_registry: None, monkeypatch: pytest.MonkeyPatch) -> type[Method]:
    """The class on the page, which registers itself."""
    blocks = re.findall(
        r"^( *)```python\n(.*?)^\1```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    source = next(dedent(text) for _, text in blocks if "(Pruning)" in text)
    assert len(source.splitlines()) < 40
    module: Any = ModuleType("stepvar.methods.contrast")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, str(PAGE), "exec"), module.__dict__)
    assert METHODS["contrast"] is module.Contrast
    monkeypatch.setitem(matrix.CASES, "contrast", lambda: make_method("contrast"))
    kind: type[Method] = module.Contrast
    return kind


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_method_shown_passes_the_matrix(shown: type[Method], row: FamilyRow) -> None:
    assert make_method("contrast+skip-last", power=1.0, count=1).settings()["contrast"]["power"] == 1.0
    for guidance in matrix.GUIDANCE:
        matrix.test_matrix("contrast", row, guidance)
    matrix.test_neutral_settings_are_dense_to_the_bit(shown.name, row)
