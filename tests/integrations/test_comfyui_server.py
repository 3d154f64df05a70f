"""The nodes in a real ComfyUI: a server without a window, its interface for programs, and its websocket.

Run with the Python of a ComfyUI that has this package, too::

    STEPVAR_COMFYUI=/path/to/ComfyUI python -m pytest -m slow tests/integrations/test_comfyui_server.py
"""

from __future__ import annotations

import asyncio
import io as bytes_io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stepvar import Pipeline, StepVAR, Video
from tests.integrations.comfyui_stand_in import INPUTS, OUTPUT, SCHEMA

COMFYUI = os.environ.get("STEPVAR_COMFYUI", "")
PACK = Path(__file__).parents[2] / "integrations" / "comfyui"
NODES = {"StepVARLoadModel", "StepVARText", "StepVARMethod", "StepVARSampler", "StepVARDecode"}
PREVIEW = b"\0\0\0\1"  # the type of a websocket message that holds a picture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMFYUI, reason="STEPVAR_COMFYUI does not name the folder of a ComfyUI"),
]


@dataclass
class Server:
    """A running ComfyUI, and what it says of a prompt."""

    address: str
    output: Path
    said: list[dict[str, Any]] = field(default_factory=list)
    previews: list[Image.Image] = field(default_factory=list)

    def ask(self, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"http://{self.address}{path}", data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return json.loads(error.read() or b"null")

    def run(self, prompt: Any, on_message: Callable[[dict[str, Any]], Awaitable[None]] | None = None) -> str:
        """Posts a prompt, listens until it ends, and gives the last message's type; or "refused"."""
        return asyncio.run(asyncio.wait_for(self._run(prompt, on_message), 300))

    async def _run(self, prompt: Any, on_message: Callable[[dict[str, Any]], Awaitable[None]] | None) -> str:
        aiohttp = pytest.importorskip("aiohttp")
        self.said.clear()
        self.previews.clear()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://{self.address}/ws?clientId=test", max_msg_size=0) as socket,
        ):
            content = {"prompt": prompt, "client_id": "test"}
            async with session.post(f"http://{self.address}/prompt", json=content) as answer:
                if answer.status == 400:
                    self.said.append(await answer.json())
                    return "refused"
                assert answer.status == 200, await answer.text()
            async for message in socket:
                if isinstance(message.data, bytes):
                    if message.data[:4] == PREVIEW:
                        self.previews.append(Image.open(bytes_io.BytesIO(message.data[8:])))
                    continue
                one = json.loads(message.data)
                self.said.append(one)
                if on_message is not None:
                    await on_message(one)
                if one["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                    return one["type"]
        raise AssertionError("the websocket was closed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "output", "models"):
        (base / name).mkdir()
    (base / "custom_nodes" / "stepvar").symlink_to(PACK)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = os.environ.get("STEPVAR_COMFYUI_PYTHON", sys.executable)
    command = [python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    with (base / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=COMFYUI, stdout=log, stderr=log)
    made = Server(f"127.0.0.1:{port}", base / "output")
    try:
        for _ in range(240):
            assert process.poll() is None, (base / "log.txt").read_text()[-3000:]
            try:
                made.ask("/system_stats")
                break
            except OSError:
                time.sleep(0.5)
        yield made
    finally:
        process.terminate()
        process.wait(30)


def workflow(name: str) -> dict[str, Any]:
    prompt: dict[str, Any] = json.loads((PACK / "api_workflows" / f"{name}.json").read_text())
    return prompt


def test_the_nodes_are_listed(server: Server) -> None:
    listed = server.ask("/object_info")
    assert listed.keys() >= NODES
    sampler = listed["StepVARSampler"]
    assert sampler["output"] == ["STEPVAR_LATENT", "STRING"] and sampler["input"]["required"]["seed"][0] == "INT"
    assert sorted(server.ask("/api/workflow_templates")["stepvar"]) == ["image", "video"]


def test_the_image_workflow_gives_the_image_of_the_pipeline(server: Server) -> None:
    assert server.run(workflow("image")) == "execution_success"
    (saved,) = server.output.glob("stepvar_*.png")
    pipe = Pipeline.from_pretrained("scenes")
    pipe.progress = False
    expected = pipe("a large red circle on grass", seed=1, method=StepVAR(keep=0.5)).images[0]
    assert Image.open(saved).convert("RGB").tobytes() == expected.tobytes()
    scales = {entry["data"]["max"] for entry in server.said if entry["type"] == "progress"}
    assert scales == {len(pipe.schedule())}
    assert len(server.previews) == len(pipe.schedule()) - 1
    assert {picture.format for picture in server.previews} == {"JPEG"}


def test_the_video_workflow_gives_a_video(server: Server) -> None:
    pytest.importorskip("av")
    assert server.run(workflow("video")) == "execution_success"
    (saved,) = server.output.glob("stepvar_*.mp4")
    video = Video.read(saved)
    assert len(video) == 17 and video.size == (96, 96) and len(server.previews) > 1


def test_what_did_not_change_is_not_computed_again(server: Server) -> None:
    prompt = workflow("image")
    prompt["4"]["inputs"]["preview"] = False
    assert server.run(prompt) == "execution_success" and not server.previews
    prompt["6"]["inputs"]["filename_prefix"] = "again"
    assert server.run(prompt) == "execution_success"
    ran = [entry["data"]["node"] for entry in server.said if entry["type"] == "executing"]
    assert "4" not in ran and "5" not in ran and list(server.output.glob("again_*.png"))


def test_cancelling_ends_the_run_and_the_next_one_works(server: Server) -> None:
    prompt = workflow("image")
    prompt["4"]["inputs"] |= {"seed": 77, "batch_size": 4}

    async def cancel(message: dict[str, Any]) -> None:
        if message["type"] == "progress":
            await asyncio.to_thread(server.ask, "/interrupt", {})

    assert server.run(prompt, cancel) == "execution_interrupted"
    done = max(entry["data"]["value"] for entry in server.said if entry["type"] == "progress")
    assert done < 10
    assert server.run(workflow("image")) == "execution_success"


def test_a_wrong_setting_is_said_in_one_line(server: Server) -> None:
    prompt = workflow("image")
    prompt["3"]["inputs"]["settings"] = "keep=2"
    assert server.run(prompt) == "execution_error"
    said = server.said[-1]["data"]["exception_message"].strip()
    assert said.startswith("keep=2") and "\n" not in said
    prompt["1"]["inputs"]["model"] = "/etc/passwd"
    assert server.run(prompt) in ("execution_error", "refused")  # by the node in old versions, by ComfyUI in newer ones
    assert re.search("choose one of the list|value_not_in_list", str(server.said[-1]))


def test_the_stand_in_of_other_tests_has_the_parameters_of_comfyui() -> None:
    code = (
        "import inspect, json; from comfy_api.latest import io\n"
        "names = lambda made: list(inspect.signature(made).parameters)\n"
        f"found = {{kind: names(getattr(io, kind).Input) for kind in {list(INPUTS)}}}\n"
        "found |= {'Output': names(io.Image.Output), 'Schema': names(io.Schema)}\n"
        "print(json.dumps(found))"
    )
    python = os.environ.get("STEPVAR_COMFYUI_PYTHON", sys.executable)
    done = subprocess.run([python, "-c", code], cwd=COMFYUI, capture_output=True, text=True, check=True, timeout=200)
    found = json.loads(done.stdout.splitlines()[-1])
    for kind, parameters in (INPUTS | {"Output": OUTPUT, "Schema": SCHEMA}).items():
        assert set(parameters) <= set(found[kind]), kind
