"""Real servers on free ports, with pipelines that tests can hold up."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from openai import OpenAI
from PIL import Image

from stepvar import Pipeline
from stepvar.output import Output
from stepvar.serving.address import listen, url_of
from stepvar.serving.server import ServerSettings, create_app
from stepvar.serving.server.run import serve
from stepvar.serving.server.service import Service

LONG = 60.0
"""Seconds after which a test gives up, however slow the machine is."""


class HeldPipeline(Pipeline):
    """Waits before each generation, and behind each pass, until it is let go; fails where it is told to."""

    def prepare(self) -> HeldPipeline:
        self.let_begin, self.let_go_on, self.begun, self.in_pass = (threading.Event() for _ in range(4))
        self.let_all_go()
        self.prompts: list[list[str]] = []
        self.passes = 0
        self.failing: Exception | None = None
        self.failing_prompt = ""
        return self

    def let_all_go(self) -> None:
        self.let_begin.set()
        self.let_go_on.set()

    @classmethod
    def load(cls, folder: Path) -> HeldPipeline:
        pipe = cls.from_pretrained(folder)
        assert isinstance(pipe, cls)
        return pipe.prepare()

    def __call__(self, *args: Any, **settings: Any) -> Output:
        warm = "num_images_per_prompt" in settings
        callback = settings.pop("callback_on_scale_end", lambda step, state: None)

        def on_scale_end(step: Any, state: Any) -> None:
            self.passes += 1
            self.in_pass.set()
            assert self.let_go_on.wait(LONG)
            callback(step, state)

        self.prompts.append([settings[self.inputs.argument]] if warm else list(settings[self.inputs.argument]))
        self.begun.set()
        assert self.let_begin.wait(LONG)
        if self.failing is not None and self.failing_prompt in self.prompts[-1]:
            raise self.failing
        return super().__call__(*args, **settings, callback_on_scale_end=on_scale_end)


class Server:
    """A server that runs."""

    def __init__(self, app: FastAPI, url: str, keys: tuple[str, ...]) -> None:
        self.service: Service = app.state.service
        self.url, self.root = url, url.removesuffix("/v1")
        self.client: Any = OpenAI(base_url=url, api_key=keys[0] if keys else "none", max_retries=0, timeout=LONG)

    @property
    def pipe(self) -> Any:
        return self.service.worker.pipe

    def fetch(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, Any, bytes]:
        """Status, headers and body of an answer to plain HTTP.

        Args:
            path: from the root.
            body: bytes, or what is sent as JSON.
        """
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
        request = Request(self.root + path, data, given, method=method)
        try:
            with urlopen(request, timeout=LONG) as answer:
                return answer.status, answer.headers, answer.read()
        except OSError as error:
            if not hasattr(error, "code"):
                raise
            return error.code, error.headers, error.read()  # type: ignore[attr-defined]


@contextmanager
def running(
    factory: Callable[[], Pipeline], keys: tuple[str, ...] = (), wait: bool = True, **settings: Any
) -> Iterator[Server]:
    """A server in a thread, that takes requests; it ends with the context."""
    given: dict[str, Any] = {"warm_up": False, "drain_seconds": 0.0} | settings
    app = create_app(factory, ServerSettings(**given), keys)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=serve, args=(app, listener), daemon=True)
        thread.start()
        server = Server(app, f"{url_of(*listener.getsockname()[:2])}/v1", keys)
        try:
            if wait:
                until(lambda: server.service.ready)
            yield server
        finally:
            if isinstance(server.pipe, HeldPipeline):
                server.pipe.let_all_go()
            server.service.drain()
            server.client.close()
            thread.join(LONG)
            assert not thread.is_alive()


def until(holds: Callable[[], bool]) -> None:
    """Waits until something holds."""
    pause = threading.Event()
    for _ in range(int(LONG / 0.01)):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to hold")


def in_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    """Starts work beside the test; calling the result waits for it, and gives or raises what it did."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((work(), None))
        except Exception as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(LONG)
        assert found, "still running"
        value, error = found[0]
        if error is not None:
            raise error
        return value

    return result


def picture(entry: Any) -> Image.Image:
    """The picture of an answer or an event."""
    encoded = entry.b64_json or entry.url.partition(",")[2]
    return Image.open(BytesIO(base64.b64decode(encoded)))


def pixels(image: Image.Image) -> NDArray[np.int32]:
    return np.asarray(image.convert("RGB"), dtype=np.int32)
