"""Drawing and measuring: batch by batch, all candidates within each, so that whatever is done can be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.study.candidates import Entry
from benchmarks.study.storage import Study
from stepvar.core.plan import Plan
from stepvar.evaluation.costs import Clock, turns
from stepvar.evaluation.distribution import Moments, squared_discrepancy
from stepvar.evaluation.drawing import DENSE, Batch, Candidate, Drawn
from stepvar.evaluation.metrics import high_frequency_energy, high_frequency_share, psnr, ssim
from stepvar.evaluation.scene_scores import CATEGORIES, Judged, Questions, judge_batch
from stepvar.evaluation.scenes.grammar import Scene, caption
from stepvar.evaluation.scenes.judge import Judge
from stepvar.evaluation.scenes.render import render
from stepvar.pipeline import Pipeline

EQUAL = 99.0
"""Stands for the infinite PSNR of equal pictures."""

SEED_STRIDE = 100_000
SET_GROUPS = ("dense", "real", "floor", "methods")
"""Groups whose pictures are also compared as sets."""

COLUMNS = {"psnr": 2, "ssim": 4, "share": 4, "detail": 7, "right": 0}
"""Measures of each picture, with the digits behind the point that are kept."""

Item = tuple[int, int]


@dataclass
class Pending:
    """Figures of one candidate that are on their way from the device.

    Attributes:
        clock: four marks: in front of the loop, behind it, behind decoding, behind the copy of the figures.
        memory: bytes that the drawing took at its peak; 0 where that is not known.
        figures: the measures in one tensor on the CPU, to be read when the clock was.
        judged: for the distances between sets, on the device.
        pictures: (B, 3, H, W).
    """

    entry: Entry
    clock: Clock
    memory: int
    figures: Tensor
    judged: Judged
    pictures: Tensor


@dataclass
class Driver:
    """Draws the batches of a study.

    Attributes:
        pipe, judge, plan: the model, what judges it, and the settings of every generation.
        entries: who takes part, without dense.
        scenes: the prompts.
        size: height and width of the pictures.
        look: called with (batch number, key of the candidate, pictures), to keep a few pictures; None: none are kept.
    """

    pipe: Pipeline
    judge: Judge
    plan: Plan
    entries: Sequence[Entry]
    scenes: Sequence[Scene]
    size: tuple[int, int]
    look: Callable[[int, str, Tensor], None] | None = None
    dense: Entry = field(default_factory=lambda: Entry("dense", DENSE))

    def batch(self, study: Study, number: int, items: Sequence[Item], ablate: bool, tick: Callable[[], None]) -> None:
        """One batch of (prompt, seed) pairs, added to the study.

        Args:
            ablate: whether the variants of settings take part, too.
            tick: called after each candidate.
        """
        scenes = [self.scenes[prompt] for prompt, _ in items]
        seeds = [SEED_STRIDE * seed + prompt for prompt, seed in items]
        batch = Batch(self.pipe, [caption(scene) for scene in scenes], seeds, self.plan)
        questions = Questions.of(scenes, self.pipe.device)
        rows: dict[str, dict[str, Any]] = {}
        real = self._real(study, scenes, seeds, questions, rows)
        reference = batch.draw(DENSE)
        sets: dict[str, Tensor] = {}

        def finish(pending: Pending) -> None:
            rows[pending.entry.key] = row_of(pending)
            if pending.entry.group in SET_GROUPS:
                sets[pending.entry.key] = pending.judged.features
            if self.look is not None:
                self.look(number, pending.entry.key, pending.pictures)

        taking_part = [e for e in self.entries if ablate or e.group in SET_GROUPS]
        waiting = self._measured(self.dense, reference, reference.pictures, questions, real, 0)
        for index in turns(len(taking_part), number):
            entry = taking_part[index]
            pending = self._drawn(entry, batch, reference.pictures, questions, real)
            finish(waiting)  # the device works on the next candidate while the numbers of the last one are read
            waiting = pending
            tick()
        finish(waiting)
        again = Entry("dense", Candidate("dense again", DENSE.method))  # what the clock and the draws are worth
        finish(self._drawn(again, batch, reference.pictures, questions, real))
        for key, features in sets.items():
            study.add_moments(key, Moments.of(features))
        study.add(number, items, rows)

    def _real(
        self, study: Study, scenes: Sequence[Scene], seeds: Sequence[int], questions: Questions, rows: dict[str, Any]
    ) -> Judged:
        """Renders of the same scenes: what the judge says of the real thing, and the set that others are held to."""
        pictures = (render(scenes, seeds, *self.size, self.pipe.device) + 1) / 2
        judged = judge_batch(self.judge, pictures, questions)
        study.add_moments("real/renders", Moments.of(judged.features))
        rows["real/renders"] = {
            "right": rounded(bits_of(judged.right), 0),
            "detail": rounded(high_frequency_energy(pictures), COLUMNS["detail"]),
        }
        return judged

    def _drawn(self, entry: Entry, batch: Batch, reference: Tensor, questions: Questions, real: Judged) -> Pending:
        device, before = self.pipe.device, 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        drawn = batch.draw(entry.candidate)
        memory = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0
        return self._measured(entry, drawn, reference, questions, real, memory)

    def _measured(
        self, entry: Entry, drawn: Drawn, reference: Tensor, questions: Questions, real: Judged, memory: int
    ) -> Pending:
        """Starts all measures; their copy is part of the queue, so that reading it waits for nothing later."""
        with torch.inference_mode():
            pictures = drawn.pictures
            judged = judge_batch(self.judge, pictures, questions)
            measures = {
                "psnr": psnr(pictures, reference).clamp(max=EQUAL),
                "ssim": ssim(pictures, reference),
                "share": high_frequency_share(pictures, reference),
                "detail": high_frequency_energy(pictures),
                "right": bits_of(judged.right),
            }
            columns = [measures[name].double() for name in COLUMNS]
            if len(pictures) > 1:
                columns.append(squared_discrepancy(judged.features, real.features, matched=True).expand(1))
            figures = torch.cat(columns).to("cpu", non_blocking=True)
        drawn.clock.mark()
        return Pending(entry, drawn.clock, memory, figures, judged, pictures)

    def warm(self, items: Sequence[Item]) -> None:
        """One drawing that does not count: what a device does once, it does here."""
        Batch(self.pipe, [caption(self.scenes[prompt]) for prompt, _ in items], [0] * len(items), self.plan).draw(DENSE)

    def latency(self, rounds: int, entries: Sequence[Entry], tick: Callable[[], None]) -> dict[str, list[float]]:
        """Seconds of the loop for one picture, all candidates in turn, behind one round that does not count."""
        batch = Batch(self.pipe, [caption(self.scenes[0])], [0], self.plan)
        candidates = [self.dense, *entries]
        seconds: dict[str, list[float]] = {entry.key: [] for entry in candidates}
        for number in range(rounds + 1):
            for index in turns(len(candidates), number):
                entry = candidates[index]
                loop = batch.draw(entry.candidate).clock.seconds()[0]
                if number > 0:
                    seconds[entry.key].append(round(loop, 6))
                tick()
        return seconds


def row_of(pending: Pending) -> dict[str, Any]:
    """The figures of one candidate and batch, as they are stored."""
    loop, decode, _ = pending.clock.seconds()
    count, values = len(pending.pictures), pending.figures
    row: dict[str, Any] = {
        name: rounded(values[place * count : (place + 1) * count], digits)
        for place, (name, digits) in enumerate(COLUMNS.items())
    }
    row |= {"loop": round(loop, 6), "decode": round(decode, 6)}
    if pending.memory:
        row["memory"] = pending.memory
    if pending.entry.group in SET_GROUPS and count > 1:
        row["kid"] = float(values[-1])
    return row


def rounded(values: Tensor, digits: int) -> list[float]:
    """Numbers with so many digits behind the point; whole ones for 0."""
    return [round(value, digits or None) for value in values.tolist()]


def bits_of(right: Tensor) -> Tensor:
    """Booleans (B, categories) as one number per picture: bit i is category i."""
    return (right.long() * 2 ** torch.arange(len(CATEGORIES), device=right.device)).sum(1)
