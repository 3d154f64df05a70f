"""Methods by name: registered here, offered by another package, or a class by its path."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any, ClassVar

import pytest
from torch import Tensor

from stepvar.cli.options import parse_method
from stepvar.core.plan import Step
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError
from stepvar.methods import (
    METHODS,
    Compose,
    Method,
    Pruning,
    PruningState,
    SkipLast,
    all_methods,
    make_method,
    register,
)
from stepvar.methods.registry import check_class

MODULE = """
from dataclasses import dataclass
from typing import ClassVar
from stepvar.methods import Pruning


@dataclass(frozen=True)
class Largest(Pruning):
    '''Keeps the largest.'''

    name: ClassVar[str] = "largest"
    presets: ClassVar = {"few": {"keep": 0.1}}

    power: float = 2.0

    def score(self, tokens, step, state):
        return tokens.features.float().abs().pow(self.power).sum(-1)
"""


@pytest.fixture
def elsewhere(own_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of another package."""
    (tmp_path / "elsewhere_methods.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("elsewhere_methods", None)


def offer(folder: Path, *entries: str) -> None:
    """Installs a package with these entry points."""
    info = folder / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[stepvar.methods]", *entries, ""]))


def test_a_class_by_its_path(elsewhere: Path) -> None:
    method = make_method("elsewhere_methods:Largest", keep=0.3, power=3.0)
    assert (str(method), method.settings()["power"], method.settings()["keep"]) == ("largest", 3.0, 0.3)
    assert make_method("elsewhere_methods:Largest:few") == make_method("elsewhere_methods:Largest", keep=0.1)
    together = make_method("elsewhere_methods:Largest+skip-last", **{"largest.keep": 0.2, "count": 2})
    assert isinstance(together, Compose) and together.parts[1] == SkipLast(2)
    assert "largest" not in METHODS


def test_the_command_line_finds_classes_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside_me.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "beside_me", raising=False)
    method = parse_method("beside_me:Largest", {"keep": "0.4"}, ["power=1"])
    assert method == make_method("beside_me:Largest", keep=0.4, power=1.0)


def test_entry_points_are_loaded_when_asked_for(elsewhere: Path) -> None:
    offer(elsewhere, "largest = elsewhere_methods:Largest")
    assert "largest" not in METHODS
    assert str(make_method("largest:few+skip-last")) == "largest+skip-last"
    assert METHODS["largest"].__module__ == "elsewhere_methods"
    assert list(all_methods()) == list(METHODS)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("gone = elsewhere_methods:Gone", "method 'gone' of the entry point elsewhere_methods:Gone is left out: Attr"),
        ("gone = nowhere:Gone", "ModuleNotFoundError: No module named 'nowhere'"),
        ("biggest = elsewhere_methods:Largest", "its class has the name 'largest'; give both the same"),
        ("stepvar = elsewhere_methods:Largest", "its class has the name 'largest'"),
    ],
)
def test_a_broken_entry_point_is_one_warning(elsewhere: Path, entry: str, said: str) -> None:
    offer(elsewhere, entry, "largest = elsewhere_methods:Largest")
    with pytest.warns(UserWarning) as caught:
        assert "largest" in all_methods() and "gone" not in all_methods()
    assert said in str(caught[0].message) and "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_method("stepvar")  # what nobody asked for is not loaded


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.at.all:Gone", "method 'nowhere.at.all:Gone': cannot be imported: ModuleNotFoundError: No module"),
        ("elsewhere_methods:Gone", "has no attribute 'Gone'"),
        ("elsewhere_methods:Pruning", "name=None; give it one of its own in lower case"),
        ("dataclasses:Field", "must be a class that derives from stepvar.methods.Method"),
        ("elsewhere_methods:Largest:many", "preset 'many': not one of method 'elsewhere_methods:Largest'; it has few"),
    ],
)
def test_paths_that_lead_to_no_method(elsewhere: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        make_method(name)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_module_that_fails_is_one_line(elsewhere: Path) -> None:
    (elsewhere / "failing_methods.py").write_text("raise RuntimeError('two\\nlines')")
    with pytest.raises(UsageError, match=r"cannot be imported: RuntimeError: two lines$"):
        make_method("failing_methods:Some")


def define(body: str, decorate: bool = True) -> Any:
    """A class with this body, derived from Pruning."""
    scope: dict[str, Any] = {"Pruning": Pruning, "dataclass": dataclass, "ClassVar": ClassVar}
    lines = "@dataclass(frozen=True)\n" * decorate + f"class Own(Pruning):\n{body}"
    exec(compile(dedent(lines), "own.py", "exec", dont_inherit=True), scope | {"__name__": "own"}, scope)
    return scope["Own"]


SCORE = "    def score(self, tokens, step, state): ...\n"


@pytest.mark.parametrize(
    ("body", "decorate", "said"),
    [
        (SCORE, True, "name=None; give it one of its own in lower case, such as name: ClassVar[str] = 'my-method'"),
        (f"    name = 'My Method'\n{SCORE}", True, "name='My Method'; give it one of its own"),
        (f"    name = 'a+b'\n{SCORE}", True, "name='a+b'"),
        (f"    name: str = 'own'\n{SCORE}", True, "name='own'; give it one of its own"),
        ("    name = 'own'\n", True, "method 'own': own:Own does not define score()"),
        (f"    name = 'stepvar'\n{SCORE}", True, "method 'stepvar': stepvar.methods.stepvar:StepVAR has this name"),
        (f"    name = 'own'\n    power: int = 2\n{SCORE}", False, "decorate it with @dataclass(frozen=True)"),
    ],
)
def test_incomplete_classes_are_refused(body: str, decorate: bool, said: str) -> None:
    before = dict(METHODS)
    with pytest.raises(UsageError) as error:
        register(define(body, decorate))
    assert said in str(error.value) and before == METHODS


def test_what_is_no_class_is_refused() -> None:
    for wrong in (3, int, SkipLast(), "stepvar"):
        with pytest.raises(UsageError, match=r"must be a class that derives from stepvar\.methods\.Method"):
            check_class(wrong)


def test_registering_again_replaces(own_registry: None) -> None:
    """A cell of a notebook may be run twice; another class of the same name may not come in."""
    first, again = (define(f"    name = 'own'\n{SCORE}") for _ in range(2))
    assert register(first) is first and register(again) is again and METHODS["own"] is again

    @dataclass(frozen=True)
    class Other(Pruning):
        name: ClassVar[str] = "own"

        def score(self, tokens: TokenMap, step: Step, state: PruningState) -> Tensor:
            return tokens.features[..., 0].float()

    with pytest.raises(UsageError, match=r"method 'own': own:Own has this name; rename .*Other"):
        register(Other)


def test_methods_without_a_score_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract method score"):
        Pruning()  # type: ignore[abstract]
    assert all(issubclass(method, Method) for method in METHODS.values())
