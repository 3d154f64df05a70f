"""The page as a whole."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from stepvar.serving.web import markup
from stepvar.serving.web.panel import PLAIN, Panel
from stepvar.serving.web.requests import Requests

STYLE = Path(__file__).with_name("style.css")
TOGGLE_DARK = "() => { document.body.classList.toggle('dark'); }"
NO_VIDEO = """**{model}** makes images.

Start the page with a model that makes videos, such as the one in the package:

```
stepvar web --model scenes-video
```
"""


def build(requests: Requests) -> gr.Blocks:
    """The page, not served yet."""
    images, videos = requests.studio.images, requests.studio.videos

    def leave(request: gr.Request) -> None:
        requests.leave(request.session_hash)

    with gr.Blocks(title=f"stepvar: {images.model}", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        with gr.Row(elem_classes="sv-top"):
            gr.HTML(markup.header(images), **PLAIN)
            toggle = gr.Button("Light or dark", size="sm", elem_id="theme", scale=0, min_width=120)
            toggle.click(None, js=TOGGLE_DARK, api_visibility="private")
        with gr.Tabs(selected="image" if videos is None else "video"):
            with gr.Tab("Image", id="image"):
                Panel(requests, images, autofocus=videos is None)
            with gr.Tab("Video", id="video"):
                if videos is None:
                    gr.Markdown(NO_VIDEO.format(model=images.model), elem_classes="sv-explained")
                else:
                    Panel(requests, videos)
        blocks.unload(leave)
    blocks.queue(default_concurrency_limit=None, api_open=False)  # the studio has a line of its own
    return blocks
