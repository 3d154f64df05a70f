"""Measuring the likelihood of given images, dense and with methods, image by image, so that it can go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan, Settings
from stepvar.core.stack import ModelInfo
from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.evaluation.candidates import DENSE, Candidate
from stepvar.evaluation.folder import RunFolder, check_labels
from stepvar.evaluation.likelihood.forcing import TeacherForcing
from stepvar.evaluation.likelihood.images import GivenImage, GivenImages
from stepvar.generation import generate
from stepvar.media.images import save_image
from stepvar.methods import Method
from stepvar.models.inputs import GenerationInputs
from stepvar.pipeline import Pipeline
from stepvar.utils.ambient import stated_formats

SHOWN = 6
"""Images of which a copy is written for the page."""

KIND = "likelihood"
"""In the settings of a run's folder: what tells it from a comparison of generated images."""

Measured = list[dict[str, Any]]


def likelihood_settings(pipe: Pipeline, captioned: bool, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the pipeline: those given, and for the rest the model's own distribution.

    Guidance and temperature are 1 unless they are given. Without captions the unconditional branch alone runs.

    Raises:
        UsageError: for guidance without captions.
    """
    still = {"seconds": 0.0} if pipe.family.video else {}
    settings = {"guidance_scale": 1.0, "temperature": 1.0, **still, **given}
    if not captioned:
        if "guidance_scale" in given:
            raise UsageError("guidance_scale: images without captions have nothing to guide to; give --captions")
        passes = len(pipe.settings(**settings).schedule)
        settings["guidance_scale"] = [0.0] * passes  # one number each: a schedule would lead up to 0
    return settings


def check_candidate(plain: Settings, method: Method, info: ModelInfo) -> None:
    """Says whether a method can be compared by likelihood.

    Raises:
        UsageError: if it leaves passes out, or may do so, whose codes then have no probability; if it changes nothing;
            if it acts on guidance where one branch runs all alone; or if it cannot serve the model.
    """
    plan = method.plan(plain, info, 1)
    edited = plan.settings
    if edited.passes != plain.passes or plan.decision is not None:
        raise UsageError("it does not run every scale, so that some codes have no probability; let it, or leave it out")
    if not any(plain.guidance) and edited.guidance != plain.guidance:
        raise UsageError("it acts on guidance, and images without captions have none; give --captions")
    if edited == plain and not method.acts_on_tokens:
        raise UsageError("it changes nothing here; with --guidance-scale it may")


def scale_names(schedule: ScaleSchedule) -> list[str]:
    """One name per scale, such as ``16x16``; repetitions of a scale share it."""
    grids = {schedule.scale(index): grid for index, grid in enumerate(schedule)}
    return [f"{grid.h}x{grid.w}" for _, grid in sorted(grids.items())]


def computed_tokens(plan: Plan) -> int:
    """Tokens that run through the blocks, over all blocks, passes and guidance branches."""
    return sum(step.rows * sum(step.tokens) for step in plan.steps)


@dataclass(frozen=True)
class Likelihood:
    """An evaluation of likelihood that can be run, interrupted and run again.

    Attributes:
        pipe: the model.
        images: what it is to find likely.
        candidates: the first is dense, the reference of all others.
        folder: where results go.
        settings: arguments of :meth:`~stepvar.pipeline.Pipeline.settings`, the same for all.
        batch: images at once.
    """

    pipe: Pipeline
    images: GivenImages
    candidates: Sequence[Candidate]
    folder: RunFolder
    settings: dict[str, Any] = field(default_factory=dict)
    batch: int = 8

    def __post_init__(self) -> None:
        check_labels([candidate.label for candidate in self.candidates])

    def _missing(self, candidate: Candidate, image: GivenImage) -> bool:
        return (candidate.label, image.name, 0) not in self.folder.rows

    @property
    def runs_left(self) -> int:
        """Images times candidates that are not in the manifest yet."""
        return sum(self._missing(candidate, image) for candidate in self.candidates for image in self.images.images)

    def run(self, tick: Callable[[], None] = lambda: None) -> None:
        """Measures what is missing.

        Args:
            tick: called for each image and candidate.
        """
        images = self.images.images
        for first in range(0, len(images), self.batch):
            batch = images[first : first + self.batch]
            if any(self._missing(candidate, image) for candidate in self.candidates for image in batch):
                self._batch(batch, tick)

    @stated_formats()
    @torch.inference_mode()
    def _batch(self, batch: Sequence[GivenImage], tick: Callable[[], None]) -> None:
        """All candidates on one batch, dense first: the others are held against its logits."""
        plain = self.pipe.settings(**self.settings)
        schedule, stride = plain.schedule, self.pipe.model.config.stride
        size = (stride * schedule[-1].w, stride * schedule[-1].h)
        pixels = torch.stack([image.pixels(size) for image in batch]).to(self.pipe.device)
        codes = dict(enumerate(self.pipe.model.encode(pixels, schedule)))
        condition = self._condition(batch, schedule)
        reference: Mapping[int, Tensor] | None = None
        for candidate in self.candidates:
            missing = [self._missing(candidate, image) for image in batch]
            if candidate is not self.candidates[0] and not any(missing):
                continue
            forcing = TeacherForcing(codes, reference, keeps=reference is None)
            plan = candidate.method.plan(plain, self.pipe.model.info, len(batch))
            noise = SeededNoise([0] * len(batch))  # of what no code says, such as HART's residual
            generate(self.pipe.model, condition, plan, candidate.method, noise, sampler=forcing)
            reference = reference or forcing.log_probs
            rows = self._rows(candidate, batch, forcing, schedule)
            if candidate.label == DENSE.label:
                self._write(batch, rows, pixels)
            self.folder.add([row for row, lacks in zip(rows, missing, strict=True) if lacks])
            for _ in filter(None, missing):
                tick()

    def _write(self, batch: Sequence[GivenImage], rows: Measured, pixels: Tensor) -> None:
        """The first images as the model sees them."""
        for image, row, own in zip(batch, rows, pixels, strict=True):
            place = self.images.images.index(image)
            if place < SHOWN:
                row["image"] = f"images/{place:05}.png"
                levels = ((own + 1) * 127.5).round().to("cpu", torch.uint8)
                save_image(Image.fromarray(levels.permute(1, 2, 0).numpy()), self.folder.path / row["image"])

    def _condition(self, batch: Sequence[GivenImage], schedule: ScaleSchedule) -> Any:
        """The captions as the model takes them; without any, inputs whose content no branch sees."""
        given = [image.caption for image in batch]
        if self.images.captioned:
            seconds = 0.0 if self.pipe.family.video else None
            wanted = GenerationInputs(**{self.pipe.inputs.argument: given}, seconds=seconds)  # type: ignore[arg-type]
            inputs = self.pipe.inputs.prepare(wanted, 1)
        else:
            inputs = self.pipe.inputs.prepare(self.pipe.inputs.example(schedule=schedule), len(batch))
        return inputs.encode(schedule, [torch.Generator() for _ in batch]).condition

    def _rows(
        self, candidate: Candidate, batch: Sequence[GivenImage], forcing: TeacherForcing, schedule: ScaleSchedule
    ) -> Measured:
        """The rows of the manifest: bits, and divergence from dense, one number per scale."""
        rows = []
        bits = per_scale(forcing.bits, schedule)
        divergence = None if candidate.label == DENSE.label else per_scale(forcing.divergence, schedule)
        for place, image in enumerate(batch):
            row: dict[str, Any] = {"method": candidate.label, "prompt": image.name, "seed": 0}
            row |= {"text": image.caption} if image.caption is not None else {}
            row["bits"] = [round(value, 4) for value in bits[place]]
            if divergence is not None:
                row["divergence"] = [round(value, 5) for value in divergence[place]]
            rows.append(row)
        return rows


def per_scale(by_pass: Mapping[int, Tensor], schedule: ScaleSchedule) -> list[list[float]]:
    """Values (B,) by pass -> for each image one sum per scale."""
    found = torch.zeros(len(next(iter(by_pass.values()))), max(schedule.scale_counts), dtype=torch.float64)
    for index, values in by_pass.items():
        found[:, schedule.scale(index)] += values
    return [[float(value) for value in row] for row in found]
