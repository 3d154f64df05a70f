"""``stepvar serve``: a model behind OpenAI's images and videos API."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from stepvar.cli import options
from stepvar.cli.groups import Precision, Source, grouped
from stepvar.core.values import Range
from stepvar.errors import UsageError

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one, which is printed.")]
Name = Annotated[str | None, typer.Option(help="What clients call the model; default: its own name.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        parser=options.path,
        metavar="PATH",
        help="File with the keys that clients must bring, one per line; default: the variable STEPVAR_API_KEY, if set.",
    ),
]
Method = Annotated[str, typer.Option("--method", help="For requests that name neither a method nor a quality.")]
MaxBatch = Annotated[int, typer.Option(help="Images that run as one batch at most.")]
MaxWait = Annotated[
    float, typer.Option(help="Seconds that a batch waits for others to join it, if several clients ask.")
]
MaxQueue = Annotated[int, typer.Option(help="Images that wait at most; more are answered with 429.")]
MaxImages = Annotated[int, typer.Option(help="Images of one request.")]
MaxPixels = Annotated[int | None, typer.Option(help="Width times height of a result at most.")]
MaxSeconds = Annotated[float, typer.Option(help="Length of a video at most.")]
Replicas = Annotated[
    int | None,
    typer.Option(
        help="Copies behind one address, on Ray Serve: each with a GPU of its own, or a CPU without --device."
    ),
]
WarmUp = Annotated[bool, typer.Option(help="Generate before the server says that it is ready.")]


@grouped
def serve(
    *,
    source: Source,
    memory: options.Memory,
    precision: Precision,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Name = None,
    api_key_file: KeyFile = None,
    method: Method = "dense",
    max_batch: MaxBatch = 4,
    max_wait: MaxWait = 0.01,
    max_queue: MaxQueue = 64,
    max_images: MaxImages = 10,
    max_pixels: MaxPixels = None,
    max_seconds: MaxSeconds = 60.0,
    replicas: Replicas = None,
    warm_up: WarmUp = True,
) -> None:
    """Serve a model over HTTP: OpenAI's images and videos API, Prometheus metrics, JSON logs."""
    from stepvar.utils.require import require

    for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        require(package, "serve", "the server")
    from stepvar.serving.address import is_public, listen, url_of
    from stepvar.serving.server import ServerSettings, create_app
    from stepvar.serving.server.logs import FACTS, json_log
    from stepvar.serving.server.run import serve as run
    from stepvar.serving.server.settings import KEY_VARIABLE, read_keys
    from stepvar.utils.log import logger

    settings = ServerSettings(
        name=name or "",
        method=method,
        max_batch=max_batch,
        max_wait=max_wait,
        max_queue=max_queue,
        max_images=max_images,
        max_pixels=max_pixels,
        max_seconds=max_seconds,
        warm_up=warm_up,
    )
    keys = read_keys(api_key_file)
    precision.check()
    load = source.loader(precision, memory)
    if replicas is not None:
        _check_replicas(replicas, host, port, source.model, source.variant)
    open_to_all = f"everybody who reaches this address may use the server; set {KEY_VARIABLE} or --api-key-file"
    with json_log():
        if replicas is not None:
            from stepvar.serving.replicas import serve_replicas

            if is_public(host) and not keys:
                logger.warning(open_to_all)
            gpus = int(options.parse_device(precision.device).type == "cuda")
            serve_replicas(load, settings, keys, replicas, gpus, host, port, lambda url: print(url, flush=True))
            return
        app = create_app(load, settings, keys)
        with listen(host, port) as listener:
            if is_public(host) and not keys:
                logger.warning(open_to_all)
            url = f"{url_of(*listener.getsockname()[:2])}/v1"
            print(url, flush=True)
            logger.info("listening", extra={FACTS: {"url": url, "model": source.model}})
            forced = run(app, listener)
    _end(forced, app.state.service.worker.loading)


def _end(forced: int, loading: bool) -> None:
    """Ends the process behind the server.

    Args:
        forced: the signal that ended the server before its work was done; 0: none did.
        loading: whether a thread is still reading the model.

    Raises:
        Exit: with a status that names the signal.
    """
    status = 128 + forced if forced else 0
    if loading:  # no signal ends that, and Python's own end crashes where it takes it away
        sys.stdout.flush()
        os._exit(status)
    if status:
        raise typer.Exit(status)


def _check_replicas(replicas: int, host: str, port: int, model: str, variant: str | None) -> None:
    """Says before any work what copies of a server cannot do.

    Raises:
        UsageError: for a number that is none, port 0, an address that cannot be opened, or a model whose jobs one copy
            alone would know.
    """
    from stepvar.checkpoints.sources import find_outline
    from stepvar.serving.address import check_address

    options.check_counts(replicas=(replicas, Range(1, 4096)))
    check_address(host, port)
    if port == 0:
        raise UsageError("port=0: copies share one port, which must be known; give one, such as 8000")
    if find_outline(model, variant).family.video:
        raise UsageError(
            f"replicas={replicas}: jobs of videos are known to the copy that took them; start one server for each GPU, "
            "each with a --port of its own"
        )
