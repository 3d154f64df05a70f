"""Several copies of the server behind one address, on Ray Serve: one on each GPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI

from stepvar.errors import StepvarError
from stepvar.pipeline import Pipeline
from stepvar.serving.address import url_of
from stepvar.serving.cluster import cluster
from stepvar.serving.server import ServerSettings, create_app
from stepvar.utils.log import logger
from stepvar.utils.require import require

NAME = "stepvar"
ONGOING = 1000
"""Requests that a copy has at once; how many images wait, its own queue says."""


def serve_replicas(
    load: Callable[[], Pipeline],
    settings: ServerSettings,
    keys: Sequence[str],
    replicas: int,
    gpus: int,
    host: str,
    port: int,
    ready: Callable[[str], None],
) -> None:
    """Runs the server in several processes until a signal ends it; Ray Serve hands each request to one that has few.

    Args:
        load: loads the pipeline of a copy, in its process.
        gpus: of each copy, 1; or 0 for the CPU.
        ready: called with the address when all copies take requests.

    Raises:
        UsageError: if Ray is not installed, or has not as many GPUs or CPUs.
        StepvarError: if a copy cannot begin.
    """
    serve = require("ray.serve", "replicas", "--replicas")

    def build() -> FastAPI:
        pipe = load()  # here, so that Ray Serve hears of it if it cannot be loaded
        return create_app(lambda: pipe, settings, keys, wait=True)

    deployment = serve.deployment(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=ONGOING,
        ray_actor_options={"num_gpus": gpus, "num_cpus": 0 if gpus else 1},
    )(serve.ingress(build)())
    with cluster("replicas", replicas, gpus, "--replicas"):
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "ERROR"})
        try:
            _run(serve, deployment.bind())
            ready(f"{url_of(host, port)}/v1")
            while True:
                time.sleep(1)
        finally:
            logger.info("ending")
            serve.shutdown()


def _run(serve: Any, application: Any) -> None:
    """Starts all copies, and waits until they take requests.

    Raises:
        StepvarError: with what kept one from beginning.
    """
    try:
        serve.run(application, name=NAME)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise StepvarError(f"replicas: a copy of the server cannot begin ({lines[-1][:500]})") from error
