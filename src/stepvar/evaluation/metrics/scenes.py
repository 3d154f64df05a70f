"""Judging images of scenes and videos of clips by program."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from stepvar.evaluation.prompts import Prompt
from stepvar.evaluation.scenes.clips.grammar import Clip
from stepvar.evaluation.scenes.clips.judge import ClipJudge, judge_clips
from stepvar.evaluation.scenes.clips.render import render_clips
from stepvar.evaluation.scenes.grammar import BACKGROUNDS, Scene
from stepvar.evaluation.scenes.judge import RELATION_SLOTS, WORDS, Judge
from stepvar.evaluation.scenes.render import render

Subject = TypeVar("Subject", Scene, Clip)

EVERYTHING = "everything"
"""The name of the verdict on a whole image: right when all that its prompt asks for is."""

CATEGORIES: tuple[str, ...] = (
    "single object", "two objects", "colours", "position", "colour binding", "texture", "size", "texture binding",
    "size binding", "background", EVERYTHING,
)  # fmt: skip
"""What is asked of images, after the categories of GenEval (Ghosh et al. 2023):

``single object``: one object, of the right shape. ``two objects``: two, of the right shapes, wherever they are.
``colours``, ``texture``, ``size``: a single object has its own. ``position``: each shape of a pair is where the caption
puts it. ``colour binding``, ``texture binding``, ``size binding``: so is each colour, texture and size of a pair.
``background``: of any scene. ``everything``: the number of objects, all their attributes at their places, and the
background.
"""


def load_judge(device: str | torch.device = "cpu", path: Path | None = None) -> Judge:
    """The judge that ships with the embedded model, or the one at ``path``."""
    shipped = Path(str(files("stepvar") / "weights" / "scenes" / "judge.safetensors"))
    return Judge.load(path or shipped, torch.device(device))


@dataclass(frozen=True)
class Questions:
    """What the categories ask of a batch of scenes, as tensors, so that many images are judged on the device.

    Attributes:
        wanted: (B, 2, 4) the words of both objects, in the order of :data:`WORDS`; -1 where none is spoken or there
            is no second object.
        slots: (B, 2) the judge's slots where the two objects of a pair must be.
        background: (B,) the word wanted, or -1.
        pair: (B,) whether the scene has two objects.
        related: (B,) whether it says where they are.
    """

    wanted: Tensor
    slots: Tensor
    background: Tensor
    pair: Tensor
    related: Tensor

    @classmethod
    def of(cls, scenes: Sequence[Scene], device: str | torch.device = "cpu") -> Questions:
        wanted = torch.full((len(scenes), 2, len(WORDS)), -1)
        slots = torch.zeros(len(scenes), 2, dtype=torch.int64)
        for row, scene in enumerate(scenes):
            slots[row] = torch.tensor(RELATION_SLOTS.get(scene.relation or "", (0, 1)))
            for place, item in enumerate(scene.objects):
                for column, (name, words) in enumerate(WORDS.items()):
                    word = getattr(item, name)
                    wanted[row, place, column] = -1 if word is None else words.index(word)
        background = torch.tensor([-1 if s.background is None else BACKGROUNDS.index(s.background) for s in scenes])
        pair = torch.tensor([len(scene.objects) == 2 for scene in scenes])
        related = torch.tensor([scene.relation is not None for scene in scenes])
        return cls(*(value.to(device) for value in (wanted, slots, background, pair, related)))

    @cached_property
    def asked(self) -> Tensor:
        """(B, categories): whether a scene says anything that a category asks for."""
        first, second = self.wanted[:, 0] >= 0, self.wanted[:, 1] >= 0
        shape, colour, texture, size = range(len(WORDS))
        both = first & second
        one = ~self.pair
        placed = self.pair & self.related
        columns = (
            one & first[:, shape],
            self.pair & both[:, shape],
            one & first[:, colour],
            placed & both[:, shape],
            placed & both[:, colour],
            one & first[:, texture],
            one & first[:, size],
            placed & both[:, texture],
            placed & both[:, size],
            self.background >= 0,
            torch.ones_like(one),
        )
        return torch.stack(columns, dim=1)

    def right(self, logits: Mapping[str, Tensor]) -> Tensor:
        """(B, categories): whether the judge sees what was asked for; what was not asked means nothing there."""
        single, stated = self._seen(logits)
        shape, colour, texture, size = range(len(WORDS))
        hit = stated == self.wanted
        crossed = stated.flip(1) == self.wanted
        count = logits["count"].argmax(-1) == self.pair.long()
        alone = single == self.wanted[:, 0]
        # The objects of a pair are matched in the order that agrees best, the stated one in a tie.
        turned = crossed.sum((1, 2)) > hit.sum((1, 2))
        best = torch.where(turned[:, None, None], crossed, hit)
        background = logits["background"].argmax(-1) == self.background
        # A pair whose places are not said is right in either order.
        objects = torch.where(self.related[:, None, None], hit, best) | (self.wanted < 0)
        whole = torch.where(self.pair, objects.all((1, 2)), (alone | (self.wanted[:, 0] < 0)).all(1))
        columns = (
            count & alone[:, shape],
            count & best[:, :, shape].all(1),
            alone[:, colour],
            hit[:, :, shape].all(1),
            hit[:, :, colour].all(1),
            alone[:, texture],
            alone[:, size],
            hit[:, :, texture].all(1),
            hit[:, :, size].all(1),
            background,
            count & whole & (background | (self.background < 0)),
        )
        return torch.stack(columns, dim=1)

    def _seen(self, logits: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Words (B, 4) of a single object, for which all slots vote, and (B, 2, 4) at the stated places of a pair."""
        alone = [logits[name].log_softmax(-1).sum(1).argmax(-1) for name in WORDS]
        placed = []
        for name in WORDS:
            words = logits[name].argmax(-1)
            placed.append(words.gather(1, self.slots))
        return torch.stack(alone, dim=-1), torch.stack(placed, dim=-1)


def load_clip_judge(device: str | torch.device = "cpu", path: Path | None = None) -> ClipJudge:
    """The judge that ships with the embedded video model, or the one at ``path``."""
    shipped = Path(str(files("stepvar") / "weights" / "scenes-video" / "judge.safetensors"))
    return ClipJudge.load(path or shipped, torch.device(device))


@torch.inference_mode()
def judge_videos(
    judge: ClipJudge, videos: Tensor, clips: Sequence[Clip], batch: int = 16
) -> list[dict[str, bool | None]]:
    """What is right in each video (B, 3, T, H, W) in [0, 1]; None where its caption does not say."""
    verdicts = []
    for start in range(0, len(clips), batch):
        logits = judge(2 * videos[start : start + batch] - 1)
        verdicts += judge_clips(logits, clips[start : start + batch])
    return verdicts


class Domain(Protocol):
    """An embedded domain: it can say what is right in an image or video, and render the real thing."""

    def judge(self, prompts: Sequence[Prompt], videos: Tensor) -> list[dict[str, Any]]:
        """Per video of (B, t, 3, H, W) in [0, 1]: ``right``, a verdict on each thing that its prompt asks for.

        Where sets are compared, too, also ``features`` in base64; see :func:`decode_features`.
        """
        ...

    def render(self, prompts: Sequence[Prompt], seeds: Sequence[int], like: Tensor) -> Tensor:
        """Real renders of the prompts, of the shape of ``like`` (B, t, 3, H, W), in [0, 1]."""
        ...


@dataclass(frozen=True)
class Scenes:
    """Images of scenes."""

    network: Judge

    @torch.inference_mode()
    def judge(self, prompts: Sequence[Prompt], videos: Tensor) -> list[dict[str, Any]]:
        questions = Questions.of([_given(prompt.scene) for prompt in prompts], videos.device)
        logits = self.network(2 * videos[:, 0] - 1)
        features = encode_features(logits["features"])
        rows = []
        verdicts = zip(questions.right(logits).tolist(), questions.asked.tolist(), features, strict=True)
        for right, asked, own in verdicts:
            seen = {name: saw for name, saw, is_asked in zip(CATEGORIES, right, asked, strict=True) if is_asked}
            rows.append({"right": seen, "features": own})
        return rows

    def render(self, prompts: Sequence[Prompt], seeds: Sequence[int], like: Tensor) -> Tensor:
        scenes = [_given(prompt.scene) for prompt in prompts]
        height, width = like.shape[-2:]
        return (render(scenes, seeds, height, width, like.device).unsqueeze(1) + 1) / 2


@dataclass(frozen=True)
class Clips:
    """Videos of moving scenes."""

    network: ClipJudge

    def judge(self, prompts: Sequence[Prompt], videos: Tensor) -> list[dict[str, Any]]:
        clips = [_given(prompt.clip) for prompt in prompts]
        verdicts = judge_videos(self.network, videos.transpose(1, 2), clips)
        return [{"right": {name: saw for name, saw in verdict.items() if saw is not None}} for verdict in verdicts]

    def render(self, prompts: Sequence[Prompt], seeds: Sequence[int], like: Tensor) -> Tensor:
        clips = [_given(prompt.clip) for prompt in prompts]
        frames, _, height, width = like.shape[1:]
        return (render_clips(clips, seeds, frames, height, width, like.device).transpose(1, 2) + 1) / 2


def domain_of(prompts: Sequence[Prompt], device: torch.device) -> Domain | None:
    """The embedded domain that all prompts are of, with its judge; None for other prompts."""
    if all(prompt.scene is not None for prompt in prompts):
        return Scenes(load_judge(device))
    if all(prompt.clip is not None for prompt in prompts):
        return Clips(load_clip_judge(device))
    return None


def encode_features(features: Tensor) -> list[str]:
    """Features (images, C) as a manifest holds them: in half precision and base64."""
    values = features.to("cpu", torch.float16).numpy().astype("<f2")
    return [base64.b64encode(row.tobytes()).decode() for row in values]


def decode_features(stored: Sequence[str]) -> Tensor:
    """(images, C), of what :func:`encode_features` made."""
    rows = [np.frombuffer(base64.b64decode(text), dtype="<f2") for text in stored]
    return torch.from_numpy(np.stack(rows).astype(np.float64))


def _given(subject: Subject | None) -> Subject:
    assert subject is not None  # domain_of has looked
    return subject
