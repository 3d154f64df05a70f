"""The Ray cluster that several pipelines run on."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stepvar.errors import UsageError
from stepvar.utils.require import require


@contextmanager
def cluster(option: str, count: int, gpus: int, what: str) -> Iterator[Any]:
    """Within it Ray is there: the cluster of ``RAY_ADDRESS``, or one of this machine that ends with the block.

    Args:
        option: the option that says how many pipelines there are, for errors.
        count: how many.
        gpus: of each; 0: each takes a CPU.
        what: needs Ray, for errors.

    Raises:
        UsageError: if Ray is not installed, or has not as many GPUs or CPUs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters here comes as an exception
    ray, address = require("ray", "batch", what), os.environ.get("RAY_ADDRESS")
    ours = not ray.is_initialized()
    if ours:
        local = {} if address else {"num_cpus": max(os.cpu_count() or 1, count + 1), "include_dashboard": False}
        with _without_stderr(), _own_signals():
            ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
    try:
        _check_resources(ray.cluster_resources(), option, count, "GPU" if gpus else "CPU")
        yield ray
    except KeyboardInterrupt:
        ours = False  # it ends with the process: while it shuts down, another signal would kill the process at once
        raise
    finally:
        if ours:
            with _own_signals():
                ray.shutdown()


def _check_resources(found: dict[str, float], option: str, count: int, kind: str) -> None:
    there = int(found.get(kind, 0))
    if there < count:
        remedy = f"give --{option} {there}" if there else "leave them out to run on the CPU"
        raise UsageError(f"{option}={count}: Ray finds {there} {kind}s; {remedy}")


@contextmanager
def _own_signals() -> Iterator[None]:
    """Has the handler of SIGTERM that was there be there again behind it: Ray sets its own, and at its end none."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drops what is written to file descriptor 2: Ray's C++ part says there which log level it was given."""
    kept = os.dup(2)
    with open(os.devnull, "w") as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
