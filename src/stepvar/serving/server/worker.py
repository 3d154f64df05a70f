"""The one thread that owns the pipeline: it loads the model, warms it up, and generates what waits, batch by batch."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from stepvar.core.plan import Plan, Step
from stepvar.core.report import Report
from stepvar.errors import StepvarError
from stepvar.media.video import Video
from stepvar.methods import Method
from stepvar.pipeline import Pipeline
from stepvar.serving.server.errors import busy, unavailable
from stepvar.serving.server.metrics import Metrics
from stepvar.serving.server.requests import Recipe, Work, texts_of
from stepvar.serving.server.settings import ServerSettings
from stepvar.text import example_prompt
from stepvar.utils.heap import return_free_memory
from stepvar.utils.log import logger

FITTED = 64
"""Speed-ups whose settings are remembered."""


@dataclass(frozen=True)
class Progress:
    """A share of the passes of image ``index`` has run, in [0, 1]."""

    index: int
    share: float


@dataclass(frozen=True)
class Preview:
    """Image ``index`` after one of its passes."""

    index: int
    step: int
    image: Image.Image


@dataclass(frozen=True)
class Done:
    """Image or video ``index``, and what it cost.

    Attributes:
        texts: for its file.
        waited: seconds in the queue.
        batch: images that ran together.
        warnings: what was left out of its prompts.
    """

    index: int
    result: Any
    texts: dict[str, str]
    report: Report
    waited: float
    batch: int
    warnings: list[str]


@dataclass(frozen=True)
class Failed:
    """The request cannot be answered."""

    error: BaseException


@dataclass(eq=False)
class _Item:
    """One image or video of a request."""

    work: Work
    index: int
    since: float


class _AllLeft(Exception):
    """Nobody waits for this batch any more, or the server ends."""


class Worker:
    """Queue and thread.

    Args:
        factory: loads the pipeline; called in the thread.

    Attributes:
        pipe: None until it is loaded.
        ready: whether it is loaded and warm.
        failure: why the thread ended before its time.
    """

    def __init__(self, factory: Callable[[], Pipeline], settings: ServerSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.pipe: Pipeline | None = None
        self.ready = False
        self.failure: BaseException | None = None
        self._factory = factory
        self._queue: deque[_Item] = deque()
        self._running: list[_Item] = []
        self._changed = threading.Condition()
        self._settled = threading.Event()
        self._stopping = False
        self._free_since = 0.0
        self._shared = False  # whether requests came together in the last batch
        self._seconds = 1.0
        self._fitted: OrderedDict[tuple[Any, ...], Method] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="stepvar-generation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 30.0) -> None:
        """Ends the thread: what runs is left behind at the end of its pass."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(0.0 if self.loading else timeout)  # nothing ends the loading of a model early

    def wait(self) -> None:
        """Until it is ready.

        Raises:
            Exception: whatever kept it from that.
        """
        self._settled.wait()
        if self.failure is not None:
            raise self.failure

    @property
    def loading(self) -> bool:
        """Whether its thread still loads the pipeline."""
        return self.pipe is None and self._thread.is_alive()

    @property
    def idle(self) -> bool:
        with self._changed:
            return not self._queue and not self._running

    def submit(self, work: Work) -> None:
        """Puts all images of a request into the queue.

        Raises:
            RequestError: 429 where they do not fit.
        """
        now = time.monotonic()
        with self._changed:
            if self._stopping:
                raise unavailable("the server is ending; try another", "shutting_down")
            waiting = len(self._queue)
            if waiting + len(work.seeds) > self.settings.max_queue:
                raise busy(waiting, min(600, max(1, math.ceil(waiting * self._seconds))))
            self._queue.extend(_Item(work, index, now) for index in range(len(work.seeds)))
            self._changed.notify_all()
            self.metrics.queue.set(len(self._queue))

    def leave(self, work: Work) -> None:
        """Nobody waits for a request any more: it leaves the queue; a batch that runs ends once all of it have left."""
        work.left = True
        self._drop(work)

    def _drop(self, work: Work) -> None:
        """Takes what is left of a request out of the queue."""
        with self._changed:
            self._queue = deque(item for item in self._queue if item.work is not work)
            self._changed.notify_all()
            self.metrics.queue.set(len(self._queue))

    def _run(self) -> None:
        try:
            self.pipe = self._factory()
            self.pipe.progress = False
            if self.settings.warm_up:
                self._warm_up(self.pipe)
            self.ready = True
            self._settled.set()
            logger.info("ready: %r", self.pipe)
            self._work(self.pipe)
        except _AllLeft:
            return
        except BaseException as error:
            self.ready, self.failure = False, error
        finally:
            self._settled.set()

    def _work(self, pipe: Pipeline) -> None:
        while batch := self._next_batch():
            self._shared = len({id(item.work) for item in batch}) > 1
            self._serve(pipe, batch)
            return_free_memory()
            with self._changed:
                self._running, self._free_since = [], time.monotonic()

    def _warm_up(self, pipe: Pipeline) -> None:
        """Generates until times are those that stay: single images, and whole batches."""
        recipe = Recipe(self.settings.method, seconds=0.0 if pipe.family.video else None)
        given = {**_warm_inputs(pipe), "method": recipe.named_method(), "seconds": recipe.seconds}
        runs = pipe.engine.warmup_runs(pipe.device)
        for count in sorted({1, self.settings.max_batch} if runs > 1 else {1}):  # graphs are captured for each size
            for seed in range(runs):
                if self._stopping:
                    return
                pipe(**given, seed=seed, num_images_per_prompt=count, callback_on_scale_end=self._end_early)

    def _end_early(self, step: Step, state: Any) -> None:
        if self._stopping:
            raise _AllLeft

    def _next_batch(self) -> list[_Item]:
        """The oldest image and those that fit to it, once there are enough or it has waited; empty: the server ends.

        It waits only where requests came together before: a client that is alone would wait for nobody. The wait begins
        when the last batch has ended, for its clients to ask again: else two of them would take turns for ever.
        """
        with self._changed:
            while not self._stopping:
                if not self._queue:
                    self._changed.wait()
                    continue
                first = self._queue[0]
                most = 1 if first.work.alone else self.settings.max_batch
                batch = [item for item in self._queue if item.work.recipe == first.work.recipe][:most]
                left = max(first.since, self._free_since) + self.settings.max_wait - time.monotonic()
                if len(batch) < most and self._shared and left > 0:
                    self._changed.wait(left)
                    continue
                taken = set(map(id, batch))
                self._queue = deque(item for item in self._queue if id(item) not in taken)
                self._running = batch
                self.metrics.queue.set(len(self._queue))
                return batch
        return []

    def _serve(self, pipe: Pipeline, batch: list[_Item]) -> None:
        """Generates a batch; where it fails as a whole, image by image, so that none suffers from another's fault."""
        batch = [item for item in batch if not (item.work.left or item.work.failed)]
        if not batch:
            return
        begun, again = time.monotonic(), False
        try:
            self._generate(pipe, batch, begun)
            self._seconds += 0.2 * ((time.monotonic() - begun) / len(batch) - self._seconds)
        except _AllLeft:
            self._look_around()
            self.metrics.abandoned.inc(len(batch))
        except Exception as error:
            again = len(batch) > 1
            if not again:
                self._fail(batch[0].work, error)
        if again:  # here, where the error is gone, and with it the tensors of the batch
            for item in batch:
                self._serve(pipe, [item])

    def _look_around(self) -> None:
        """Notes whether others wait. Before an answer goes out: who gets it may ask again at once, and be alone."""
        with self._changed:
            self._shared = self._shared or bool(self._queue)

    def _fail(self, work: Work, error: Exception) -> None:
        self._look_around()
        if not isinstance(error, StepvarError):
            logger.error("generation failed", exc_info=error)
        work.failed = True
        work.tell(Failed(error.with_traceback(None)))  # whose frames would hold the tensors
        self._drop(work)

    def _generate(self, pipe: Pipeline, batch: Sequence[_Item], begun: float) -> None:
        first, recipe = batch[0].work, batch[0].work.recipe
        method = self._method(pipe, recipe)
        plan = recipe.plan(pipe, method)
        call: dict[str, Any] = {
            pipe.inputs.argument: [item.work.prompt for item in batch],
            "negative_prompt": [item.work.negative_prompt for item in batch] if recipe.negative else None,
            "image": [item.work.image for item in batch] if first.image is not None else None,
            "seed": [item.work.seeds[item.index] for item in batch],
            "guidance_scale": recipe.guidance_scale,
            "seconds": recipe.seconds,
        }
        if recipe.size is not None:
            call["width"], call["height"] = recipe.size
        output = pipe(
            **call,
            method=method,
            callback_on_scale_end=self._follow(pipe, batch, plan, recipe.previews),
            progress=False,
        )
        results = output.videos or output.images
        self._look_around()
        for item, result, texts, said in zip(batch, results, output.metadata, output.warnings, strict=True):
            own = texts_of(item.work, texts)
            waited = begun - item.since
            item.work.tell(Done(item.index, _with_texts(result, own), own, output.report, waited, len(batch), said))
        self.metrics.add_generation(output.report, [begun - item.since for item in batch], bool(output.videos))

    def _method(self, pipe: Pipeline, recipe: Recipe) -> Method:
        """The method of a recipe; what a speed-up decides is measured for one image, so that no batch changes it."""
        method = recipe.named_method()
        if recipe.speedup is None:
            assert isinstance(method, Method)
            return method
        key = (recipe.method, recipe.speedup, recipe.guidance_scale, recipe.size, recipe.seconds)
        if key not in self._fitted:
            fitted = pipe.for_speedup(recipe.speedup, method, progress=False, **recipe.settings(pipe))
            self._fitted[key] = fitted.method
        self._fitted.move_to_end(key)
        while len(self._fitted) > FITTED:
            self._fitted.popitem(last=False)
        return self._fitted[key]

    def _follow(self, pipe: Pipeline, batch: Sequence[_Item], plan: Plan, previews: int) -> Callable[[Step, Any], None]:
        """What happens after each pass: the batch ends if all have left, and the others hear how far it is."""
        shown, passes = preview_passes(plan, previews), max(1, len(plan.steps))
        ran = 0

        def on_scale_end(step: Step, state: Any) -> None:
            nonlocal ran
            ran += 1
            if self._stopping or all(item.work.left for item in batch):
                raise _AllLeft
            for item in batch:
                item.work.tell(Progress(item.index, min(1.0, ran / passes)))
            if step.index in shown:
                sources = [item.work.image for item in batch if item.work.image and pipe.family.edits]
                for item, image in zip(batch, pipe.preview(state, sources=sources), strict=True):
                    if isinstance(image, Image.Image):
                        item.work.tell(Preview(item.index, step.index, image))

        return on_scale_end


def _warm_inputs(pipe: Pipeline) -> dict[str, Any]:
    """Arguments of a call that means nothing; in words where they are encoded, to warm that up, too."""
    image = Image.new("RGB", (256, 256)) if pipe.family.edits else None
    example = pipe.inputs.example()
    if example.class_labels is not None:
        return {"class_labels": example.class_labels}
    if pipe.text_encoder is None:
        return {"prompt_embeds": example.prompt_embeds, "image": image}
    return {"prompt": example_prompt(pipe.text_encoder), "image": image}


def preview_passes(plan: Plan, count: int) -> frozenset[int]:
    """The passes behind which a picture is shown: the last of each scale but the last scale, evenly spread."""
    last = {(step.clip, step.scale): step.index for step in plan.steps}
    scales = sorted(last.values())[:-1]
    if count >= len(scales):
        return frozenset(scales if count else ())
    return frozenset(scales[math.ceil((place + 1) * len(scales) / count) - 1] for place in range(count))


def _with_texts(result: Any, texts: dict[str, str]) -> Any:
    """A result whose file says no more than the texts."""
    if isinstance(result, Video):
        return replace(result, metadata=texts)
    result.metadata = texts
    return result
