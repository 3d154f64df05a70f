"""Runs what the page asks for, and tells step by step how far it is. Knows nothing of the page itself."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Event, Thread, get_ident
from typing import Any

from PIL import Image

from stepvar.core.plan import Step
from stepvar.errors import UsageError
from stepvar.evaluation.comparison import images_of, psnr
from stepvar.media.sheets import kept_overlay
from stepvar.media.video import Video
from stepvar.methods import Dense, Method, make_method
from stepvar.output import Output
from stepvar.pipeline import Pipeline
from stepvar.serving.web.offers import Budget, Offer, length
from stepvar.serving.web.turns import GLANCE, Cancelled, Turns

FRAMES = 4
"""Frames of a video over which the kept tokens are drawn."""

Tile = tuple[Image.Image, str]
"""An image and what it shows."""


@dataclass(frozen=True)
class Wish:
    """What a visitor of the page asks for.

    Attributes:
        prompt: or the class, for models that take classes.
        negative_prompt: what to lead away from; empty: nothing.
        seed: None: chosen at random.
        aspect_ratio: width over height; None: the model's own.
        method: its name.
        budget: which of the two numbers below counts, if the method has budgets.
        keep: share of the tokens that stay at the pruned scales, in (0, 1].
        speedup: how many times as fast as dense.
        compare: generate dense, too.
        previews: decode the picture behind every scale.
        image: the image to edit, for models that edit.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int | None = None
    aspect_ratio: float | None = None
    method: str = "stepvar"
    budget: Budget = "keep"
    keep: float = 0.5
    speedup: float = 1.5
    compare: bool = True
    previews: bool = True
    image: Image.Image | None = None


@dataclass(frozen=True)
class Progress:
    """How far a request is.

    Attributes:
        text: what happens now.
        share: of the tokens of all passes, those that were run, in [0, 1]; None: it cannot be told.
        picture: the picture so far, where there is a new one; of a video its middle frame.
    """

    text: str
    share: float | None = None
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
        output: of the method.
        dense: of dense generation, if that was asked for, too.
        psnr: of the method's pixels to the dense ones, in dB; infinite if equal; None: nothing to compare with.
        scales: the picture behind each scale.
        kept: the picture with the tokens drawn over it that were computed, per pruned scale.
        notes: what the model had to say, such as words that it does not know.
    """

    output: Output
    dense: Output | None
    psnr: float | None
    scales: list[Tile]
    kept: list[Tile]
    notes: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return (self.output.seeds or (0,))[0]


class Studio:
    """A pipeline, and the line of those who want something of it.

    Args:
        pipe: nobody else may use it.
        waiting: how many requests may wait behind the one that runs.
    """

    def __init__(self, pipe: Pipeline, waiting: int = 8) -> None:
        self.pipe = pipe
        self.turns = Turns(waiting)
        # One thread for all: each new one that computes would keep memory of its own.
        self._worker = ThreadPoolExecutor(1, "stepvar-web")
        self.images = Offer.of(pipe)
        self.videos = Offer.of(pipe, video=True) if pipe.family.video else None

    def close(self) -> None:
        """Takes no further requests; what runs has to be stopped by its event."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def generate(self, wish: Wish, stop: Event, video: bool = False) -> Iterator[Progress | Result]:
        """Runs a request in a thread of its own; the last entry is the result.

        Args:
            stop: ends the work behind the next scale when it is set. It is, too, when nobody takes further entries.

        Raises:
            UsageError: for a wish that cannot be met; in front of any work where that can be told.
            Cancelled: if it was stopped.
            BusyError: if too many wait.
        """
        events: SimpleQueue[Progress | Result | BaseException] = SimpleQueue()

        if not wish.prompt.strip():
            raise UsageError("prompt: is empty; write what you want to see")
        offer = self.videos if video and self.videos is not None else self.images
        run = _Run(self.pipe, wish, offer, stop, events.put)

        def work() -> None:
            try:
                with self.turns.turn(stop, lambda ahead: events.put(Progress(f"Waiting: {ahead} ahead of you"))):
                    events.put(self._worker.submit(run.result).result())
            except BaseException as error:  # it belongs to whoever waits for the events
                events.put(error)

        Thread(target=work, name="stepvar-web-turn", daemon=True).start()
        try:
            while True:
                try:
                    event = events.get(timeout=GLANCE)
                except Empty:
                    if stop.is_set():  # at once, though the work goes on until its scale or its measuring is done
                        raise Cancelled from None
                    continue
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Result):
                    return
        finally:
            stop.set()


@dataclass
class _Run:
    """One request while it runs."""

    pipe: Pipeline
    wish: Wish
    offer: Offer
    stop: Event
    report: Callable[[Progress], None]
    scales: list[Tile] = field(default_factory=list)

    def result(self) -> Result:
        wish = self.wish
        seed = secrets.randbelow(2**31) if wish.seed is None else wish.seed
        given: dict[str, Any] = {self.pipe.inputs.argument: wish.prompt.strip(), "seed": seed}
        given |= {
            "seconds": length(self.pipe, self.offer.video),
            "aspect_ratio": wish.aspect_ratio,
            "image": wish.image,
        }
        given["negative_prompt"] = wish.negative_prompt.strip() or None
        with _noting() as notes:
            method = self._method()
            output = self._generate(method, given, wish.previews)
            dense = None
            if wish.compare and not isinstance(method, Dense):
                dense = self._generate(Dense(), given, previews=False)
        fidelity = None if dense is None else psnr(images_of(dense), images_of(output))
        return Result(output, dense, fidelity, self.scales, kept_tiles(output), list(dict.fromkeys(notes)))

    def _method(self) -> Method:
        """The method with the settings that the budget stands for."""
        wish = self.wish
        if wish.budget not in self.offer.method(wish.method).budgets:
            return make_method(wish.method)
        if wish.budget == "keep":
            return make_method(wish.method, keep=wish.keep)
        self.report(Progress("Measuring what settings are that fast here; kept for the next time"))
        fitted = self.pipe.for_speedup(
            wish.speedup,
            wish.method,
            aspect_ratio=wish.aspect_ratio,
            seconds=length(self.pipe, self.offer.video),
            progress=False,
        )
        return fitted.method

    def _generate(self, method: Method, given: dict[str, Any], previews: bool) -> Output:
        self._check()
        self.report(Progress(f"{method}: reading the prompt", 0.0))
        done: list[int] = []

        def on_scale_end(step: Step, state: Any) -> None:
            self._check()
            done.append(step.grid.size)
            settings, grid, picture = step.settings, grid_text(step.grid.shape), None
            if previews:
                picture = self._preview(state, given["image"])
                self.scales.append((picture, grid))
            total = sum(settings.schedule[index].size for index in settings.passes)
            text = f"{method}: scale {len(done)} of {len(settings.passes)}, {grid} tokens"
            self.report(Progress(text, sum(done) / total, picture))

        return self.pipe(method=method, callback_on_scale_end=on_scale_end, progress=False, **given)

    def _check(self) -> None:
        if self.stop.is_set():
            raise Cancelled

    def _preview(self, state: Any, source: Image.Image | None) -> Image.Image:
        (shown,) = self.pipe.preview(state, sources=[] if source is None else [source])
        if isinstance(shown, Video):
            shown = shown.images()[len(shown) // 2]
        return shown


def grid_text(grid: tuple[int, int, int]) -> str:
    """A grid (t, h, w) as people write it; an image is 16×16."""
    t, h, w = grid
    return f"{h}×{w}" if t == 1 else f"{t}×{h}×{w}"


def kept_tiles(output: Output) -> list[Tile]:
    """The picture with what was computed left clear, for each pruned scale; of a video some frames at its last one."""
    if not output.videos:
        return [
            (kept_overlay(output.images[0], kept[0], square=bool(output.sources)), _caption(step.grid.shape, kept[0]))
            for step, kept in output.kept
        ]
    frames, tiles = output.videos[0].images(), []
    for step, kept in output.kept[-1:]:
        count = kept.shape[1]
        for moment in sorted({round(index * (count - 1) / max(1, FRAMES - 1)) for index in range(FRAMES)}):
            image = frames[min(len(frames) - 1, round((moment + 0.5) * len(frames) / count))]
            tiles.append((kept_overlay(image, kept[0], moment), _caption(step.grid.shape, kept[0, moment])))
    return tiles


def _caption(grid: tuple[int, int, int], kept: Any) -> str:
    return f"{grid_text((1, *grid[1:]))}: {100 * float(kept.mean()):.0f} %"


@contextmanager
def _noting() -> Iterator[list[str]]:
    """Collects what this package warns of in this thread; Python has one hook for warnings of all threads."""
    notes: list[str] = []
    own = get_ident()
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        before = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if get_ident() == own and category.__module__.startswith("stepvar"):
                notes.append(str(message))
            else:
                before(message, category, *where, **more)

        warnings.showwarning = note
        yield notes
