"""From the fields of a request to work for the pipeline, checked before it joins the queue."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from stepvar.core.arguments import LARGEST_SEED
from stepvar.core.plan import Plan
from stepvar.core.values import Range, nearest, number, shown, whole_number
from stepvar.errors import UsageError
from stepvar.media.images import check_quality
from stepvar.media.video_files import check_video_suffix
from stepvar.methods import Method, make_method
from stepvar.methods.registry import AUTO, METHODS, all_methods, is_class_path
from stepvar.models.inputs import GenerationInputs
from stepvar.models.shapes import other_sizes, shape_of_size, sizes_of
from stepvar.pipeline import Pipeline
from stepvar.serving.server.schema import ImageFields, VideoRequest
from stepvar.serving.server.settings import ServerSettings

QUALITIES = {
    "low": "stepvar+drop-guidance",
    "medium": "stepvar",
    "standard": "stepvar",
    "high": "dense",
    "hd": "dense",
}
"""The method that a quality of OpenAI's stands for, with its own settings."""

MOST_PREVIEWS = 64
LONGEST_METHOD = 500
"""Characters of the names of methods: some of them together have fewer, and each costs time to look up."""
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")

PerScale = float | tuple[float, ...]


@dataclass(frozen=True)
class Recipe:
    """All that images of one batch have in common; prompts, seeds and source images are their own.

    Attributes:
        method: names, as :func:`~stepvar.methods.make_method` takes them; "auto" with a speed-up.
        size: width and height in pixels; None: the model's own.
        seconds: of a video; 0: an image of a video model; None: of an image model, or the usual length.
        negative: whether there is a negative prompt.
        source: whether there is an image to start from; the size in pixels where it decides that of the result.
        previews: pictures on the way.
    """

    method: str
    keep: PerScale | None = None
    speedup: float | None = None
    guidance_scale: PerScale | None = None
    size: tuple[int, int] | None = None
    seconds: float | None = None
    negative: bool = False
    source: bool | tuple[int, int] = False
    previews: int = 0

    def settings(self, pipe: Pipeline) -> dict[str, Any]:
        """Arguments of the call that say what dense generation does, for :meth:`Pipeline.settings`."""
        found: dict[str, Any] = {"guidance_scale": self.guidance_scale, "seconds": self.seconds}
        if self.size is not None:
            width, height = self.size
            found["aspect_ratio"], found["resolution"] = shape_of_size(pipe.model, height, width)
        return {name: value for name, value in found.items() if value is not None}

    def named_method(self) -> Method | str:
        """The method, whose settings a speed-up may still decide."""
        if self.method == AUTO and self.speedup is not None:
            return AUTO
        return make_method(self.method, **({} if self.keep is None else {"keep": self.keep}))

    def plan(self, pipe: Pipeline, method: Method) -> Plan:
        """What one image or video runs."""
        return method.plan(pipe.settings(**self.settings(pipe)), pipe.model.info, 1)


@dataclass(eq=False)
class Work:
    """One request: its images, or its video.

    Attributes:
        seeds: one per image.
        image: to start from.
        alone: whether its images run one by one: what their method decides by an image would be decided for a batch.
        tell: takes what happens, from the thread that generates; must return at once.
        left: whether nobody waits for it any more.
        failed: whether one of its images could not be generated.
    """

    recipe: Recipe
    prompt: str
    negative_prompt: str | None
    seeds: tuple[int, ...]
    image: Image.Image | None = None
    alone: bool = False
    tell: Callable[[Any], None] = field(default=lambda event: None)
    left: bool = False
    failed: bool = False


@dataclass(frozen=True)
class FileFormat:
    """How results are encoded.

    Attributes:
        kind: "png", "jpeg" or "webp".
        quality: 0 to 100, of JPEG and WebP; None: 95, and without loss.
        as_url: as data: URLs.
    """

    kind: str = "png"
    quality: int | None = None
    as_url: bool = False


def image_work(
    fields: ImageFields, pipe: Pipeline, settings: ServerSettings, image: Image.Image | None = None
) -> tuple[Work, FileFormat]:
    """The work of an images request.

    Args:
        image: that is to be edited.

    Raises:
        UsageError: for what cannot be generated.
    """
    if fields.partial_images and not fields.stream:
        raise UsageError(f"partial_images={fields.partial_images}: come with stream=true only")
    previews = whole_number("partial_images", fields.partial_images, Range(0, MOST_PREVIEWS))
    if pipe.family.edits and image is None:
        raise UsageError("image: this model changes an image; send it to /v1/images/edits")
    if image is not None and fields.size != "auto":
        raise UsageError(f"size={shown(fields.size)}: an edit has the size of its image; leave it out")
    quality = None
    if fields.output_compression is not None:
        if fields.output_format == "png":
            raise UsageError("output_compression: PNG loses nothing; leave it out, or take jpeg or webp")
        quality = check_quality(fields.output_compression, "output_compression")
    count = whole_number("n", fields.n, Range(1, settings.max_images))
    work = _work(fields, pipe, settings, count, 0.0 if pipe.family.video else None, image, previews)
    return work, FileFormat(fields.output_format, quality, fields.response_format == "url")


def video_work(fields: VideoRequest, pipe: Pipeline, settings: ServerSettings, image: Image.Image | None) -> Work:
    """The work of a videos request.

    Args:
        image: that the video begins with.

    Raises:
        UsageError: for what cannot be generated.
    """
    if not pipe.family.video:
        raise UsageError("model: this one generates images; send the prompt to /v1/images/generations")
    check_video_suffix(Path("video.mp4"))
    seconds = fields.seconds
    if seconds == 0:
        raise UsageError("seconds=0: a still image; send its prompt to /v1/images/generations")
    if seconds is not None:
        seconds = number("seconds", seconds, Range(above=0, most=settings.max_seconds))
    return _work(fields, pipe, settings, 1, seconds, image, 0)


def _work(
    fields: ImageFields | VideoRequest,
    pipe: Pipeline,
    settings: ServerSettings,
    count: int,
    seconds: float | None,
    image: Image.Image | None,
    previews: int,
) -> Work:
    prompt = _text("prompt", fields.prompt, settings)
    negative = None if fields.negative_prompt is None else _text("negative_prompt", fields.negative_prompt, settings)
    source: bool | tuple[int, int] = image is not None
    if image is not None and pipe.family.video:
        source = image.size
    recipe = Recipe(
        method=_method(fields, settings),
        keep=_hashable(fields.keep),
        speedup=None if fields.speedup is None else number("speedup", fields.speedup, Range(1, 100)),
        guidance_scale=_hashable(fields.guidance_scale),
        size=_size(fields.size, pipe, settings),
        seconds=seconds,
        negative=negative is not None,
        source=source,
        previews=previews,
    )
    method = recipe.named_method()
    recipe.plan(pipe, method if isinstance(method, Method) else Method())
    words: dict[str, Any] = {pipe.inputs.argument: prompt}
    pipe.inputs.prepare(GenerationInputs(**words, negative_prompt=negative, seconds=seconds, image=image), 1)
    first = secrets.randbelow(2**31) if fields.seed is None else fields.seed
    first = whole_number("seed", first, Range(0, LARGEST_SEED - count + 1))
    alone = isinstance(method, Method) and not method.static
    return Work(recipe, prompt, negative, tuple(range(first, first + count)), image, alone)


def _method(fields: ImageFields | VideoRequest, settings: ServerSettings) -> str:
    """The names of the methods that a request runs."""
    own = {"method": fields.method, "keep": fields.keep, "speedup": fields.speedup}
    given = [name for name, value in own.items() if value is not None]
    if fields.quality != "auto" and given:
        raise UsageError(f"quality={fields.quality!r} and {given[0]}: give one of them; the quality chooses a method")
    if fields.keep is not None and fields.speedup is not None:
        raise UsageError("keep and speedup: give one of them; the speed-up decides what is kept")
    if fields.quality != "auto":
        return QUALITIES[fields.quality]
    name = fields.method
    if name is None:
        return "stepvar" if given else settings.method
    return check_method_name(name)


def check_method_name(name: str) -> str:
    """The name of registered methods; a class by its path would be imported, which a client has no business to do.

    Raises:
        UsageError: for a path, or what is no name; it offers names alone, since clients cannot give a class.
    """
    if len(name) > LONGEST_METHOD or not name.strip() or any(map(is_class_path, name.split("+"))):
        raise UsageError(f"method={shown(name)}: give a registered method by name, as 'stepvar methods' has it")
    if "=" in name:
        raise UsageError(f"method={shown(name)}: a name takes no settings; requests have the fields keep and speedup")
    for word in (part.partition(":")[0].strip() for part in name.split("+")):
        if word != AUTO and word not in METHODS and word not in (known := all_methods()):
            raise UsageError(f"method {shown(word)}: unknown; choose one of {', '.join(known)}{nearest(word, known)}")
    return name


def _size(text: str, pipe: Pipeline, settings: ServerSettings) -> tuple[int, int] | None:
    """Width and height; an error names sizes as requests have them, the width first."""
    if text == "auto":
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        raise UsageError(f"size={shown(text)}: must be 'auto', or width x height in pixels, such as '1024x1024'")
    width, height = int(found[1]), int(found[2])
    if settings.max_pixels is not None and width * height > settings.max_pixels:
        raise UsageError(f"size={shown(text)}: at most {settings.max_pixels} pixels here; ask for fewer")
    sizes = sizes_of(pipe.model)
    if (height, width) not in sizes:
        near = other_sizes(sizes, (height, width), width_first=True)
        raise UsageError(f"size={shown(text)}: this model has no such size; {near}")
    return width, height


def _text(name: str, text: str, settings: ServerSettings) -> str:
    if len(text) > settings.max_prompt:
        raise UsageError(f"{name} of {len(text)} characters: at most {settings.max_prompt} here; shorten it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name}={shown(text)}: has half of a character, a lone surrogate; send whole ones") from None
    return text


def _hashable(value: float | list[float] | None) -> PerScale | None:
    return tuple(value) if isinstance(value, list) else value


KEPT_TEXTS = ("prompt", "seed", "model", "method", "method_settings", "dtype", "version")


def texts_of(work: Work, texts: Mapping[str, str]) -> dict[str, str]:
    """What a file says of how it was made.

    Nothing of what :class:`~stepvar.pipeline.records.Record` holds: that is the whole batch, with the prompts of other
    clients, and where files lie on the server.

    Args:
        texts: those of the pipeline.
    """
    found = {name: texts[name] for name in KEPT_TEXTS if name in texts}
    own = {"negative_prompt": work.negative_prompt, "guidance_scale": work.recipe.guidance_scale}
    found |= {name: str(value) for name, value in own.items() if value is not None}
    return found | {"not repeatable": "it was made by a server; ask for its seed and settings again"}
