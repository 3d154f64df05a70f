"""Commands that tell what there is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

import stepvar
from stepvar import __version__
from stepvar.cli.options import parse_device, parse_value
from stepvar.errors import UsageError
from stepvar.methods import METHODS
from stepvar.models.infinity import CONFIGS


def test_version(run) -> None:
    assert run("--version")[:2] == (0, f"stepvar {__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_the_commands(run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.status == 0
    assert all(f" {command} " in result.out for command in ("generate", "demo", "methods", "models", "verify", "info"))


def test_help_does_without_pytorch() -> None:
    code = "import sys; from stepvar.cli import main; main(['generate', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--keep" in done.stdout


def test_methods_lists_all_in_a_line_each(run) -> None:
    shown = run("methods").out
    assert all(name in shown for name in METHODS)
    assert "Every token of every scale." in shown and "power_iterations" not in shown
    listed = json.loads(run("methods", "--json").out)
    assert listed.keys() == METHODS.keys()
    assert listed["stepvar"]["presets"]["hart"] == {"keep": [0.5, 0.25]}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_shown_with_its_settings(run, name: str) -> None:
    shown, described = run("methods", name).out, json.loads(run("methods", name, "--json").out)
    assert [one["name"] for one in described["settings"]] == [field.name for field in fields(METHODS[name])]
    assert all(one["name"] in shown and one["allowed"] in shown for one in described["settings"])


def test_bounds_and_sources_of_a_method_are_shown(run) -> None:
    shown = run("methods", "stepvar").out
    assert "a whole number from 1 to 1000" in shown and "preset stepvar:hart is keep=(0.5, 0.25)" in shown
    assert "arXiv 2503.23367" in run("methods", "magnitude").out
    assert "did you mean 'stepvar'" in run("methods", "stepva").error()


def test_models_are_listed_as_json(run) -> None:
    listed = json.loads(run("models", "--json").out)
    assert listed[0]["model"] == "scenes" and listed[0]["in the package"] == "yes"
    assert {"2b", "d36"} <= {one["variant"] for one in listed}


def test_models_lists_embedded_and_released(run) -> None:
    shown = run("models").out
    assert "scenes" in shown
    assert all(name in shown for name in CONFIGS)
    assert "2,204.6 M" in shown  # the 2B transformer
    assert "d36" in shown and "512x512" in shown
    assert "1024x1024" in shown


def test_info_of_files_without_settings(run, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    plain = run("info", "plain.png")
    assert plain.status == 1 and "not written by stepvar" in plain.error()
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.jpg")
    assert "not written by stepvar" in run("info", "photo.jpg").error()
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.bmp")
    assert "BMP" in run("info", "photo.bmp").error()
    (tmp_path / "text.png").write_text("no picture")
    assert "not an image" in run("info", "text.png").error()


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("0.5", float | Sequence[float], 0.5),
        ("0.7, 0.4", float | Sequence[float], (0.7, 0.4)),
        ("none", int | None, None),
        ("2", int | None, 2),
        ("false", bool, False),
        ("state", Literal["state", "update"], "state"),
        ("word", str, "word"),
    ],
)
def test_texts_become_values(text: str, kind: object, value: object) -> None:
    assert parse_value("x", text, kind) == value


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("a", int | None, "a whole number or none"),
        ("1,b", float | Sequence[float], "a number or a list such as 0.7,0.4"),
        ("yes", bool, "true or false"),
        ("stat", Literal["state", "update"], "one of state, update"),
    ],
)
def test_texts_that_are_no_values(text: str, kind: object, said: str) -> None:
    with pytest.raises(UsageError, match=f"x='{text}': must be {said}"):
        parse_value("x", text, kind)


def test_devices() -> None:
    assert parse_device("cpu").type == "cpu"
    for name in ("", "meta", "cpu:1", "gpu"):
        with pytest.raises(UsageError, match="device"):
            parse_device(name)


def test_public_names_are_found_when_asked_for() -> None:
    names = set(dir(stepvar))
    assert {"Method", "Output", "Pipeline", "Video", "deterministic"} <= names
    assert {method.__name__ for method in METHODS.values()} <= names
    assert all(getattr(stepvar, name) is not None for name in names)
    for wrong in ("nope", "Nope"):
        with pytest.raises(AttributeError, match=wrong):
            getattr(stepvar, wrong)
