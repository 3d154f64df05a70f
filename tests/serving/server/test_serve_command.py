"""``stepvar serve``: what it refuses before it serves, and a process that is told to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import InternalServerError, OpenAI

from stepvar import Pipeline
from stepvar.cli import main, options
from stepvar.errors import UsageError
from stepvar.serving.server import ServerSettings, create_app
from stepvar.serving.server.settings import KEY_VARIABLE, read_keys
from tests.serving.server.servers import in_thread, until

KEY = "a-key-that-is-long-enough"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["serve", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("stepvar: error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--port", "70000"], "port=70000: must be"),
        (["--host", "203.0.113.1", "--port", "0"], "host='203.0.113.1'"),
        (["--max-batch", "0"], "max_batch=0: must be"),
        (["--max-queue", "5"], "max-images=10"),
        (["--method", "os:Popen"], "registered method"),
        (["--method", "nothing"], "unknown; choose one of"),
        (["--api-key-file", "nowhere"], "nowhere"),
        (["--device", "abacus"], "device"),
    ],
)
def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert said in refusal(capsys, *arguments)


def test_a_port_in_use_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port={port}: cannot be opened (Address already in use)" in refusal(capsys, "--port", port)


def test_a_missing_package_is_named_with_its_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "needs the package uvicorn; pip install '.[serve]'" in refusal(capsys)


def test_a_wrong_model_ends_the_server_with_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--model", "/nowhere/at/all"]) != 0
    out, err = capsys.readouterr()
    assert out.startswith("http://127.0.0.1:") and "stepvar: error:" in err.splitlines()[-1]


def test_a_signal_while_the_model_is_loaded_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own end would pull the libraries away from the thread that loads, which is a crash."""
    ended: list[int] = []
    let_go = threading.Event()

    def load(*given: object) -> Pipeline:
        os.kill(os.getpid(), signal.SIGTERM)
        let_go.wait(60)
        raise UsageError("never loaded")

    monkeypatch.setattr(options, "load_pipeline", load)
    monkeypatch.setattr(os, "_exit", ended.append)
    assert main(["serve", "--port", "0"]) == 0
    let_go.set()
    assert ended == [0]


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_keys(None) == ()
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert read_keys(None) == (KEY,)
    (tmp_path / "keys").write_text(f"{KEY}1\n\n {KEY}2 \n")
    assert read_keys(tmp_path / "keys") == (f"{KEY}1", f"{KEY}2")
    for text in ("", "\n", "short", "é" * 20, "two words in one key"):
        (tmp_path / "keys").write_text(text)
        with pytest.raises(UsageError, match="key"):
            read_keys(tmp_path / "keys")


def test_an_application_checks_its_settings() -> None:
    with pytest.raises(UsageError, match="max_wait"):
        ServerSettings(max_wait=-1)
    with pytest.raises(UsageError, match="unknown"):
        create_app(lambda: pytest.fail("loaded"), ServerSettings(method="nothing"))


@contextmanager
def serving(model: Path, log: Path) -> Iterator[tuple[subprocess.Popen[str], OpenAI]]:
    """A process that serves and is ready, and its client."""
    command = [sys.executable, "-m", "stepvar", "serve", "--model", str(model), "--port", "0"]
    environment = {**os.environ, KEY_VARIABLE: KEY, "OMP_NUM_THREADS": "1"}
    with log.open("w") as err, subprocess.Popen(command, stdout=-1, stderr=err, env=environment, text=True) as process:
        assert process.stdout is not None
        client = OpenAI(base_url=process.stdout.readline().strip(), api_key=KEY, max_retries=0, timeout=60)
        try:
            until(lambda: '"ready' in log.read_text())
            yield process, client
        finally:
            process.kill()
            client.close()
    assert KEY not in log.read_text() and KEY not in " ".join(command)


def logged(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def until_it_generates(client: OpenAI) -> None:
    until(lambda: "stepvar_queue_images 0" not in client.get("/../metrics", cast_to=str))


@pytest.mark.slow
def test_a_process_that_is_told_to_end_finishes_what_runs(tiny_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(tiny_folder, log) as (process, client):
        answer = in_thread(lambda: client.images.generate(prompt="a red circle", n=10))
        until_it_generates(client)
        process.send_signal(signal.SIGTERM)
        assert len(answer().data) == 10
        assert process.wait(60) == 0
    assert [line["signal"] for line in logged(log) if "signal" in line] == ["SIGTERM"]


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once_and_quietly(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(Path("scenes"), log) as (process, client):
        answer = in_thread(lambda: client.images.generate(prompt="a red circle", n=10))
        until_it_generates(client)
        stream = client.images.generate(prompt="a red circle", n=10, stream=True)
        for count in (1, 2):
            process.send_signal(signal.SIGTERM)
            until(lambda count=count: log.read_text().count('"ending') == count)  # type: ignore[misc]
        with pytest.raises(InternalServerError, match="the server has ended") as refused:
            answer()
        assert refused.value.status_code == 503
        assert process.wait(60) == 128 + signal.SIGTERM
        stream.close()
    lines = logged(log)
    assert all(line["level"] == "info" for line in lines)
    said = [line["message"] for line in lines if line["message"] != "request"]
    assert said[2:] == ["ending: finishes what was taken", "ending at once"]
