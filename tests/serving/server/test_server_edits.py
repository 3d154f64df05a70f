"""Edits over HTTP, on a tiny model."""

from __future__ import annotations

import json
import logging
import socket
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image

from stepvar.checkpoints import save_model
from stepvar.serving.server.logs import FACTS
from stepvar.text import WordEncoder
from tests.helpers import TINY, make_edit
from tests.serving.server.servers import HeldPipeline, Server, picture, pixels, running, until
from tests.serving.server.test_server_access import head

TEXT: dict[str, Any] = {
    "vocabulary": ["a", "blue", "make", "red", "sky", "the"],
    "synonyms": {},
    "width": TINY.text_channels,
    "layers": 1,
    "hidden": 32,
    "max_words": 15,
}
PATH = "/v1/images/edits"
PROMPT = "make the sky red"
pytestmark = pytest.mark.filterwarnings("ignore::stepvar.text.UnknownWordWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("edit")
    torch.manual_seed(0)
    save_model(folder, "tiny-edit", make_edit(), WordEncoder(**TEXT), TEXT, {"guidance_scale": 3.0}, torch.float32)
    with running(lambda: HeldPipeline.load(folder), warm_up=True) as running_server:
        yield running_server


def test_it_was_warmed_up_with_words_that_it_knows(server: Server) -> None:
    assert server.pipe.prompts[0] == [WordEncoder(**TEXT).example]


def photo(width: int = 40, height: int = 25) -> tuple[str, bytes, str]:
    file = BytesIO()
    levels = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    Image.fromarray(levels.astype(np.uint8)).save(file, "PNG")
    return "photo.png", file.getvalue(), "image/png"


def test_an_edit_has_the_size_of_its_image(server: Server) -> None:
    answer = server.client.images.edit(prompt=PROMPT, image=photo(), n=2, extra_body={"seed": 3})
    source = Image.open(BytesIO(photo()[1]))
    expected = server.pipe(prompt=[PROMPT] * 2, image=source, seed=3).images
    assert answer.size == "40x25"
    for one, image in zip(answer.data, expected, strict=True):
        assert np.array_equal(pixels(picture(one)), pixels(image))


def test_pictures_on_the_way_are_cut_like_the_result(server: Server) -> None:
    events = list(server.client.images.edit(prompt=PROMPT, image=[photo(25, 40)], stream=True, partial_images=2))
    names = ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert [event.type for event in events] == names
    assert all(picture(event).size == (25, 40) for event in events)


@pytest.mark.parametrize(
    "own, said",
    [
        ({"image": photo(), "size": "1024x1024"}, "has the size of its image"),
        ({"image": [photo(), photo()]}, "2 given; send one"),
        ({"image": photo(), "mask": photo()}, "mask: this server takes no such file"),
        ({"image": ("x.png", b"", "image/png")}, "image"),
        ({"image": photo(400, 2)}, "too narrow"),
        ({"image": ("x.gif", b"GIF89a", "image/gif")}, "is not an image"),
    ],
)
def test_what_cannot_be_edited_is_refused(server: Server, own: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        server.client.images.edit(prompt=PROMPT, **own)


def test_a_bomb_is_not_unpacked(server: Server) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\x10\0IDAT"
    with pytest.raises(openai.BadRequestError, match=r"30000x30000 pixels|exceeds limit"):
        server.client.images.edit(prompt=PROMPT, image=("x.png", b"\x89PNG\r\n\x1a\n" + chunk, "image/png"))


def test_without_an_image_it_says_where_to_send_one(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="/v1/images/edits"):
        server.client.images.generate(prompt=PROMPT)
    status, _, body = server.fetch("/v1/images/edits", {"prompt": PROMPT})
    assert status == 400 and b"image" in body


def requests_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == "request"]


@pytest.mark.slow  # failed once on a busy machine: what is sent and closed at once may arrive as nothing at all
def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_error_of_the_server(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stepvar")
    kinds = ("application/json", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded")
    host, port = server.root.removeprefix("http://").split(":")
    for kind in kinds:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head(1000, PATH, kind) + b"--x\r\n")
    until(lambda: len(requests_of(caplog)) == len(kinds))
    assert {record.__dict__[FACTS]["status"] for record in requests_of(caplog)} == {499}
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


LIST = 'Content-Disposition: form-data; name="prompt[]"'
FORMS = (
    ("multipart/form-data; boundary=x; charset=punycode", "a\xff-b", "charset='punycode'"),
    ("multipart/form-data; boundary=x; charset=undefined", "a", "charset='undefined'"),
    (
        "multipart/form-data; boundary=x",
        'a\r\n--x\r\nContent-Disposition: form-data; name="prompt[]"\r\n\r\nb',
        "prompt: is",
    ),
)


@pytest.mark.parametrize("kind, value, said", FORMS, ids=("punycode", "undefined", "one value and a list"))
def test_odd_forms_are_refused(server: Server, kind: str, value: str, said: str) -> None:
    form = f'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{value}\r\n--x--\r\n'
    status, _, answer = server.fetch(PATH, form.encode("latin-1"), Content_Type=kind)
    assert status == 400 and json.loads(answer)["error"]["message"].startswith(said)
