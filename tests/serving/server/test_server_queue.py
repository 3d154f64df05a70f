"""Batches, the queue, clients that leave, and the end of a server."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from stepvar import Pipeline
from stepvar.errors import UsageError
from stepvar.serving.server import ServerSettings, create_app, worker
from stepvar.text import example_prompt
from tests.serving.server.servers import LONG, HeldPipeline, Server, in_thread, picture, pixels, running, until

PROMPTS = ["a red circle on grass", "a blue star", "a large yellow triangle on sand"]


def ask(server: Server, prompt: str, **own: Any) -> Callable[[], Any]:
    """Asks for an image beside the test; calling the result gives the answer's image."""
    body = {"seed": 4, **own}
    return in_thread(lambda: (server.client.images.generate(prompt=prompt, extra_body=body).data)[0])


def hold(server: Server, prompt: str = "a green square") -> Callable[[], Any]:
    """Lets a request run and holds it up, so that what is asked next waits."""
    server.pipe.let_begin.clear()
    server.pipe.begun.clear()
    found = ask(server, prompt)
    assert server.pipe.begun.wait(60)
    return found


def waiting(server: Server, count: int) -> None:
    until(lambda: len(server.service.worker._queue) == count)


def leave(server: Server, body: dict[str, Any], when: Callable[[], Any]) -> None:
    """A client that sends a request and closes its connection."""
    data = json.dumps(body).encode()
    host, port = server.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
        when()


def test_requests_that_fit_run_together_and_others_apart(server: Server) -> None:
    first = hold(server)
    answers = [ask(server, prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]
    other = ask(server, "a red circle", method="stepvar")
    waiting(server, 4)
    server.pipe.let_begin.set()
    reports = [answer().report for answer in answers]
    assert [one["batch"] for one in reports] == [3] * 3 and first().report["batch"] == other().report["batch"] == 1
    assert sorted(map(sorted, server.pipe.prompts)) == sorted([["a green square"], sorted(PROMPTS), ["a red circle"]])


def test_an_image_of_a_batch_is_that_of_the_image_alone(server: Server) -> None:
    alone = [pixels(picture(ask(server, prompt, method="stepvar")())) for prompt in PROMPTS]
    first = hold(server)
    answers = [ask(server, prompt, method="stepvar") for prompt in PROMPTS]
    waiting(server, len(PROMPTS))
    server.pipe.let_begin.set()
    for answer, expected in zip(answers, alone, strict=True):
        assert answer().report["batch"] == len(PROMPTS)
        assert np.abs(pixels(picture(answer())) - expected).max() <= 1  # sums of a larger product, rounded differently
    first()


def test_a_client_that_is_alone_waits_for_nobody(held: HeldPipeline) -> None:
    with running(lambda: held.prepare(), max_wait=60.0) as server:
        for _ in range(2):
            assert ask(server, "a red circle")().report["queued"] < 60


def test_a_client_that_asks_again_at_once_is_still_alone(held: HeldPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the thread tidies up behind its answer, the next request is there, and came together with nobody."""
    tidied = threading.Event()
    monkeypatch.setattr(worker, "return_free_memory", lambda: tidied.wait(LONG))
    with running(lambda: held.prepare(), max_wait=60.0) as server:
        ask(server, "a red circle")()
        again = ask(server, "a red circle")
        waiting(server, 1)
        tidied.set()
        assert again().report["queued"] < 60


def test_clients_that_ask_again_and_again_do_not_take_turns(held: HeldPipeline) -> None:
    with running(lambda: held.prepare(), max_wait=60.0, max_batch=2) as server:
        first = hold(server)
        second = ask(server, "a blue star")
        waiting(server, 1)
        held.let_begin.set()
        assert first()
        again = ask(server, "a red circle")  # which the second one waits for, in place of running alone
        assert second().report["batch"] == again().report["batch"] == 2


def test_a_large_request_is_several_batches(server: Server) -> None:
    answer = server.client.images.generate(prompt="a red circle", n=6, extra_body={"seed": 0})
    assert [len(batch) for batch in server.pipe.prompts] == [4, 2]
    assert [one.seed for one in answer.data] == [0, 1, 2, 3, 4, 5]


def test_what_decides_by_the_image_runs_image_by_image(server: Server) -> None:
    fields = {"seed": 0, "method": "sparsevar:threshold"}
    answer = server.client.images.generate(prompt="a red circle", n=2, extra_body=fields)
    alone = server.client.images.generate(prompt="a red circle", extra_body={**fields, "seed": 1})
    assert server.pipe.prompts == [["a red circle"]] * 3
    assert np.array_equal(pixels(picture(answer.data[1])), pixels(picture(alone.data[0])))


def test_one_that_fails_does_not_fail_its_batch(server: Server) -> None:
    first = hold(server)
    server.pipe.failing, server.pipe.failing_prompt = UsageError("prompt: cannot be drawn"), PROMPTS[1]
    answers = [ask(server, prompt) for prompt in PROMPTS]
    waiting(server, 3)
    server.pipe.let_begin.set()
    assert answers[0]().report["batch"] == answers[2]().report["batch"] == 1 and first()
    with pytest.raises(openai.BadRequestError, match="cannot be drawn"):
        answers[1]()


def test_what_breaks_is_an_internal_error_that_says_nothing_of_the_server(server: Server) -> None:
    server.pipe.failing, server.pipe.failing_prompt = RuntimeError("secret of /home"), "a red circle"
    with pytest.raises(openai.InternalServerError) as failed:
        ask(server, "a red circle")()
    assert "secret" not in str(failed.value) and failed.value.code == "internal_error"
    with pytest.raises(openai.APIError, match="internal error"):
        list(server.client.images.generate(prompt="a red circle", stream=True))
    server.pipe.failing = None
    assert ask(server, "a red circle")()


def test_a_full_queue_says_when_to_come_again(held: HeldPipeline) -> None:
    held.prepare()
    with running(lambda: held, max_queue=2, max_images=2) as server:
        running_now, queued = hold(server), [ask(server, prompt) for prompt in PROMPTS[:2]]
        waiting(server, 2)
        with pytest.raises(openai.RateLimitError) as refused:
            server.client.images.generate(prompt="a red circle")
        assert int(refused.value.response.headers["retry-after"]) >= 1 and refused.value.code == "queue_full"
        held.let_begin.set()
        assert running_now() and all(answer() for answer in queued)
        assert ask(server, "a red circle")()


def test_a_client_that_leaves_the_queue_costs_nothing(server: Server) -> None:
    first = hold(server)
    leave(server, {"prompt": "a blue star"}, lambda: waiting(server, 1))
    waiting(server, 0)
    server.pipe.let_begin.set()
    assert first() and server.pipe.prompts == [["a green square"]]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_image(server: Server, stream: bool) -> None:
    pipe, before = server.pipe, server.service.metrics.abandoned._value.get()
    pipe.let_go_on.clear()
    leave(server, {"prompt": "a blue star", "stream": stream}, lambda: pipe.in_pass.wait(60))
    until(lambda: all(item.work.left for item in server.service.worker._running))
    pipe.let_go_on.set()
    until(lambda: server.service.worker.idle)
    assert pipe.passes == 1 and server.service.metrics.abandoned._value.get() == before + 1


def test_a_batch_goes_on_while_one_client_waits(server: Server) -> None:
    pipe, first = server.pipe, hold(server)
    stays = ask(server, "a red circle")
    waiting(server, 1)

    def run_into_a_pass() -> None:
        waiting(server, 2)
        pipe.let_go_on.clear()
        pipe.let_begin.set()
        until(lambda: len(pipe.prompts) == 2 or pipe.in_pass.is_set())

    leave(server, {"prompt": "a blue star", "seed": 4}, run_into_a_pass)
    pipe.let_go_on.set()
    assert first() and stays().seed == 4


def test_it_is_ready_once_it_is_loaded_and_warm(held: HeldPipeline) -> None:
    held.prepare().let_begin.clear()
    with running(lambda: held, wait=False, warm_up=True) as server:
        assert held.begun.wait(60)
        assert server.fetch("/ready")[0] == 503 and server.fetch("/health")[0] == 200
        with pytest.raises(openai.InternalServerError, match="being loaded"):
            server.client.images.generate(prompt="a red circle")
        held.let_begin.set()
        until(lambda: server.fetch("/ready")[0] == 200)
        assert ask(server, "a red circle")()


def test_a_copy_begins_when_it_is_warm_or_says_why_it_cannot(held: HeldPipeline) -> None:
    """As Ray Serve asks for it, which then sends it requests."""

    async def begin(factory: Callable[[], Pipeline]) -> bool:
        app = create_app(factory, ServerSettings(warm_up=True), wait=True)
        async with app.router.lifespan_context(app):
            ready: bool = app.state.service.ready
            return ready

    assert asyncio.run(begin(held.prepare)) and held.passes
    held.failing, held.failing_prompt = UsageError("does not run here"), example_prompt(held.text_encoder)
    with pytest.raises(UsageError, match="does not run here"):
        asyncio.run(begin(lambda: held))


def test_the_end_finishes_what_was_taken_and_takes_no_more(held: HeldPipeline) -> None:
    held.prepare()
    with running(lambda: held) as server:
        first = hold(server)
        queued = ask(server, "a blue star")
        waiting(server, 1)
        server.service.drain()
        assert server.fetch("/ready")[0] == 503
        with pytest.raises(openai.InternalServerError, match="is ending") as refused:
            server.client.images.generate(prompt="a red circle")
        assert refused.value.response.headers["retry-after"]
        held.let_begin.set()
        assert first().seed == queued().seed == 4


def test_what_keeps_the_model_from_being_loaded_ends_the_server(tmp_path: Path) -> None:
    from stepvar.errors import StepvarError
    from stepvar.serving.address import listen
    from stepvar.serving.server.run import serve

    with listen("127.0.0.1", 0) as listener, pytest.raises(StepvarError, match="nothing"):
        serve(create_app(lambda: Pipeline.from_pretrained(tmp_path / "nothing")), listener)


def test_a_request_fails_once_and_as_a_whole(server: Server) -> None:
    server.pipe.failing, server.pipe.failing_prompt = UsageError("prompt: cannot be drawn"), "a red circle"
    with pytest.raises(openai.BadRequestError, match="cannot be drawn"):
        server.client.images.generate(prompt="a red circle", n=6)
    until(lambda: server.service.worker.idle)
    assert [len(prompts) for prompts in server.pipe.prompts] == [4, 1]  # the batch, and its first image alone
