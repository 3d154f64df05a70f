"""Servers that tests share, on tiny models with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")
pytest.importorskip("openai", reason="its tests speak to it with OpenAI's client")

from tests.cli.conftest import write_model
from tests.serving.server.servers import HeldPipeline, Server, running


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 32x32 pixels."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def held(tiny_folder: Path) -> HeldPipeline:
    return HeldPipeline.load(tiny_folder)


@pytest.fixture(scope="session")
def shared_server(held: HeldPipeline) -> Iterator[Server]:
    with running(lambda: held) as server:
        yield server


@pytest.fixture
def server(shared_server: Server, held: HeldPipeline) -> Server:
    """A server that waits for no others and is held up by nothing."""
    held.prepare()
    return shared_server
