"""``stepvar eval``: draws prompts with many methods, measures each picture, and times the methods in turn."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stepvar.evaluation.clips import judge_videos
from stepvar.evaluation.costs import turns
from stepvar.evaluation.drawing import DENSE, Candidate
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.frames import Frames, fidelity, read_frames, sheet_of_four, to_tensor, write_frames
from stepvar.evaluation.learned import Distance, Score
from stepvar.evaluation.noise import RedrawnNoise
from stepvar.evaluation.prompts import DPG_PICTURES, PromptSet
from stepvar.evaluation.scene_scores import CATEGORIES, Judged, Questions, judge_batch
from stepvar.evaluation.scenes.clips.judge import ClipJudge
from stepvar.evaluation.scenes.clips.render import render_clips
from stepvar.evaluation.scenes.judge import Judge
from stepvar.evaluation.scenes.render import render
from stepvar.media.sheets import kept_overlay, save_png
from stepvar.output import Output
from stepvar.pipeline import Pipeline
from stepvar.utils.files import write_text

RENDERS = "renders"
"""In the manifest: real renders of the same scenes, which the judge sees, too."""

SEED_STRIDE = 100_000
MAPS = 3
"""Prompts whose kept tokens are drawn."""

Pair = tuple[int, int]
"""A prompt's and a seed's place."""


@dataclass(frozen=True)
class Measures:
    """What is measured of each picture beside its fidelity.

    Attributes:
        judge, clip_judge: of the embedded domains, of pictures and of videos; None for other prompts.
        lpips: None where it is not available.
        scores: of a picture against its prompt.
    """

    judge: Judge | None = None
    clip_judge: ClipJudge | None = None
    lpips: Distance | None = None
    scores: dict[str, Score] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that can be run, interrupted and run again.

    Attributes:
        pipe: the model.
        prompts, seeds: every prompt is drawn with every seed.
        candidates: the first is dense, the reference of all others.
        folder: where results go.
        measures: beside fidelity.
        settings: further arguments of the pipeline, the same for all.
        batch: pictures drawn at once.
    """

    pipe: Pipeline
    prompts: PromptSet
    seeds: Sequence[int]
    candidates: Sequence[Candidate]
    folder: RunFolder
    measures: Measures = Measures()
    settings: dict[str, Any] = field(default_factory=dict)
    batch: int = 8

    @property
    def pictures_left(self) -> int:
        """Pictures that are not in the manifest yet."""
        keys = ((c.label, p.name, s) for c in self.candidates for p in self.prompts.prompts for s in self.seeds)
        return sum(key not in self.folder.rows for key in keys)

    def draw(self, tick: Callable[[], None]) -> None:
        """Draws and measures what is missing; ``tick`` is called once for each picture."""
        for pairs in self._batches():
            for candidate in self.candidates:
                todo = [pair for pair in pairs if self._key(candidate.label, pair) not in self.folder.rows]
                if todo:
                    self._contender(candidate, todo)
                    for _ in todo:
                        tick()
            self._renders(pairs)
        self._lay_out()

    def _batches(self) -> Iterator[list[Pair]]:
        """All seeds of a prompt next to each other."""
        pairs = [(prompt, place) for prompt in range(len(self.prompts)) for place in range(len(self.seeds))]
        for start in range(0, len(pairs), self.batch):
            yield pairs[start : start + self.batch]

    def _key(self, label: str, pair: Pair) -> tuple[str, str, int]:
        return label, self.prompts.prompts[pair[0]].name, self.seeds[pair[1]]

    def _seed(self, pair: Pair) -> int:
        return SEED_STRIDE * self.seeds[pair[1]] + pair[0]

    def _output(self, candidate: Candidate, pairs: Sequence[Pair]) -> Output:
        """What the pipeline draws; the noise floor takes other draws at the last scales."""
        subject: dict[str, Any] = {self.pipe.conditioner.argument: [self.prompts.prompts[p].text for p, _ in pairs]}
        seeds = [self._seed(pair) for pair in pairs]
        subject["seed"] = seeds
        if candidate.redrawn:
            schedule = self.pipe.plan(**self.settings).schedule
            del subject["seed"]
            subject["noise"] = RedrawnNoise.of(seeds, max(0, len(schedule) - candidate.redrawn))
        return self.pipe(**subject, method=candidate.method, output_type="np", progress=False, **self.settings)

    def _contender(self, candidate: Candidate, pairs: list[Pair]) -> None:
        output = self._output(candidate, pairs)
        clips = clips_of(output)
        root = self.folder.place("pictures" if self.prompts.layout == "dpg" else "images", candidate.label)
        files = [root / self.prompts.picture(*pair) for pair in pairs]
        for frames, file in zip(clips, files, strict=True):
            write_frames(frames, file)
        self._maps(candidate, pairs, output, clips)
        pixels = to_tensor(clips, self.pipe.device)
        rows = [self._described(candidate.label, pair) for pair in pairs]
        for row, file in zip(rows, files, strict=True):
            row["image"] = file.relative_to(self.folder.path).as_posix()
        if candidate.label != DENSE.label:
            reference = to_tensor([self._dense(pair) for pair in pairs], self.pipe.device)
            for row, found in zip(rows, fidelity(pixels, reference, self.measures.lpips), strict=True):
                row |= found
        self._judge(rows, pairs, pixels)
        for name, score in self.measures.scores.items():
            pictures = [Image.fromarray(frames[len(frames) // 2]) for frames in clips]
            values = score(pictures, [self.prompts.prompts[prompt].text for prompt, _ in pairs])
            for row, value in zip(rows, values, strict=True):
                row.setdefault("scores", {})[name] = round(value, 5)
        for row in rows:
            self.folder.add(row)

    def _described(self, label: str, pair: Pair) -> dict[str, Any]:
        prompt = self.prompts.prompts[pair[0]]
        row: dict[str, Any] = {"method": label, "prompt": prompt.name, "text": prompt.text}
        row |= {"seed": self.seeds[pair[1]], "draw": self._seed(pair)}
        return row | ({"category": prompt.category} if prompt.category else {})

    def _dense(self, pair: Pair) -> Frames:
        """The dense picture, as it was written."""
        return read_frames(self.folder.path / self.folder.rows[self._key(DENSE.label, pair)]["image"])

    def _judge(self, rows: list[dict[str, Any]], pairs: Sequence[Pair], pixels: Tensor) -> None:
        """Of (B, t, 3, H, W): scenes by their first frame, clips by all."""
        prompts = [self.prompts.prompts[prompt] for prompt, _ in pairs]
        scenes = [prompt.scene for prompt in prompts if prompt.scene is not None]
        clips = [prompt.clip for prompt in prompts if prompt.clip is not None]
        if self.measures.judge is not None and len(scenes) == len(prompts):
            questions = Questions.of(scenes, self.pipe.device)
            _add_verdicts(rows, judge_batch(self.measures.judge, pixels[:, 0], questions), questions)
        if self.measures.clip_judge is not None and len(clips) == len(prompts):
            verdicts = judge_videos(self.measures.clip_judge, pixels.transpose(1, 2), clips)
            for row, verdict in zip(rows, verdicts, strict=True):
                row["right"] = {name: right for name, right in verdict.items() if right is not None}

    def _renders(self, pairs: list[Pair]) -> None:
        """Real renders of the scenes: the judge's ceiling, and the set that others are held against."""
        todo = [pair for pair in pairs if self._key(RENDERS, pair) not in self.folder.rows]
        prompts, seeds = [self.prompts.prompts[pair[0]] for pair in todo], [self._seed(pair) for pair in todo]
        scenes = [prompt.scene for prompt in prompts if prompt.scene is not None]
        clips = [prompt.clip for prompt in prompts if prompt.clip is not None]
        if not todo:
            return
        frames, height, width = self._dense(todo[0]).shape[:3]
        if self.measures.judge is not None and len(scenes) == len(todo):
            pixels = render(scenes, seeds, height, width, self.pipe.device).unsqueeze(1)
        elif self.measures.clip_judge is not None and len(clips) == len(todo):
            pixels = render_clips(clips, seeds, frames, height, width, self.pipe.device).transpose(1, 2)
        else:
            return
        rows = [self._described(RENDERS, pair) for pair in todo]
        self._judge(rows, todo, (pixels + 1) / 2)
        for row in rows:
            self.folder.add(row)

    def _maps(self, candidate: Candidate, pairs: Sequence[Pair], output: Output, clips: Sequence[Frames]) -> None:
        """What was kept at the last pruned scale, over the picture, of the first prompts."""
        if not output.kept:
            return
        _, kept = output.kept[-1]
        for index, (prompt, place) in enumerate(pairs):
            if prompt < MAPS and place == 0:
                path = self.folder.place("kept", candidate.label) / f"{self.prompts.prompts[prompt].name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                save_png(kept_overlay(Image.fromarray(clips[index][0]), np.asarray(kept[index])), path)

    def _lay_out(self) -> None:
        """What the judges of the published suites want beside the pictures."""
        for candidate in self.candidates:
            root = self.folder.place("images", candidate.label)
            for index, prompt in enumerate(self.prompts.prompts):
                if self.prompts.layout == "geneval":
                    write_text(root / prompt.name / "metadata.jsonl", prompt.metadata + "\n")
                elif self.prompts.layout == "dpg":
                    pictures = self.folder.place("pictures", candidate.label)
                    places = range(min(len(self.seeds), DPG_PICTURES))
                    files = [pictures / self.prompts.picture(index, place) for place in places]
                    root.mkdir(parents=True, exist_ok=True)
                    sheet = sheet_of_four([Image.fromarray(read_frames(file)[0]) for file in files])
                    save_png(sheet, root / f"{prompt.name}.png")

    @property
    def timed(self) -> list[Candidate]:
        """All but the noise floor, which costs what dense costs."""
        return [candidate for candidate in self.candidates if not candidate.redrawn]

    def _rounds_left(self, rounds: int) -> list[int]:
        done = {(row["method"], row["round"]) for row in self.folder.timing}
        return [n for n in range(rounds) if any((candidate.label, n) not in done for candidate in self.timed)]

    def timings_left(self, rounds: int) -> int:
        """Runs that :meth:`time` will make."""
        left = len(self._rounds_left(rounds))
        return (left + 1) * len(self.timed) if left else 0

    def time(self, rounds: int, samples: int, tick: Callable[[], None]) -> None:
        """Times all candidates in turn, behind one round that does not count; a round that was cut off is repeated."""
        pairs = [(index % len(self.prompts), 0) for index in range(samples)]
        todo = self._rounds_left(rounds)
        for number in [-1, *todo] if todo else []:
            rows = []
            for index in turns(len(self.timed), max(number, 0)):
                candidate = self.timed[index]
                report = self._output(candidate, pairs).report
                rows.append({"method": candidate.label, "round": number, **_cost(report)})
                tick()
            for row in rows if number >= 0 else []:
                self.folder.add_timing(row)


def clips_of(output: Output) -> list[Frames]:
    """The frames of each picture or video of an output."""
    return list(output.videos) if len(output.videos) else [image[None] for image in output.images]


def _cost(report: Any) -> dict[str, Any]:
    return {
        "loop": report.scale_seconds,
        "decode": report.stages.get("decode", 0.0),
        "total": report.seconds,
        "flops": report.flops,
        "kept": report.kept,
        "tokens": report.tokens,
        "samples": report.samples,
        # On the CPU a process's peak never falls, so it says nothing about one method among several.
        "memory": report.peak_memory if report.device.startswith("cuda") else None,
    }


def _add_verdicts(rows: list[dict[str, Any]], judged: Judged, questions: Questions) -> None:
    asked, right = questions.asked.cpu(), judged.right.cpu()
    features = judged.features.to("cpu", torch.float16).numpy()
    for index, row in enumerate(rows):
        row["right"] = {
            name: bool(right[index, column]) for column, name in enumerate(CATEGORIES) if asked[index, column]
        }
        row["features"] = base64.b64encode(features[index].tobytes()).decode()
