"""What an evaluation generates: prompt files, the folders of GenEval and DPG-Bench, and the embedded domains' suites.

The published suites are the user's to supply; only the shape of their files is known here. Images are laid out as
each suite's own judge expects them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stepvar.errors import UsageError
from stepvar.evaluation.scenes.clips.grammar import Clip, clip_caption, held_out_clips
from stepvar.evaluation.scenes.grammar import Scene, caption, held_out_scenes
from stepvar.media.images import read_image
from stepvar.utils.reading import parse_json, read_text

Layout = Literal["plain", "geneval", "dpg"]

SUITE_SEED = 7
SUITE_SIZE = 128
SUITE_MOST = 4096
MOST_PROMPTS = 100_000
DPG_IMAGES = 4
"""Images of a prompt on one sheet, which the judge of DPG-Bench cuts apart again."""


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        name: unique in its suite; names the prompt's files.
        text: what to generate.
        category: as the suite says, or "".
        metadata: GenEval: the line of its file, as it stands.
        scene, clip: of the embedded domains' suites, of images and of videos.
        place: where it stands, for errors, such as ``line 3`` or the name of its file.
        image: the image that it is about.
    """

    name: str
    text: str
    category: str = ""
    metadata: str = ""
    scene: Scene | None = None
    clip: Clip | None = None
    place: str = ""
    image: Path | None = None


@dataclass(frozen=True)
class PromptSet:
    """Prompts, and how their images are laid out.

    Attributes:
        source: where they come from, for results.
        layout: ``plain``: ``NAME/0000.png``; ``geneval``: ``00000/metadata.jsonl`` and ``00000/samples/0000.png``;
            ``dpg``: sheets ``NAME.png`` of two by two, made of plain images that lie elsewhere.
    """

    source: str
    prompts: tuple[Prompt, ...]
    layout: Layout = "plain"

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def digest(self) -> str:
        """Of all prompts, so that a run goes on with the same ones only."""
        images = [[] if prompt.image is None else [str(prompt.image)] for prompt in self.prompts]
        texts = json.dumps([[one.name, one.text, *image] for one, image in zip(self.prompts, images, strict=True)])
        return hashlib.sha256(texts.encode()).hexdigest()[:16]

    def limited(self, limit: int | None) -> PromptSet:
        """The first ``limit`` prompts.

        Raises:
            UsageError: for a limit below 1.
        """
        if limit is not None and limit < 1:
            raise UsageError(f"limit={limit}: must be at least 1")
        return PromptSet(self.source, self.prompts[:limit], self.layout)

    def check_images(self, edits: bool, batch: int = 1) -> None:
        """Refuses images that cannot be read, before a model is loaded.

        Args:
            edits: whether the model needs an image with every prompt, and its results have the sizes of these.
            batch: images generated at once.

        Raises:
            UsageError: naming the prompt.
        """
        sizes = set()
        for prompt in self.prompts:
            if prompt.image is not None:
                sizes.add(read_image(prompt.image, "image").size)
            elif edits:
                raise UsageError(
                    f"prompts {self.source}: {prompt.place or prompt.name} has no image, and the model changes one; "
                    'give JSON lines such as {"prompt": "...", "image": "street.jpg"}'
                )
        if edits and len(sizes) > 1 and batch > 1:
            raise UsageError(f"batch={batch}: the images of the prompts have different sizes; use --batch 1")

    def image(self, index: int, place: int) -> Path:
        """Where an image goes, below the folder of its method; ``place`` is its seed's among the seeds."""
        return Path(self.prompts[index].name) / ("samples" if self.layout == "geneval" else "") / f"{place:04}.png"


def load_prompts(source: str) -> PromptSet:
    """Prompts by where they come from.

    Args:
        source: ``scenes`` or ``scenes:256``, held-out scenes of the embedded domain; ``scenes-video`` likewise, of
            clips; a ``.jsonl`` file with the ``prompt`` and ``tag`` of GenEval's ``evaluation_metadata.jsonl``; a
            folder with one text file per prompt, as DPG-Bench has them; or a text file with one prompt per line. A line
            of JSON may have a ``category`` in place of the ``tag``, which is not GenEval's, and may name the ``image``
            that its prompt is about, from the folder of the file.

    Raises:
        UsageError: if there is no such thing, or it cannot be read as such.
    """
    name, _, count = source.partition(":")
    if name in ("scenes", "scenes-video"):
        size = _suite_size(source, count)
        return _scenes(source, size) if name == "scenes" else _clips(source, size)
    path = Path(source)
    if path.is_dir():
        return _dpg(path)
    if not path.exists():
        raise UsageError(f"prompts {source!r}: no such file or folder; give one, or 'scenes' or 'scenes-video'")
    text = read_text(path)
    return _rows(path, text) if path.suffix == ".jsonl" else _lines(path, text)


def _suite_size(source: str, count: str) -> int:
    if count and not count.isdecimal():
        raise UsageError(f"prompts {source!r}: give a number behind the colon, such as scenes:256")
    wanted = int(count) if count else SUITE_SIZE
    if not 1 <= wanted <= SUITE_MOST:
        raise UsageError(f"prompts {source!r}: give between 1 and {SUITE_MOST} scenes")
    return wanted


def _scenes(source: str, count: int) -> PromptSet:
    scenes = held_out_scenes(count, seed=SUITE_SEED)
    kinds = ("one object", "two objects")
    prompts = [
        Prompt(f"{number:05}", caption(scene), kinds[len(scene.objects) - 1], scene=scene)
        for number, scene in enumerate(scenes)
    ]
    return PromptSet(source, tuple(prompts))


def _clips(source: str, count: int) -> PromptSet:
    clips = held_out_clips(count, seed=SUITE_SEED)
    prompts = [
        Prompt(f"{number:05}", clip_caption(clip), str(clip.motion), clip=clip) for number, clip in enumerate(clips)
    ]
    return PromptSet(source, tuple(prompts))


def _lines(path: Path, text: str) -> PromptSet:
    lines = [(line.strip(), f"line {number}") for number, line in enumerate(text.split("\n"), 1)]
    filled = [(line, place) for line, place in lines if line]
    return _some(path, [Prompt(f"{number:05}", line, place=place) for number, (line, place) in enumerate(filled)])


def _rows(path: Path, text: str) -> PromptSet:
    prompts: list[Prompt] = []
    tagged = False
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            tagged |= "tag" in row
            if not isinstance(row["prompt"], str) or not row["prompt"].strip():
                raise TypeError("no text")
            kind, image = str(row.get("tag", row.get("category", ""))), row.get("image")
            about = None if image is None else path.parent / image
            prompts.append(Prompt(f"{len(prompts):05}", row["prompt"], kind, line, place=f"line {number}", image=about))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(
                f"prompts {path}: line {number} has no 'prompt'; give one JSON object per line, as GenEval does"
            ) from None
    return _some(path, prompts, "geneval" if tagged else "plain")


def _dpg(path: Path) -> PromptSet:
    files = sorted(path.glob("*.txt"))
    return _some(path, [Prompt(file.stem, read_text(file).strip(), place=file.name) for file in files], "dpg")


def _some(path: Path, prompts: Sequence[Prompt], layout: Layout = "plain") -> PromptSet:
    if not prompts or not all(prompt.text for prompt in prompts):
        raise UsageError(f"prompts {path}: no prompts, or an empty one; give one per line, or one per .txt file")
    if len(prompts) > MOST_PROMPTS:
        raise UsageError(f"prompts {path}: {len(prompts):,} prompts; at most {MOST_PROMPTS:,}, split the file")
    return PromptSet(str(path), tuple(prompts), layout)
