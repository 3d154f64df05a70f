"""The notebooks run, and what they show is what they ran: as scripts, so that no notebook server is needed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MOST_BYTES = 100_000
NUMBER = re.compile(r" *\d+(?:\.\d+)?")

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def test_a_notebook_is_small_and_was_run_in_order_without_errors(path: Path) -> None:
    cells = code_cells(path)
    assert path.stat().st_size <= MOST_BYTES
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


def test_no_cell_needs_a_notebook(path: Path) -> None:
    """No magics and no shell commands: a cell is Python."""
    for cell in code_cells(path):
        compile("".join(cell["source"]), path.name, "exec")


def test_the_page_about_notebooks_lists_it(path: Path) -> None:
    assert f"`{path.name}`" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_notebook_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And prints what is stored in it: no figure there depends on time."""
    module = ModuleType(f"notebook_{path.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look for the module of their annotations
    monkeypatch.chdir(tmp_path)
    for cell in code_cells(path):
        exec(compile("".join(cell["source"]), path.name, "exec"), vars(module))
        stored = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
        printed = capsys.readouterr().out
        assert NUMBER.split(printed) == NUMBER.split(stored)
        # Another processor samples a few other codes.
        assert list(map(float, NUMBER.findall(printed))) == pytest.approx(
            list(map(float, NUMBER.findall(stored))), rel=0.05
        )
