"""Opens the page on a port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from stepvar.core.values import Range, whole_number
from stepvar.errors import UsageError
from stepvar.serving.address import check_address
from stepvar.utils.require import require

if TYPE_CHECKING:
    from stepvar.pipeline import Pipeline

PORT = 7860
WAITING = Range(0, 1000)


def check_package() -> None:
    """Raises a UsageError where Gradio is not installed."""
    require("gradio", "web", "the web page")


def parse_auth(text: str | None) -> tuple[str, str] | None:
    """Name and password of ``name:password``; a UsageError for another text, which it does not repeat."""
    if text is None:
        return None
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise UsageError("auth: must be name:password; neither may be empty")
    return name, password


@contextmanager
def serve(
    pipe: Pipeline,
    host: str = "127.0.0.1",
    port: int = PORT,
    *,
    waiting: int = 8,
    auth: tuple[str, str] | None = None,
    share: bool = False,
) -> Iterator[str]:
    """Serves the page within the context.

    Args:
        pipe: nobody else may use it meanwhile.
        host, port: where; port 0 is any free one.
        waiting: how many requests may wait behind the one that runs.
        auth: name and password that visitors have to give.
        share: whether Gradio opens the page to the internet through its servers.

    Returns:
        The address.

    Raises:
        UsageError: without Gradio, or if the port cannot be opened.
    """
    check_package()
    whole_number("waiting", waiting, WAITING)
    port = check_address(host, port)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from stepvar.serving.web.downloads import Downloads
    from stepvar.serving.web.page import STYLE, build
    from stepvar.serving.web.requests import Requests
    from stepvar.serving.web.studio import Studio
    from stepvar.serving.web.theme import theme

    with TemporaryDirectory(prefix="stepvar-web-") as folder, _files_in(Path(folder) / "shown"):
        results = Path(folder) / "results"
        results.mkdir()
        requests = Requests(Studio(pipe, waiting), Downloads(results))
        blocks = build(requests)
        try:
            _, url, public = blocks.launch(
                server_name=host,
                server_port=port,
                share=share,
                auth=auth,
                prevent_thread_lock=True,
                quiet=True,
                show_error=True,
                footer_links=[],
                ssr_mode=False,
                max_threads=waiting + 16,  # each request that waits takes one
                max_file_size="32mb",
                theme=theme(),
                css_paths=STYLE,
            )
            yield public or url
        finally:
            requests.close()
            blocks.close(verbose=False)


@contextmanager
def _files_in(folder: Path) -> Iterator[None]:
    """Gradio puts the files that it shows into a folder, which goes with the page."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
