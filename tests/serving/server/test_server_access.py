"""Who may use a server, what it reads and refuses, what it logs and counts."""

from __future__ import annotations

import json
import logging
import socket
from contextlib import suppress
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from stepvar.serving.server import protocol
from stepvar.serving.server.logs import JsonFormatter
from stepvar.serving.server.schema import ImageRequest
from tests.serving.server.servers import HeldPipeline, Server, in_thread, running, until

PATH = "/v1/images/generations"
KEYS = ("first-key-of-the-server", "second-key-of-the-server")
GOOD = {"prompt": "a red circle"}


def test_a_key_is_asked_of_all_but_load_balancers(held: HeldPipeline) -> None:
    with running(lambda: held.prepare(), KEYS) as server:
        for path in ("/health", "/ready"):
            assert server.fetch(path)[0] == 200
            assert server.fetch(path, method="HEAD")[::2] == (200, b"")  # as "wget --spider" asks
        for path in ("/v1/models", "/metrics", "/v1/videos", "/openapi.json", "/nothing"):
            status, headers, body = server.fetch(path)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert json.loads(body)["error"]["code"] == "invalid_api_key"
        for wrong in (KEYS[0], f"Bearer {KEYS[0]}x", "Bearer ", f"Basic {KEYS[0]}", "Bearer é"):
            assert server.fetch("/v1/models", Authorization=wrong)[0] == 401
        for key in KEYS:
            assert server.fetch("/v1/models", Authorization=f"Bearer {key}")[0] == 200
        with pytest.raises(openai.AuthenticationError):
            server.client.with_options(api_key="another").models.list()
        assert [one.id for one in server.client.models.list()] == ["tiny"]


MALFORMED = (
    *(b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 50_000, b'{"prompt": ' + b"9" * 5000 + b"}"),
    *(b'{"prompt": NaN}', b'{"prompt": "a red circle", "seed": 1e400}', b'{"prompt": "a red circle", "seed": true}'),
    *(b'{"prompt": "\\ud800 a red circle"}', b'{"prompt": {"a": 1}}', b'{"prompt": "a red circle", "n": "many"}'),
)


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_bodies_are_refused(server: Server, body: bytes) -> None:
    status, _, answer = server.fetch(PATH, body)
    said = json.loads(answer)["error"]["message"]
    assert status == 400 and said.startswith(("body: ", "prompt", "seed=", "n=")) and server.pipe.prompts == []


@pytest.mark.filterwarnings("ignore::stepvar.text.UnknownWordWarning")
def test_unknown_words_of_any_script_are_answered(server: Server) -> None:
    for prompt in ("красный круг", "🟥" * 20, "a red circle\u202e \x00\x1b[31m", "赤い円 red"):
        status, _, answer = server.fetch(PATH, {"prompt": prompt, "negative_prompt": prompt})
        assert status == (200 if "red" in prompt else 400), answer


@pytest.mark.parametrize("path, status", [("/nothing", 404), ("/v1/../../etc/passwd", 404), (PATH, 405)])
def test_other_paths_and_methods_are_errors_like_others(server: Server, path: str, status: int) -> None:
    found, _, answer = server.fetch(path)
    assert found == status and json.loads(answer)["error"]["type"] == "invalid_request_error"


def send(server: Server, data: bytes) -> bytes:
    """Raw bytes, and all that the server answers before it closes."""
    host, port = server.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(data)
        found = b""
        while more := connection.recv(65536):
            found += more
        return found


def head(length: int | None, path: str = PATH, kind: str = "application/json") -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{size}\r\nContent-Type: {kind}\r\n\r\n".encode()


def test_large_and_slow_bodies_are_cut_off(held: HeldPipeline) -> None:
    with running(lambda: held.prepare(), max_body=2048, body_seconds=0.2) as server:
        assert server.fetch(PATH, b" " * 3000 + json.dumps(GOOD).encode())[0] == 413
        assert b" 413 " in send(server, head(10**12))
        chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
        assert b" 413 " in send(server, head(None) + 3 * chunk)
        assert b" 408 " in send(server, head(100) + b'{"prompt"')
        assert server.fetch(PATH, GOOD)[0] == 200


def test_a_request_has_an_id_of_its_own_or_its_clients(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stepvar")
    answers = [server.fetch(PATH, GOOD, X_Request_ID=given) for given in ("mine-1", "not an id", "x" * 500)]
    ids = [headers["X-Request-ID"] for _, headers, _ in answers]
    assert ids[0] == "mine-1" and len(set(ids)) == 3 and all(len(one) == 32 for one in ids[1:])
    until(lambda: len([record for record in caplog.records if record.getMessage() == "request"]) >= 3)
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert [line["request_id"] for line in lines if line["message"] == "request"] == ids
    assert lines[0].items() >= {"method": "POST", "path": PATH, "status": 200, "images": 1, "level": "info"}.items()
    assert "red circle" not in caplog.text  # what people ask for is not logged


def figures(server: Server) -> dict[str, float]:
    text = server.fetch("/metrics")[2].decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(sorted(sample.labels.values()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_metrics_count_what_was_generated(held: HeldPipeline) -> None:
    with running(lambda: held.prepare()) as server:
        for own in ({"method": "dense", "n": 2}, {"method": "stepvar"}, {"n": 99}):
            server.fetch(PATH, GOOD | own)
        server.fetch("/made/up")
        until(lambda: figures(server).get("stepvar_requests_total{404,other,other}") == 1)
        found = figures(server)
    tokens = sum(grid.size for grid in held.schedule().grids)
    assert found["stepvar_images_total{}"] == 3 and found["stepvar_queue_images{}"] == 0
    assert found["stepvar_tokens_total{computed}"] + found["stepvar_tokens_total{spared}"] == 3 * tokens
    assert 0 < found["stepvar_tokens_total{spared}"] < tokens
    requests = {key: value for key, value in found.items() if key.startswith("stepvar_requests_total")}
    assert requests["stepvar_requests_total{" + ",".join(sorted([PATH, "POST", "200"])) + "}"] == 2
    assert requests["stepvar_requests_total{" + ",".join(sorted([PATH, "POST", "400"])) + "}"] == 1
    assert requests["stepvar_requests_total{404,other,other}"] == 1
    assert found["stepvar_stage_seconds_total{scales}"] > 0 and found["stepvar_stage_seconds_total{decode}"] > 0
    assert found["stepvar_queue_seconds_count{}"] == 3


def test_two_applications_share_nothing(held: HeldPipeline, server: Server) -> None:
    with running(lambda: held.prepare()) as other:
        before = figures(server)["stepvar_images_total{}"]
        other.fetch(PATH, GOOD)
        assert figures(server)["stepvar_images_total{}"] == before and figures(other)["stepvar_images_total{}"] == 1


def test_everything_is_described(server: Server) -> None:
    described: dict[str, Any] = json.loads(server.fetch("/openapi.json")[2])
    assert {PATH, "/v1/videos", "/v1/models", "/ready", "/metrics"} <= described["paths"].keys()
    fields = described["components"]["schemas"]["ImageRequest"]["properties"]
    assert fields.keys() >= {"prompt", "n", "size", "method", "keep", "speedup", "guidance_scale", "negative_prompt"}


def test_a_client_that_reads_nothing_holds_up_nobody(server: Server) -> None:
    host, port = server.root.removeprefix("http://").split(":")
    body = json.dumps(GOOD | {"n": 4, "stream": True, "partial_images": 9}).encode()
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        stalled.connect((host, int(port)))
        stalled.sendall(head(len(body)) + body)
        assert server.fetch(PATH, GOOD)[0] == 200
        until(lambda: server.service.worker.idle)
        assert server.fetch(PATH, GOOD)[0] == 200
    assert server.fetch(PATH, GOOD)[0] == 200


@pytest.mark.slow
def test_many_streams_at_once_keep_to_themselves(server: Server) -> None:
    def seeds(seed: int) -> list[int]:
        events = server.client.images.generate(
            prompt=GOOD["prompt"], stream=True, partial_images=2, n=2, extra_body={"seed": seed}
        )
        return sorted(event.seed for event in events if event.type == "image_generation.completed")

    running_streams = [in_thread(lambda seed=10 * number: seeds(seed)) for number in range(6)]  # type: ignore[misc]
    assert [found() for found in running_streams] == [[10 * number, 10 * number + 1] for number in range(6)]


def test_what_is_no_http_is_answered_like_other_errors(server: Server) -> None:
    for data in (b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\nHost: \x00\r\n\r\n"):
        answer = send(server, data)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_a_connection_without_a_whole_head_is_closed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    for data in (b"", b"GET /health HTTP/1.1\r\nHost: x\r\nX-More: "):
        with suppress(ConnectionError):  # closed before it has sent anything, where the machine is slow
            assert send(server, data) == b""  # closed by the server: the client would wait for ever


def test_a_head_of_any_length_is_not_kept(server: Server) -> None:
    with suppress(ConnectionError):  # closed before all of it was sent
        assert b" 431 " in send(server, b"GET /health HTTP/1.1\r\nX-More: " + b"x" * protocol.HEAD_BYTES)
    body = json.dumps(GOOD).encode()
    large = head(len(body) + 2**19).replace(b"Connection: close\r\n", b"") + body + b" " * 2**19
    assert send(server, large + head(len(body)) + body).count(b"HTTP/1.1 200 OK") == 2  # bodies are not counted


def test_methods_that_clients_make_up_are_counted_together(held: HeldPipeline) -> None:
    with running(lambda: held.prepare()) as server:
        assert [server.fetch(PATH, method=method)[0] for method in ("PROPFIND", "TRACE")] == [405, 405]
        until(lambda: figures(server).get(f"stepvar_requests_total{{{PATH},405,other}}") == 2)


def test_no_client_is_sent_to_another_host(server: Server) -> None:
    status, headers, answer = server.fetch("/health/", Host="elsewhere.example")
    assert status == 404 and headers["Location"] is None and json.loads(answer)["error"]


WRONG = (
    ({"output_format": "jpeg", "output_compression": 101}, "output_compression"),
    ({"size": "0x64"}, "size"),
    ({"method": "+".join(["stepvar"] * 100)}, "method"),
    ({"keep": ["x"] * 1000}, "keep"),
)


@pytest.mark.parametrize("own, param", WRONG, ids=[param for _, param in WRONG])
def test_an_error_names_the_field_of_the_request(server: Server, own: dict[str, Any], param: str) -> None:
    status, _, answer = server.fetch(PATH, GOOD | own)
    error = json.loads(answer)["error"]
    assert status == 400 and error["param"] == param


def test_an_error_names_the_parameter_of_the_address(server: Server) -> None:
    for query in ("limit=0", "order=sideways"):
        status, _, answer = server.fetch(f"/v1/videos?{query}")
        assert status == 400 and json.loads(answer)["error"]["param"] == query.partition("=")[0]


def test_a_long_list_is_refused_before_its_values_are_looked_at() -> None:
    with pytest.raises(ValidationError) as caught:
        ImageRequest.model_validate({"prompt": "a red circle", "keep": ["x"] * 100_000})
    assert caught.value.error_count() == 1
