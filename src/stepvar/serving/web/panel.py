"""The controls for images or for videos, their results, and what happens between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from stepvar.errors import StepvarError, UsageError
from stepvar.serving.web import markup
from stepvar.serving.web.offers import Budget, Offer
from stepvar.serving.web.requests import Requests
from stepvar.serving.web.studio import Progress, Result, Wish
from stepvar.serving.web.turns import Cancelled
from stepvar.utils.log import logger

BUDGETS: dict[Budget, str] = {"keep": "Share of tokens", "speedup": "Speed-up"}
PLAIN: dict[str, Any] = {"padding": False, "apply_default_css": False}
"""HTML without Gradio's own style."""
SHOWN: dict[str, Any] = {"interactive": False, "show_label": False, "format": "png", "buttons": ["fullscreen"]}
"""Pictures without loss; Gradio's own download would be without the settings inside."""
PLAYED: dict[str, Any] = {"interactive": False, "loop": True, "autoplay": True, "buttons": []}
MOVE_DIVIDER = "(place) => ({__type__: 'update', slider_position: place})"
IDLE = "Write a prompt and press Enter."
VIEW = 460
"""Pixels of height that a picture takes at most."""

Changes = dict[Any, Any]
"""What becomes of components."""


class Panel:
    """The controls for images or for videos, and their results.

    Args:
        requests: serves them.
        autofocus: whether one can type a prompt at once.
        offer: what can be asked for.
    """

    def __init__(self, requests: Requests, offer: Offer, autofocus: bool = True) -> None:
        self.requests, self.offer, self.video = requests, offer, offer.video
        kind = "video" if offer.video else "image"
        with gr.Row(elem_classes="sv-ask"):
            self.prompt = gr.Textbox(
                label="Prompt" if offer.argument == "prompt" else "Class (name or number)",
                placeholder=offer.examples[0] if offer.examples else f"What the {kind} is to show",
                lines=1,
                max_lines=5,
                autofocus=autofocus,
                scale=8,
                elem_id=f"{kind}-prompt",
            )
            self.generate = gr.Button("Generate", variant="primary", scale=1, min_width=130, elem_id=f"{kind}-generate")
            self.cancel = gr.Button(
                "Cancel", variant="stop", scale=1, min_width=130, visible=False, elem_id=f"{kind}-cancel"
            )
        if offer.examples:
            gr.Examples([[one] for one in offer.examples], self.prompt, label="Examples", api_visibility="private")
        with gr.Row(elem_classes="sv-body"):
            with gr.Column(scale=5, min_width=300, elem_classes="sv-results"):
                self._results(kind)
            with gr.Column(scale=3, min_width=300, elem_classes="sv-settings"):
                self._settings(kind)
        self._wire()

    def _settings(self, kind: str) -> None:
        offer = self.offer
        self.image = gr.Image(label="Image to change", type="pil", visible=offer.edits, elem_id=f"{kind}-source")
        self.negative = gr.Textbox(
            label="Negative prompt",
            placeholder="What to lead away from",
            visible=offer.negative,
            elem_id=f"{kind}-negative",
        )
        self._method_settings(kind)
        self.compare = gr.Checkbox(True, label="Compare with dense", elem_id=f"{kind}-compare")
        self.previews = gr.Checkbox(True, label="Show every scale", elem_id=f"{kind}-previews")
        with gr.Row(elem_classes="sv-pair"):
            self.seed = gr.Number(1, label="Seed", precision=0, min_width=120, elem_id=f"{kind}-seed")
            self.random = gr.Checkbox(True, label="Random seed", min_width=120, elem_id=f"{kind}-random")
        self.shape = gr.Dropdown(
            list(offer.shapes),
            value=offer.shapes[0][1],
            label="Aspect ratio",
            visible=len(offer.shapes) > 1,
            elem_id=f"{kind}-shape",
        )
        with gr.Accordion("What the methods do", open=False, elem_classes="sv-all"):
            gr.HTML(markup.methods(offer), **PLAIN)

    def _method_settings(self, kind: str) -> None:
        first = self.offer.methods[0]
        budget = next(iter(first.budgets), None)
        self.method = gr.Dropdown(
            [one.name for one in self.offer.methods],
            value=first.name,
            label="Method",
            info=first.summary,
            elem_id=f"{kind}-method",
        )
        self.budget = gr.Radio(
            self._budgets(first.name),
            value=budget,
            label="Budget",
            visible=len(first.budgets) > 1,
            elem_id=f"{kind}-budget",
        )
        self.keep = gr.Slider(
            5,
            100,
            value=50,
            step=5,
            label="Tokens computed at the late scales, %",
            info="Fewer are faster; 100 % is dense.",
            visible=budget == "keep",
            elem_id=f"{kind}-keep",
        )
        self.speedup = gr.Slider(
            1,
            4,
            value=1.5,
            step=0.1,
            label="Times as fast as dense",
            info="Measured on this machine at the first use, which takes a while.",
            visible=budget == "speedup",
            elem_id=f"{kind}-speedup",
        )

    def _results(self, kind: str) -> None:
        self.status = gr.HTML(markup.done(IDLE), **PLAIN, elem_id=f"{kind}-status")
        with gr.Tabs(elem_classes="sv-views") as self.views:
            with gr.Tab("Picture", id="picture"):
                self.picture = gr.Image(
                    label="Picture",
                    height=VIEW,
                    elem_id=f"{kind}-picture",
                    elem_classes="sv-view",
                    alt_text="What was generated",
                    **SHOWN,
                )
                if self.video:
                    self.film = gr.Video(label="Video", show_label=False, visible=False, height=VIEW, **PLAYED)
            with gr.Tab("Compare", id="compare"):
                self._comparison(kind)
            with gr.Tab("Tokens", id="kept"):
                said = "Dark tokens were restored, not computed; the number is the share that was computed."
                self.kept = self._gallery("Computed tokens", said, 2, f"{kind}-kept")
            with gr.Tab("Scales", id="scales"):
                said = "The picture after each scale, from coarse to fine; the number is that of its tokens."
                self.scales = self._gallery("The picture after each scale", said, 4, f"{kind}-scales")
        self.costs = gr.HTML(**PLAIN, elem_id=f"{kind}-costs")
        self.download = gr.DownloadButton(
            "Download MP4" if self.video else "Download PNG", interactive=False, elem_id=f"{kind}-download"
        )

    def _comparison(self, kind: str) -> None:
        if self.video:
            with gr.Row():
                self.dense = gr.Video(label="Dense", elem_id=f"{kind}-dense", **PLAYED)
                self.pruned = gr.Video(label="Method", elem_id=f"{kind}-pruned", **PLAYED)
            return
        self.slider = gr.ImageSlider(label="Dense and the method", max_height=VIEW, elem_id=f"{kind}-slider", **SHOWN)
        self.ends = gr.HTML(**PLAIN)
        self.divider = gr.Slider(
            0,
            100,
            value=50,
            step=1,
            label="Divider, % from the left",
            buttons=[],
            visible=False,
            elem_id=f"{kind}-divider",
            elem_classes="sv-divider",
        )

    def _gallery(self, label: str, said: str, columns: int, name: str) -> gr.Gallery:
        """Pictures in columns, below what is said of them."""
        gr.HTML(markup.hint(said), **PLAIN)
        return gr.Gallery(
            label=label, columns=columns, object_fit="contain", elem_id=name, elem_classes="sv-gallery", **SHOWN
        )

    def _wire(self) -> None:
        """What happens when."""
        inputs = [self.prompt, self.negative, self.random, self.seed, self.shape, self.method, self.budget]
        inputs += [self.keep, self.speedup, self.compare, self.previews, self.image]
        results = [self.status, self.picture, self.views, self.kept, self.scales, self.costs, self.download, self.seed]
        results += [self.generate, self.cancel]
        results += [self.film, self.dense, self.pruned] if self.video else [self.slider, self.ends, self.divider]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        gr.on(
            [self.prompt.submit, self.negative.submit, self.generate.click],
            self._generate,
            inputs,
            results,
            trigger_mode="once",
            concurrency_limit=None,
            **private,
        )
        self.cancel.click(self._cancel, None, None, queue=False, **private)
        self.method.change(self._choose, [self.method, self.budget], [self.method, self.budget], **private)
        gr.on(
            [self.method.change, self.budget.change],
            self._limit,
            [self.method, self.budget],
            [self.keep, self.speedup],
            **private,
        )
        if not self.video:  # the handle of the comparison is for pointers only
            self.divider.input(None, self.divider, self.slider, js=MOVE_DIVIDER, api_visibility="private")
        self.random.change(lambda chosen: gr.update(interactive=not chosen), self.random, self.seed, **private)

    def _budgets(self, method: str) -> list[tuple[str, str]]:
        return [(BUDGETS[one], one) for one in self.offer.method(method).budgets]

    def _choose(self, method: str, budget: Budget | None) -> Changes:
        """Another method was chosen: what it does, and which budgets it has."""
        offer, budgets = self.offer.method(method), self._budgets(method)
        known = budget if budget in offer.budgets else next(iter(offer.budgets), None)
        return {
            self.method: gr.update(info=offer.summary),
            self.budget: gr.update(choices=budgets, value=known, visible=len(budgets) > 1),
        }

    def _limit(self, method: str, budget: Budget | None) -> Changes:
        """The slider of a budget."""
        budgets = self.offer.method(method).budgets
        return {
            self.keep: gr.update(visible=budget == "keep" and "keep" in budgets),
            self.speedup: gr.update(visible="speedup" in budgets and (budget == "speedup" or "keep" not in budgets)),
        }

    def _cancel(self, request: gr.Request) -> None:
        self.requests.cancel(request.session_hash, self.video)

    def _generate(
        self,
        prompt: str,
        negative: str,
        random: bool,
        seed: int | None,
        shape: float,
        method: str,
        budget: Budget | None,
        keep: float,
        speedup: float,
        compare: bool,
        previews: bool,
        image: Any,
        request: gr.Request,
    ) -> Iterator[Changes]:
        """Runs one request, and changes the page as it gets on."""
        stop = self.requests.begin(request.session_hash, self.video)
        yield self._busy()
        try:
            if seed is None and not random:
                raise UsageError("seed: is empty; give a whole number, or tick “Random seed”")
            wish = Wish(
                prompt=prompt or "",
                negative_prompt=negative or "",
                seed=None if random else seed,
                aspect_ratio=shape if len(self.offer.shapes) > 1 else None,
                method=method,
                budget=budget or "keep",
                keep=keep / 100,
                speedup=speedup,
                compare=compare,
                previews=previews,
                image=image,
            )
            for event in self.requests.studio.generate(wish, stop, self.video):
                yield self._finished(event) if isinstance(event, Result) else self._progress(event)
        except Cancelled as cancelled:
            yield self._idle(markup.done(str(cancelled)))
        except StepvarError as error:
            yield self._idle(markup.error(f"{error}"))
        except Exception as error:  # the page outlives it
            logger.exception("the page: a request failed")
            yield self._idle(markup.error(f"{type(error).__name__}: {error}"))
        finally:
            self.requests.end(request.session_hash, self.video, stop)

    def _busy(self) -> Changes:
        changes = {
            self.status: markup.progress(Progress("Starting")),
            self.generate: gr.update(visible=False),
            self.cancel: gr.update(visible=True),
            self.download: gr.update(interactive=False),
            self.views: gr.update(selected="picture"),
            self.picture: gr.update(value=None, visible=True),
            self.kept: None,
            self.scales: None,
            self.costs: "",
        }
        if self.video:
            return changes | {self.film: gr.update(visible=False), self.dense: None, self.pruned: None}
        return changes | {self.slider: None, self.ends: "", self.divider: gr.update(visible=False)}

    def _idle(self, status: str) -> Changes:
        return {
            self.status: status,
            self.generate: gr.update(visible=True),
            self.cancel: gr.update(visible=False),
        }

    def _progress(self, now: Progress) -> Changes:
        changes: Changes = {self.status: markup.progress(now)}
        return changes if now.picture is None else changes | {self.picture: now.picture}

    def _finished(self, result: Result) -> Changes:
        file = str(self.requests.downloads.add(result.output))
        changes = self._idle(markup.done(markup.summary(result), result.notes))
        changes |= {
            self.kept: result.kept,
            self.scales: result.scales,
            self.costs: markup.costs(result),
            self.download: gr.update(value=file, interactive=True),
            self.seed: result.seed,
            self.views: gr.update(selected="picture" if result.dense is None else "compare"),
        }
        if self.video:
            dense = None if result.dense is None else str(self.requests.downloads.add(result.dense, "-dense"))
            changes |= {self.film: gr.update(value=file, visible=True), self.picture: gr.update(visible=False)}
            changes |= {self.dense: dense, self.pruned: file if dense else None}
        else:
            made = result.output.images[0]
            changes |= {self.picture: made}
            if result.dense is not None:
                changes |= {
                    self.slider: gr.update(value=(result.dense.images[0], made), slider_position=50),
                    self.ends: markup.ends("dense", result.output.report.method),
                    self.divider: gr.update(value=50, visible=True),
                }
        return changes
