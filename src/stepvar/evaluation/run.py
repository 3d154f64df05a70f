"""Running many methods in turn: the order of runs, images for many prompts and seeds, and times.

Everything that compares methods goes through :func:`interleaved` or :class:`Evaluation`: ``--compare``, ``stepvar
eval``, the study and the benchmarks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from stepvar.core.report import Report
from stepvar.evaluation.candidates import DENSE, Candidate
from stepvar.evaluation.folder import Key, RunFolder, check_labels
from stepvar.evaluation.frames import Frames, frames_of, middle, read_frames, sheet_of_four, to_tensor, write_frames
from stepvar.evaluation.metrics.fidelity import fidelity
from stepvar.evaluation.metrics.learned import Distance, Score
from stepvar.evaluation.metrics.scenes import Domain
from stepvar.evaluation.noise import ResampledNoise
from stepvar.evaluation.prompts import DPG_IMAGES, Prompt, PromptSet
from stepvar.media.images import save_image
from stepvar.media.sheets import kept_overlay
from stepvar.output import Output
from stepvar.pipeline import Pipeline
from stepvar.utils.files import write_text

RENDERS = "renders"
"""In the manifest: real renders of the same scenes, which the judge sees, too."""

SEED_STRIDE = 100_000
MAPS = 3
"""Prompts of which a map of the kept tokens is written."""

C = TypeVar("C")
R = TypeVar("R")
T = TypeVar("T")


def in_turn(candidates: Sequence[C], number: int) -> list[C]:
    """The order of the candidates in round ``number``: forwards and backwards in turn, each time begun elsewhere.

    A machine whose speed drifts then slows none of them more than the others.
    """
    shift = (number // 2 * 7) % max(len(candidates), 1)
    order = [*candidates[shift:], *candidates[:shift]]
    return order if number % 2 == 0 else order[::-1]


def interleaved(
    candidates: Sequence[C], rounds: Iterable[R], run: Callable[[C, R], T], warmup: int = 0
) -> Iterator[tuple[R, C, T]]:
    """Runs every candidate once in every round, in changing order, so that times can be compared within a round.

    Args:
        rounds: what each round is called, or what it works on.
        run: one run; its result is given back with the round and the candidate.
        warmup: rounds in front, like the first one, that are not given back.
    """
    for number, one in enumerate(rounds):
        for _ in range(warmup if number == 0 else 0):
            for candidate in candidates:
                run(candidate, one)
        for candidate in in_turn(candidates, number):
            yield one, candidate, run(candidate, one)


@dataclass(frozen=True)
class Measures:
    """What is measured of each image beside its fidelity.

    Attributes:
        domain: judges images and videos of the embedded domains; None for other prompts.
        distances: of images from the dense ones, those that are available; of videos, frame by frame.
        clip_distances: likewise, of whole videos (B, t, 3, H, W); an image is a video of one frame.
        scores: of an image against its prompt.
    """

    domain: Domain | None = None
    distances: dict[str, Distance] = field(default_factory=dict)
    clip_distances: dict[str, Distance] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One image or video to generate.

    Attributes:
        prompt: of the set.
        seed: as the user gave it.
        noise_seed: the seed of its random numbers, another one for every prompt.
        file: where the image goes, below the folder of its method.
        index: of the prompt.
    """

    prompt: Prompt
    seed: int
    noise_seed: int
    file: str
    index: int

    def key(self, label: str) -> Key:
        return label, self.prompt.name, self.seed

    def row(self, label: str) -> dict[str, Any]:
        """The beginning of its row in the manifest."""
        row = {"method": label, "prompt": self.prompt.name, "text": self.prompt.text, "seed": self.seed}
        row |= {"noise_seed": self.noise_seed}
        return row | ({"category": self.prompt.category} if self.prompt.category else {})


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that can be run, interrupted and run again.

    Attributes:
        pipe: the model.
        prompts, seeds: every prompt is generated with every seed.
        candidates: the first is dense, the reference of all others.
        folder: where results go.
        measures: beside fidelity.
        settings: further arguments of the pipeline, the same for all.
        batch: images generated at once.
        images: how many prompts' images are written; None: all.
        timed: whether each batch is also a round of the timing, as large batches may be; else :meth:`time` does it.
        shard: (i, n): only every n-th batch, from the i-th on, so that several machines share the work.
    """

    pipe: Pipeline
    prompts: PromptSet
    seeds: Sequence[int]
    candidates: Sequence[Candidate]
    folder: RunFolder
    measures: Measures = Measures()
    settings: dict[str, Any] = field(default_factory=dict)
    batch: int = 8
    images: int | None = None
    timed: bool = False
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        check_labels([candidate.label for candidate in self.candidates])

    @property
    def samples(self) -> list[Sample]:
        """What the shard generates, all seeds of a prompt next to each other."""
        samples = [
            Sample(prompt, seed, SEED_STRIDE * seed + index, self.prompts.image(index, place).as_posix(), index)
            for index, prompt in enumerate(self.prompts.prompts)
            for place, seed in enumerate(self.seeds)
        ]
        own, shards = self.shard
        return [sample for place, sample in enumerate(samples) if place // self.batch % shards == own]

    @property
    def images_left(self) -> int:
        """Images that are not in the manifest yet."""
        return sum(self._missing(candidate, sample) for sample in self.samples for candidate in self.candidates)

    def _missing(self, candidate: Candidate, sample: Sample) -> bool:
        return sample.key(candidate.label) not in self.folder.rows

    def generate(self, tick: Callable[[], None], seconds: float = math.inf) -> float:
        """Generates and measures what is missing.

        Args:
            tick: called once for each image.
            seconds: no batch is begun that would probably end later than this.

        Returns:
            The seconds that it took.
        """
        start, slowest = time.monotonic(), 0.0
        samples = self.samples
        batches = [samples[first : first + self.batch] for first in range(0, len(samples), self.batch)]
        todo = [batch for batch in batches if any(self._missing(c, s) for c in self.candidates for s in batch)]
        if todo and self.timed and seconds > 0:
            self._output(DENSE, todo[0])  # what a device does once, it does here
        for number, batch in enumerate(todo):
            begun = time.monotonic()
            if begun - start + slowest > seconds:
                break
            self._batch(batch, number, tick)
            slowest = max(slowest, time.monotonic() - begun)
        else:
            self._lay_out()
        return time.monotonic() - start

    def _batch(self, batch: Sequence[Sample], number: int, tick: Callable[[], None]) -> None:
        """All candidates on one batch, dense first: of a batch that was cut off, dense is generated again."""
        dense, *others = self.candidates
        noise = ResampledNoise.of([sample.noise_seed for sample in batch], 0)
        reference, timing = None, self.folder.next_round
        for candidate in [dense, *in_turn(others, number)]:
            missing = [place for place, sample in enumerate(batch) if self._missing(candidate, sample)]
            if not missing and candidate is not dense:
                continue
            if reference is None or candidate.method.static:
                videos = self._part(candidate, batch, missing, noise, reference, timing)
                reference = videos if reference is None else reference
            else:  # each image says what is run, and is generated alone
                for place in missing:
                    sample = batch[place]
                    own = ResampledNoise.of([sample.noise_seed], 0)
                    self._part(candidate, [sample], [0], own, reference[place : place + 1], timing)
            for _ in missing:
                tick()

    def _part(
        self,
        candidate: Candidate,
        batch: Sequence[Sample],
        missing: Sequence[int],
        noise: ResampledNoise,
        reference: Tensor | None,
        timing: int,
    ) -> Tensor:
        """One candidate on some samples, of which those at the places that are missing are kept; gives the pixels.

        Args:
            reference: the dense pixels; None: these are dense.
            timing: the number of the round.
        """
        output = self._output(candidate, batch, noise)
        frames = frames_of(output)
        videos = to_tensor(frames, self.pipe.device)
        if reference is None:
            self._renders(batch, videos)
        rows = self._measured(candidate, batch, frames, videos, videos if reference is None else reference)
        self._write(candidate, [batch[place] for place in missing], [frames[place] for place in missing])
        self._write_maps(candidate, batch, output, frames)
        self.folder.add([rows[place] for place in missing])
        if self.timed:
            self.folder.add_timing([self._timing_row(candidate, timing, output.report)])
        return videos

    def _output(self, candidate: Candidate, batch: Sequence[Sample], noise: ResampledNoise | None = None) -> Output:
        """What the pipeline generates; the noise floor takes other random numbers at the last scales."""
        given: dict[str, Any] = {self.pipe.inputs.argument: [sample.prompt.text for sample in batch]}
        if images := [sample.prompt.image for sample in batch if sample.prompt.image is not None]:
            given["image"] = images
        if noise is None:
            given["seed"] = [sample.noise_seed for sample in batch]
        else:
            scales = len(self.pipe.settings(**self.settings).schedule)
            given["noise"] = noise.from_scale(max(0, scales - candidate.resampled))
        return self.pipe(**given, method=candidate.method, output_type="np", progress=False, **self.settings)

    def _measured(
        self,
        candidate: Candidate,
        batch: Sequence[Sample],
        frames: Sequence[Frames],
        videos: Tensor,
        reference: Tensor,
    ) -> list[dict[str, Any]]:
        """The rows of (B, t, 3, H, W), as they go into the manifest."""
        rows = [sample.row(candidate.label) for sample in batch]
        for row, sample in zip(rows, batch, strict=True):
            if self.images is None or sample.index < self.images:
                file = self._place(candidate) / sample.file
                row["image"] = file.relative_to(self.folder.path).as_posix()
        if candidate.label != DENSE.label:
            _join(rows, fidelity(videos, reference, self.measures.distances, self.measures.clip_distances))
        if self.measures.domain is not None:
            _join(rows, self.measures.domain.judge([sample.prompt for sample in batch], videos))
        for name, score in self.measures.scores.items():
            values = score([middle(one) for one in frames], [sample.prompt.text for sample in batch])
            for row, value in zip(rows, values, strict=True):
                row.setdefault("scores", {})[name] = round(value, 5)
        return rows

    def _renders(self, batch: Sequence[Sample], like: Tensor) -> None:
        """Real renders of the scenes: the judge's ceiling, and the set that others are held against."""
        todo = [sample for sample in batch if sample.key(RENDERS) not in self.folder.rows]
        if self.measures.domain is None or not todo:
            return
        prompts = [sample.prompt for sample in todo]
        renders = self.measures.domain.render(prompts, [sample.noise_seed for sample in todo], like)
        rows = [sample.row(RENDERS) for sample in todo]
        _join(rows, self.measures.domain.judge(prompts, renders))
        self.folder.add(rows)

    def _place(self, candidate: Candidate) -> Any:
        """DPG-Bench takes sheets as images; what they are made of lies elsewhere."""
        return self.folder.place("pictures" if self.prompts.layout == "dpg" else "images", candidate.label)

    def _write(self, candidate: Candidate, batch: Sequence[Sample], frames: Sequence[Frames]) -> None:
        for sample, own in zip(batch, frames, strict=True):
            if self.images is None or sample.index < self.images:
                write_frames(own, self._place(candidate) / sample.file)

    def _write_maps(
        self, candidate: Candidate, batch: Sequence[Sample], output: Output, frames: Sequence[Frames]
    ) -> None:
        """What was kept at the last pruned scale, over the image, of the first prompts."""
        if not output.kept:
            return
        _, kept = output.kept[-1]
        for place, sample in enumerate(batch):
            if sample.index < MAPS and sample.seed == self.seeds[0]:
                path = self.folder.place("kept", candidate.label) / f"{sample.prompt.name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                save_image(
                    kept_overlay(Image.fromarray(frames[place][0]), kept[place], square=bool(output.sources)), path
                )

    def _lay_out(self) -> None:
        """What the judges of the published suites want beside the images."""
        for candidate in self.candidates:
            root = self.folder.place("images", candidate.label)
            for index, prompt in enumerate(self.prompts.prompts):
                if self.prompts.layout == "geneval":
                    write_text(root / prompt.name / "metadata.jsonl", prompt.metadata + "\n")
                elif self.prompts.layout == "dpg":
                    places = range(min(len(self.seeds), DPG_IMAGES))
                    files = [self._place(candidate) / self.prompts.image(index, place) for place in places]
                    root.mkdir(parents=True, exist_ok=True)
                    sheet = sheet_of_four([Image.fromarray(read_frames(file)[0]) for file in files])
                    save_image(sheet, root / f"{prompt.name}.png")

    @property
    def _to_time(self) -> list[Candidate]:
        """All but the noise floor, which costs what dense costs."""
        return [candidate for candidate in self.candidates if not candidate.resampled]

    def _rounds_left(self, rounds: int) -> list[int]:
        done = {(row["method"], row["round"]) for row in self.folder.timing}
        return [n for n in range(rounds) if any((candidate.label, n) not in done for candidate in self._to_time)]

    def runs_left(self, rounds: int) -> int:
        """Runs that :meth:`time` will make, without those to warm up."""
        return len(self._rounds_left(rounds)) * len(self._to_time)

    def time(self, rounds: int, samples: int, tick: Callable[[], None]) -> None:
        """Times all candidates in turn, behind rounds that warm up; a round that was cut off is repeated."""
        batch = [self.samples[index * len(self.seeds) % len(self.samples)] for index in range(samples)]
        waiting: list[dict[str, Any]] = []
        warmup = self.pipe.engine.warmup_runs(self.pipe.device)
        runs = interleaved(self._to_time, self._rounds_left(rounds), lambda c, _: self._output(c, batch).report, warmup)
        for number, candidate, report in runs:
            waiting.append(self._timing_row(candidate, number, report))
            tick()
            if len(waiting) == len(self._to_time):
                self.folder.add_timing(waiting)
                waiting = []

    def _timing_row(self, candidate: Candidate, number: int, report: Report) -> dict[str, Any]:
        """Operations are the same in every round, so they are counted once."""
        counted = any(row["method"] == candidate.label and "flops" in row for row in self.folder.timing)
        return {"method": candidate.label, "round": number, **cost_row(report, not counted)}


def _join(rows: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> None:
    for row, more in zip(rows, found, strict=True):
        row |= more


def cost_row(report: Report, count: bool = True) -> dict[str, Any]:
    """One run's costs, as they are kept and as :func:`~stepvar.evaluation.summary.cost` takes them.

    Args:
        count: whether operations are counted, which takes a moment; one run of each method is enough.
    """
    return ({"flops": report.flops} if count else {}) | {
        "engine": report.engine,
        "loop": report.scale_seconds,
        "decode": report.stages.get("decode", 0.0),
        "total": report.seconds,
        "kept": report.kept,
        "tokens": report.tokens,
        "samples": report.samples,
        # On the CPU a process's peak never falls, so it says nothing about one method among several.
        "memory": report.peak_memory if report.device.startswith("cuda") else None,
    }
