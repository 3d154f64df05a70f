"""A method of the user's own, in a file of the working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run

CODE = '''
from dataclasses import dataclass
from typing import ClassVar

from stepvar.methods.pruning import Pruning


@dataclass(frozen=True)
class Loudest(Pruning):
    """Keeps the tokens with the largest features."""

    name: ClassVar[str] = "{name}"
    power: float = 2.0

    def score(self, tokens, step, state):
        return {sign}tokens.features.float().abs().pow(self.power).sum(-1)
'''


@pytest.fixture
def module(tmp_path: Path) -> str:
    """A module that no other test has imported."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE.format(name=name.replace("_", "-"), sign=""))
    return name


def test_its_settings_are_shown(run: Run, module: str) -> None:
    shown = run("methods", f"{module}:Loudest")
    assert shown.status == 0 and "power" in shown.out, shown.err


def test_settings_may_follow_behind_the_name(run: Run, shared_model: Path, tmp_path: Path) -> None:
    words = ("generate", "a red circle on grass", "--model", str(shared_model), "--seed", "3", "--quiet")
    for out, method in (("a.png", ("stepvar keep=0.4",)), ("b.png", ("stepvar", "--keep", "0.4"))):
        done = run(*words, "--method", *method, "--out", out)
        assert done.status == 0, done.err
    from PIL import Image

    first, second = (Image.open(tmp_path / name).tobytes() for name in ("a.png", "b.png"))
    assert first == second
    wrong = run(*words, "--method", "stepvar kept=0.4", "--out", "c.png")
    assert wrong.status == 2 and "kept: not a setting of" in wrong.err


def test_its_image_says_that_it_cannot_be_repeated_from_the_file(run: Run, shared_model: Path, module: str) -> None:
    done = run(
        *("generate", "a red circle on grass", "--model", str(shared_model), "--out", "own.png"),
        *("--method", f"{module}:Loudest"),
    )
    assert done.status == 0, done.err
    assert "stepvar generate --from" not in run("info", "own.png").out
    again = run("generate", "--from", "own.png", "--out", "again.png")
    assert again.status == 2 and "a class of your own" in again.err


def test_an_evaluation_notices_that_its_code_changed(run: Run, shared_model: Path, module: str, tmp_path: Path) -> None:
    words = ("eval", "--model", str(shared_model), "--prompts", "scenes:1", "--methods", f"{module}:Loudest")
    assert run(*words, "--out", "run", "--rounds", "1").status == 0
    assert run(*words, "--out", "run", "--rounds", "1").status == 0
    source = tmp_path / f"{module}.py"
    source.write_text(source.read_text().replace("return ", "return -"))
    changed = run(*words, "--out", "run", "--rounds", "1")
    assert changed.status == 2 and "code" in changed.err
