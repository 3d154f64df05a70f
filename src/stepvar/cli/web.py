"""``stepvar web``: a page in the browser for those who do not write Python."""

from __future__ import annotations

import threading
import warnings
from typing import Annotated

import typer

from stepvar.cli import options
from stepvar.core.values import DEFAULT_MODEL
from stepvar.utils.log import logger


def web(
    model: options.Model = DEFAULT_MODEL,
    variant: options.Variant = None,
    revision: options.Revision = None,
    text_encoder: options.TextEncoder = None,
    offload: options.Offload = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    quantization: options.Quantization = None,
    host: Annotated[str, typer.Option(help="Where it listens; 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.")] = 7860,
    waiting: Annotated[int, typer.Option(help="Requests that may wait behind the one that runs.")] = 8,
    auth: Annotated[
        str | None,
        typer.Option(
            envvar="STEPVAR_WEB_AUTH", help="name:password that visitors have to give; better in the variable."
        ),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Open the page to the internet through the servers of Gradio.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Open a page that generates images and videos, until it is interrupted."""
    from stepvar.serving.address import check_address, is_public
    from stepvar.serving.web import WAITING, check_package, parse_auth, serve

    for category in (DeprecationWarning, FutureWarning, ResourceWarning):  # what Gradio is to mend
        warnings.simplefilter("ignore", category)
    options.check_counts(waiting=(waiting, WAITING))
    check_package()
    login = parse_auth(auth)
    check_address(host, port)
    options.parse_device(device), options.parse_dtype(dtype)
    if login is None and (share or is_public(host)):
        logger.warning("everyone who reaches this address can use the page; --auth asks for a name and a password")
    memory = options.Memory(offload)
    pipe = options.load_pipeline(model, device, dtype, variant, revision, text_encoder, memory, quantization)
    with serve(pipe, host, port, waiting=waiting, auth=login, share=share) as url:
        if not quiet:
            print(f"{pipe.name}: {url} (Ctrl+C ends it)", flush=True)
        threading.Event().wait()
