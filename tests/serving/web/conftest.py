"""A tiny model behind the page, and a browser in front of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepvar.pipeline import Pipeline
from stepvar.serving.web.studio import Studio
from tests.cli.conftest import run as run
from tests.cli.conftest import write_model


@pytest.fixture(scope="session")
def web_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model that generates 32x32 pixels in 7 scales."""
    return write_model(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="session")
def pipe(web_model: Path) -> Pipeline:
    """Tests change nothing of it that they do not put back."""
    return Pipeline.from_pretrained(web_model)


@pytest.fixture
def studio(pipe: Pipeline) -> Iterator[Studio]:
    studio = Studio(pipe, waiting=1)
    yield studio
    emptied(studio)
    studio.close()


class Gate:
    """Holds a pipeline behind its next scale for as long as a test wants."""

    def __init__(self, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self._open = threading.Event(), threading.Event()
        preview = pipe.preview

        def held(*arguments: Any, **more: Any) -> Any:
            self.reached.set()
            assert self._open.wait(60), "the gate was never opened"
            return preview(*arguments, **more)

        monkeypatch.setattr(pipe, "preview", held)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(pipe, monkeypatch)
    yield gate
    gate.open()


def emptied(studio: Studio, left: int = 0) -> None:
    """Waits until no more requests are left than so many."""
    with studio.turns._changed:
        assert studio.turns._changed.wait_for(lambda: studio.turns.length == left, 60)
