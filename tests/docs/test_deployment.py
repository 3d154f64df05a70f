"""The Dockerfile names files, extras and options that exist."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

from stepvar.cli.app import app
from stepvar.utils.reading import read_text

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = read_text(ROOT / "deploy" / "Dockerfile").replace("\\\n", " ").splitlines()


def arguments_of(name: str) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in INSTRUCTIONS if line.startswith(f"{name} ")]


def test_what_it_copies_is_there_and_reaches_the_builder() -> None:
    ignored = read_text(ROOT / "deploy" / "Dockerfile.dockerignore").splitlines()
    copied = [source for line in arguments_of("COPY") for source in line.split()[:-1]]
    assert {"pyproject.toml", "src"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists() and f"!{source}" in ignored


def test_what_the_package_is_built_from_is_copied() -> None:
    project = read_text(ROOT / "pyproject.toml")
    copied = " ".join(arguments_of("COPY"))
    named = re.findall(r'^(?:readme = |license-files = \[)"([^"]+)"', project, flags=re.MULTILINE)
    assert len(named) == 2 and all(name in copied for name in named)


def test_its_extras_exist() -> None:
    project = read_text(ROOT / "pyproject.toml")
    (extras,) = (line.partition("=")[2] for line in arguments_of("ARG") if line.startswith("EXTRAS="))
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), extra


def test_it_starts_a_command_with_options_that_exist() -> None:
    entry, words = (json.loads(arguments_of(name)[-1]) for name in ("ENTRYPOINT", "CMD"))
    commands = {command.callback.__name__: command.callback for command in app.registered_commands if command.callback}
    options = inspect.signature(commands[words[0]]).parameters
    assert entry == ["stepvar"]
    assert [word for word in words if word.startswith("--")] == ["--host"] and "host" in options
    assert options["port"].default == int(arguments_of("EXPOSE")[0])
