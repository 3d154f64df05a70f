"""Options that are declared once, and what typer and the commands see of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from inspect import signature
from typing import get_type_hints

import pytest
import typer

from stepvar import Pipeline
from stepvar.cli import options
from stepvar.cli.app import app
from stepvar.cli.groups import Acceleration, Precision, Sampling, Source, grouped
from stepvar.errors import UsageError


@dataclass(frozen=True)
class Paint:
    """A group of the test."""

    seed: options.Seed = 3
    set_: options.Settings = None


def test_a_command_has_the_options_of_its_groups_and_gets_the_groups() -> None:
    found: list[object] = []

    @grouped
    def command(context: typer.Context, name: str, *, paint: Paint, quiet: options.Quiet = False) -> None:
        """What it does."""
        found.extend([context.params, name, paint, quiet])

    own = typer.Typer()
    own.command()(command)
    words = ["a", "--seed", "5", "--set", "x=1", "--set", "y=2", "-q"]
    typer.main.get_command(own).main(words, standalone_mode=False)
    params = {"name": "a", "seed": 5, "set_": ["x=1", "y=2"], "quiet": True}
    assert found == [params, "a", Paint(5, ["x=1", "y=2"]), True]
    assert command.__doc__ == "What it does."


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("generate", [Source, options.Memory, Acceleration, Sampling, Precision]),
        ("batch", [Source, Acceleration, Sampling]),
        ("serve", [Source, options.Memory, Precision]),
    ],
)
def test_commands_have_every_option_of_their_groups(name: str, groups: list[type]) -> None:
    (command,) = (one.callback for one in app.registered_commands if getattr(one.callback, "__name__", "") == name)
    assert command is not None
    taken = signature(command).parameters
    for group in groups:
        assert [field.name for field in fields(group) if field.name not in taken] == []


def test_sampling_options_are_arguments_of_a_call() -> None:
    given = Sampling(guidance_scale="3,2", temperature="0.5", top_k=7).arguments()
    assert given.keys() <= signature(Pipeline.__call__).parameters.keys()
    assert (given["guidance_scale"], given["temperature"], given["top_k"], given["seconds"]) == ((3, 2), 0.5, 7, None)
    with pytest.raises(UsageError, match="temperature='warm'"):
        Sampling(temperature="warm").arguments()


def test_settings_of_a_method_ask_for_one() -> None:
    assert Acceleration().asked()[0] == "dense" and Acceleration().asked(acts=True)[0] == "stepvar"
    for given in (Acceleration(keep="0.5"), Acceleration(last="2"), Acceleration(set_=["last=2"])):
        assert given.asked()[0] == "stepvar"
    assert Acceleration("fastvar", keep="0.5").asked() == ("fastvar", {"keep": "0.5", "last": None}, [])


def test_options_named_like_their_placeholder_say_so() -> None:
    """typer 0.27 calls an option without a name after its metavar: ``--IMAGES`` in place of ``--images``."""
    for command in app.registered_commands:
        assert command.callback is not None
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            for option in getattr(hint, "__metadata__", ()):
                if isinstance(option, typer.models.OptionInfo) and option.metavar == name.upper():
                    # In an annotation the first name stands where a default does.
                    assert option.default == f"--{name}", command.callback.__name__
