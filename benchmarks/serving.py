"""A load test of ``stepvar serve``: errors, memory, what the server adds to an image, and what batches gain.

    python -m benchmarks.serving --model scenes --clients 32 --minutes 10 --out serving.json

Three parts, each with a server of its own in another process. One client alone shows what the server adds to the time
of an image, from the first byte of a request to the last of its answer. Then many clients ask at once, each as soon as
it has an answer; some want pictures on the way, some leave before their image is done. Then the same without batches.
429 is no error: the client comes again when it was told to. The exit status is 1 if something failed or memory grew.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import torch

from benchmarks import command_line
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.scenes.grammar import COLOURS, SHAPES
from stepvar.utils.files import write_text

TIMEOUT = 600.0
"""Seconds after which an answer counts as lost."""
EVERY = 0.5
"""Seconds between two looks at the memory: often enough to meet it between two batches."""
GROWTH = 0.02
"""Share that memory may grow by under load."""
LONGEST_PAUSE = 10.0

Row = dict[str, Any]


@dataclass
class Tally:
    """What the clients of a server met.

    Attributes:
        answers: by status, and what went wrong by the name of its exception.
        seconds: of each answered request.
        images: that were received.
        memory: (seconds since the start, bytes of the server's process).
    """

    answers: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    images: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def errors(self) -> int:
        return sum(count for answer, count in self.answers.items() if answer not in ("200", "429", "left"))

    def growth(self) -> float:
        """By which share memory grew from the second fifth of the time to the last; the first one is warming up.

        Of each the least counts, which is the memory between batches: what a batch works in comes and goes.
        """
        sizes = [size for _, size in self.memory]
        fifth = max(1, len(sizes) // 5)
        return min(sizes[-fifth:]) / min(sizes[fifth : 2 * fifth] or sizes[-fifth:]) - 1


@contextmanager
def server(options: Sequence[str]) -> Iterator[str]:
    """A server in a process of its own; gives ``host:port`` once it takes requests, and ends it as its user would."""
    command = [sys.executable, "-m", "stepvar", "serve", "--port", "0", *options]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=-1, stderr=log, text=True) as process:
        try:
            assert process.stdout is not None
            address = urlsplit(process.stdout.readline().strip()).netloc
            while process.poll() is None and fetch(address, "/ready")[0] != 200:
                time.sleep(0.2)
            if process.poll() is not None:
                log.seek(0)
                raise SystemExit(f"the server did not start: {log.read().decode().splitlines()[-1]}")
            yield address
            process.terminate()
            if (status := process.wait(TIMEOUT)) != 0:
                raise SystemExit(f"the server ended with status {status}")
        finally:
            process.kill()


def fetch(address: str, path: str, body: Row | None = None) -> tuple[int, Any, bytes]:
    """Status, headers and body of one request on a connection of its own."""
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def request_of(chance: random.Random, method: str) -> Row:
    """A request for one image of a prompt that every model of ``scenes`` understands."""
    prompt = f"a {chance.choice(list(COLOURS))} {chance.choice(list(SHAPES))} on sand"
    return {"prompt": prompt, "seed": chance.randrange(2**31), "method": method}


def measure_alone(address: str, count: int, method: str) -> Row:
    """What the server adds to images, one after the other."""
    chance, times = random.Random(0), []
    for _ in range(count + 1):
        begun = time.perf_counter()
        status, _, body = fetch(address, "/v1/images/generations", request_of(chance, method))
        whole = time.perf_counter() - begun
        if status != 200:
            raise SystemExit(f"one client alone: status {status}: {body[:300]!r}")
        times.append((whole, json.loads(body)["data"][0]["report"]["seconds"]))
    added = [(whole - image) / image for whole, image in times[1:]]  # the first one warms up
    return {"image_seconds": median(image for _, image in times[1:]), "overhead": median(added), "requests": count}


def ask(address: str, chance: random.Random, method: str, leaving: float, streams: float, tally: Tally) -> None:
    """One request of one client, counted."""
    body = request_of(chance, method)
    if chance.random() < streams:
        body |= {"stream": True, "partial_images": 3}
    begun, leaves = time.perf_counter(), chance.random() < leaving
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT)
    try:
        connection.request("POST", "/v1/images/generations", json.dumps(body), {"Content-Type": "application/json"})
        if leaves:
            time.sleep(chance.random())
            answer = "left"
            return
        found = connection.getresponse()
        data, answer = found.read(), str(found.status)
        if found.status == 429:
            time.sleep(min(LONGEST_PAUSE, float(found.headers["Retry-After"])))
        elif found.status == 200 and body.get("stream") and b"image_generation.completed" not in data:
            answer = "stream without its image"
    except (OSError, http.client.HTTPException) as error:
        answer = type(error).__name__
    finally:
        connection.close()
        with tally.lock:
            tally.answers[answer] += 1
            if answer == "200":
                tally.images += 1
                tally.seconds.append(time.perf_counter() - begun)


def load(address: str, clients: int, seconds: float, method: str, leaving: float, streams: float) -> Row:
    """Many clients at once; what they met, and how the memory of the server went."""
    tally, begun = Tally(), time.monotonic()

    def run(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() - begun < seconds:
            ask(address, chance, method, leaving, streams, tally)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    while time.monotonic() - begun < seconds:
        time.sleep(min(EVERY, seconds / 10))
        text = fetch(address, "/metrics")[2].decode()
        found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
        if found:
            tally.memory.append((time.monotonic() - begun, float(found[1])))
    for thread in threads:
        thread.join()
    took = time.monotonic() - begun
    return {
        "answers": dict(tally.answers),
        "errors": tally.errors,
        "images_per_second": tally.images / took,
        "median_seconds": median(tally.seconds) if tally.seconds else None,
        "memory_growth": tally.growth() if tally.memory else None,
        "memory": tally.memory,
    }


def table(results: dict[str, Row]) -> str:
    """The figures, and what they are to be."""
    alone, batched, single = results["alone"], results["batches"], results["one_by_one"]
    growth = batched["memory_growth"]
    gain = batched["images_per_second"] / single["images_per_second"] if single["images_per_second"] else float("nan")
    rows = [
        ("time of an image alone", f"{1e3 * alone['image_seconds']:.0f} ms", ""),
        ("added by the server, median", f"{100 * alone['overhead']:.1f} %", "at most 5 %"),
        ("answers", ", ".join(f"{count} x {kind}" for kind, count in sorted(batched["answers"].items())), ""),
        ("errors", str(batched["errors"] + single["errors"]), "0"),
        (
            "growth of memory",
            "unknown" if growth is None else f"{100 * growth:+.1f} %",
            f"at most {100 * GROWTH:.0f} %",
        ),
        ("images per second, batches", f"{batched['images_per_second']:.3f}", ""),
        ("images per second, one by one", f"{single['images_per_second']:.3f}", ""),
        ("gain of batches", f"{gain:.2f}x", "1.3x where a batch pays"),
    ]
    lines = ["| | measured | wanted |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--method", default="dense")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10.0, help="of load, with batches; half of it without")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--alone", type=int, default=20, help="requests of one client")
    parser.add_argument("--leaving", type=float, default=0.02, help="share of requests whose client leaves")
    parser.add_argument("--streams", type=float, default=0.05, help="share of requests with pictures on the way")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    options = ["--model", given.model, "--device", given.device, "--dtype", given.dtype, "--method", given.method]
    seconds, method = 60 * given.minutes, given.method
    with server([*options, "--max-batch", str(given.max_batch)]) as address:
        results = {"alone": measure_alone(address, given.alone, method)}
        results["batches"] = load(address, given.clients, seconds, method, given.leaving, given.streams)
    with server([*options, "--max-batch", "1"]) as address:
        results["one_by_one"] = load(address, given.clients, seconds / 2, method, given.leaving, given.streams)
    print(table(results))
    if given.out:
        info = provenance(torch.device(given.device), command_line(__spec__))
        write_text(given.out, json.dumps({"info": info, "results": results}, indent=1) + "\n")
    growth = results["batches"]["memory_growth"] or 0.0
    return int(results["batches"]["errors"] + results["one_by_one"]["errors"] > 0 or growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
