"""What the pages show works: commands parse, imports and files exist, and the first example does what it says."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from stepvar.cli.app import app
from stepvar.errors import UsageError
from training.wardrobe.captions import GARMENTS, Description
from training.wardrobe.evaluate import colour_verdicts

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/models/*.md")])


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The arguments of every stepvar command of a page."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == ["stepvar"]]


def test_there_are_commands_on_the_pages() -> None:
    assert sum(len(commands(page)) for page in PAGES) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for name, *arguments in commands(page):
        group.commands[name].make_context(name, arguments)  # raises for an unknown option


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_that_pages_run_exist(page: Path) -> None:
    for module in re.findall(r"-m ((?:benchmarks|training|tests)[\w.]*)", page.read_text(encoding="utf-8")):
        assert find_spec(module) is not None, module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_imports_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        for line in re.findall(r"^(?:from stepvar.*|import stepvar.*)$", block, flags=re.MULTILINE):
            try:
                exec(line, {})
            except UsageError as error:  # of an extra that is not installed
                assert "needs the package" in str(error)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:src|docs|tests|training|benchmarks)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_layout_on_the_architecture_page_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page[page.index("## Where is what") : page.index("Beside `src/stepvar/`")]
    named = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?)`", table)
    assert len(named) >= 15
    for path in named:
        assert (ROOT / "src" / "stepvar" / path).exists(), path


def test_the_first_example_generates_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = blocks(ROOT / "README.md", "python")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    prompt = re.search(r'pipe\("a (\w+) (\w+) on', example)
    assert prompt is not None
    label = next(label for label, names in GARMENTS.items() if prompt[2] in names)
    pixels = np.asarray(Image.open(next(tmp_path.glob("*.png"))).convert("RGB"), dtype=np.float32) / 255
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    assert colour_verdicts(picture, [Description(label, first=prompt[1])]) == (1.0, 1.0)
