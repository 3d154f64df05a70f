"""``stepvar serve --replicas``: copies of the server behind one address, with the real Ray Serve."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stepvar import Pipeline
from stepvar.cli.app import main

PROMPT = "a red circle on grass"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--replicas", "0"], "replicas"),
        (["--replicas", "2", "--port", "0"], "port=0: copies share one port"),
        (["--replicas", "2", "--model", "scenes-video"], "jobs of videos are known to the copy that took them"),
    ],
)
def test_what_copies_cannot_do_is_said_before_any_work(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    assert error in capsys.readouterr().err


def post(url: str, seed: int) -> Any:
    """The pixels of an image that a server gives."""
    body = json.dumps({"prompt": PROMPT, "seed": seed, "method": "stepvar"}).encode()
    request = urllib.request.Request(f"{url}/images/generations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=200) as answer:
        (image,) = json.load(answer)["data"]
    return np.asarray(Image.open(BytesIO(base64.b64decode(image["b64_json"]))))


def is_served(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=10):
            return True
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("ray") is None or find_spec("grpc") is None, reason="Ray Serve is not installed")
def test_two_copies_answer_with_the_same_pictures_and_end_on_a_signal() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "stepvar", "serve", "--model", "scenes", "--replicas", "2", "--port", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url == f"http://127.0.0.1:{port}/v1"
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda seed: post(url, seed), (5, 6, 5, 6)))
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert not is_served(url)
    pipe = Pipeline.from_pretrained("scenes")
    for place, seed in enumerate((5, 6)):
        alone = np.asarray(pipe(PROMPT, seed=seed, method="stepvar", progress=False).images[0])
        for image in (found[place], found[place + 2]):
            assert np.abs(image.astype(int) - alone).max() <= 1  # requests may run as one batch: the last bits
