"""All that the pinned tests know of the package's insides: when names move, this file follows and no other here does.

What it gives back is plain data, and must stay what it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepvar import Pipeline
from stepvar.checkpoints import save_model
from stepvar.cli import main
from stepvar.core.guidance import GUIDANCE_TYPES
from stepvar.core.noise import SeededNoise, StreamNoise
from stepvar.core.plan import Settings, Step
from stepvar.core.report import Recorder
from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.errors import StepvarError
from stepvar.generation import generate
from stepvar.methods import METHODS, Compose, make_method
from stepvar.methods.restoration import RESTORATIONS
from stepvar.models.infinity import TextCondition
from stepvar.models.infinity_star.model import VideoCondition
from stepvar.models.infinity_star.schedules import clip_schedule
from stepvar.models.registry import FAMILIES
from stepvar.models.var import ClassCondition
from stepvar.text import WordEncoder
from tests.helpers import (
    CLIPS,
    SQUARE,
    TINY_STAR,
    WIDE,
    make_context,
    make_hart,
    make_model,
    make_star,
    make_text,
    make_var,
)

Result = dict[str, Any]
PerPass = float | Sequence[float]

LENGTHS = (5, 3)
"""Words of the prompts of a batch."""

SHORT = clip_schedule(
    [[(Grid(t, side, side), 1 + (side == 2)) for side in (2, 3, 5)] for t in (1, 2)],
    "short",
)
"""A still image and a clip of two latent frames, both square."""


@dataclass(frozen=True)
class Tiny:
    """A small model of a family with weights by a rule, and what it generates."""

    model: Any
    schedules: Mapping[str, ScaleSchedule]
    condition: Callable[[Sequence[int], bool], Any]


@cache
def tiny(family: str, dtype: str = "float32") -> Tiny:
    """The small model of a family; calls share it."""

    def texts(places: Sequence[int]) -> Any:
        return make_text([LENGTHS[place] for place in places], places[0])

    def negative(places: Sequence[int], wanted: bool) -> Any:
        return make_text([4] * len(places), 50) if wanted else None

    def contexts(places: Sequence[int], _: bool) -> Any:
        return make_context([LENGTHS[place] for place in places], places[0])

    tall = ScaleSchedule.of([(1, 1), (2, 2), (4, 3), (6, 4), (9, 6)])
    rows: dict[str, Callable[[], Tiny]] = {
        "infinity": lambda: Tiny(
            make_model(),
            {"square": SQUARE, "wide": WIDE, "tall": tall},
            lambda places, wanted: TextCondition(texts(places), negative(places, wanted)),
        ),
        "var": lambda: Tiny(
            make_var(),
            {"square": SQUARE},
            lambda places, _: ClassCondition(tuple(3 + place for place in places)),
        ),
        "hart": lambda: Tiny(make_hart(), {"square": SQUARE, "tall": tall}, contexts),
        "infinity-star": lambda: Tiny(
            make_star(),
            {"square": SHORT, "wide": CLIPS},
            lambda places, wanted: VideoCondition(texts(places), negative(places, wanted)),
        ),
    }
    made = rows[family]()
    made.model.to(dtype=getattr(torch, dtype))
    return made


RENAMED = {
    "blend": "stepvar:blend",
    "taper": "stepvar:taper",
    "latent-change": "latent-delta",
    "l2-norm": "magnitude",
    "mean-distance": "magnitude:mean-distance",
}
"""Methods that have another name now."""


def method_names() -> list[str]:
    """The methods of the registry, by the names that the cases use."""
    names = {new.partition(":")[0]: old for old, new in RENAMED.items()}
    return [name if name == "stepvar" else names.get(name, name) for name in METHODS]


def method_of(name: str, settings: Mapping[str, Any]) -> Any:
    """A method from plain data: ``restore`` may be a list, the name of a restoration and its settings."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    if "recalled" in values:
        values["context_clips"] = values.pop("recalled")
    name = RENAMED.get(name, name)
    for key, value in values.items():
        if key.endswith("restore") and isinstance(value, tuple):
            values[key] = replace(RESTORATIONS[value[0]], **value[1])
    return make_method(name, **values)


class Listening:
    """A model that notes its logits and the indices that were sampled from them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.logits: list[Tensor] = []
        self.codes: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict(self, *arguments: Any) -> Tensor:
        self.logits.append(self.model.predict(*arguments))
        return self.logits[-1]

    def accumulate(
        self, state: Any, indices: Tensor, step: Step, weights: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        self.codes.append(indices)
        self.model.accumulate(state, indices, step, weights, mask)


@torch.inference_mode()
def run(
    family: str,
    method: str = "dense",
    settings: Mapping[str, Any] | None = None,
    *,
    shape: str = "square",
    places: Sequence[int] = (0,),
    seeds: Sequence[int] = (0,),
    guidance: PerPass = 3.0,
    guidance_at: Sequence[int] = (0,),
    mix: str = "plain",
    temperature: PerPass = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float = 0.0,
    smooth: bool = False,
    negative: bool = False,
    stream: bool = False,
    dtype: str = "float32",
) -> Result:
    """Generates with the tiny model of a family; sequences are repeated until they give one value per pass.

    Args:
        places: which prompts or classes are generated.
        seeds: one for each of them; with ``stream`` the first one is the seed of a common stream.
    """
    subject, acting = tiny(family, dtype), method_of(method, settings or {})
    schedule = subject.schedules[shape]
    count, registered = len(schedule), FAMILIES[family.replace("-", "_")]
    plan_settings = Settings(
        schedule,
        tuple(map(float, _each(guidance, count))),
        tuple(map(float, _each(temperature, count))),
        cfg_layers=tuple(guidance_at),
        combine=GUIDANCE_TYPES[{"plain": "cfg", "projected": "apg"}[mix]],
        top_k=top_k if isinstance(top_k, int) else tuple(_each(top_k, count)),
        top_p=top_p,
        smooth=registered.relative_scales(count) if smooth else (),
    )
    noise: Any = StreamNoise(torch.Generator().manual_seed(seeds[0])) if stream else SeededNoise(tuple(seeds))
    plan = acting.plan(plan_settings, subject.model.info, len(places))
    recorder, model = Recorder(), Listening(subject.model)
    state: Any = generate(model, subject.condition(places, negative), plan, acting, noise, recorder=recorder)
    pixels = subject.model.decode(state)
    report = recorder.report(family, str(acting), len(places), torch.float32)
    return {
        **_counts(report),
        "codes": [hash_of(codes) for codes in model.codes],
        "logits": hash_of(*model.logits),
        "selections": hash_of(*(kept for step in plan.steps for kept in recorder.selections.get(step.index, ()))),
        **_picture(pixels.float()),
    }


def _each(value: Any, count: int) -> list[Any]:
    return [value] * count if isinstance(value, (int, float)) else list(islice(cycle(value), count))


def _counts(report: Any) -> Result:
    return {
        "tokens": [scale.tokens for scale in report.scales],
        "kept": [scale.kept for scale in report.scales],
        "branches": [scale.branches for scale in report.scales],
    }


def _picture(pixels: Tensor) -> Result:
    """The hash of pixels, and for other machines their shape, mean, deviation and five of them."""
    flat = pixels.flatten().double()
    places = torch.linspace(0.1, 0.9, 5, dtype=torch.float64).mul(len(flat)).long()
    values = [flat.mean(), flat.std(), *flat[places]]
    return {
        "pixels": hash_of(pixels),
        "shape": list(pixels.shape),
        "fingerprint": [round(float(value), 6) for value in values],
    }


def hash_of(*tensors: Tensor) -> str:
    """The first 16 digits of the SHA-256 of the bytes, shapes and types of tensors; empty for none."""
    if not tensors:
        return ""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


# Through the pipeline, as users call it.

WORDS: dict[str, Any] = {
    "vocabulary": ["a", "ball", "boat", "left", "red", "rolling"],
    "synonyms": {},
    "width": TINY_STAR.text_channels,
    "layers": 1,
    "hidden": 32,
    "max_words": 15,
}


@cache
def pipeline(name: str) -> Pipeline:
    """An embedded model, or ``"tiny-star"`` and ``"tiny-teller"``, small models of videos, the second clip by clip."""
    if not name.startswith("tiny-"):
        return Pipeline.from_pretrained(name)
    config = TINY_STAR
    if name == "tiny-teller":
        config = replace(config, continues_videos=True, image_repetitions=(2, 1, 1), latents=(4,))
    torch.manual_seed(0)
    encoder = WordEncoder(**WORDS)
    defaults = {"guidance_type": "apg", "temperature": {"clips": [1.0, 0.4]}, "aspect_ratio": "3:2"}
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), name, make_star(config), encoder, WORDS, defaults, torch.float32)
        return Pipeline.from_pretrained(folder)


def call(
    name: str,
    prompt: Any = None,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    image: bool = False,
    video: bool = False,
    story: bool = False,
    tile: int | None = None,
    **arguments: Any,
) -> Result:
    """Generates with a pipeline.

    Args:
        image, video, story: whether to go on from an image, a video or clip by clip, always from the same one.
        tile: side of the tiles that are decoded; None: all at once.
        arguments: of the call, as they are.
    """
    pipe = pipeline(name)
    frames = _frames()
    given: dict[str, Any] = {"image": frames[0]} if image else {}
    given |= {"video": frames} if video else {}
    given |= {"continuation": pipe.start_continuation(frames, seed=1)} if story else {}
    acting = None if method is None else method_of(method, settings or {})
    if tile is not None:
        pipe.enable_vae_tiling(tile)
    out = pipe(prompt, method=acting, progress=False, output_type="pt", **given, **_renamed(arguments))
    pipe.disable_vae_tiling()
    return {
        **_counts(out.report),
        "schedule": out.report.schedule,
        "seeds": list(out.seeds or ()),
        "captions": out.captions,
        "selections": hash_of(*(kept for _, kept in out.kept)),
        **_picture(out.images if len(out.images) else out.videos),
    }


def _renamed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by the names that they have now."""
    names = {"guidance_at": "cfg_layers", "guidance": "guidance_type", "story": "continuation"}
    return {names.get(name, name): value for name, value in arguments.items()}


def _frames() -> Any:
    """A video of ten frames: a ramp that moves."""
    ramp = np.linspace(0, 255, 48 * 32 * 3).reshape(32, 48, 3).astype(np.uint8)
    return np.stack([np.roll(ramp, 2 * frame, axis=1) for frame in range(10)])


# Errors.


def error_of_call(name: str, arguments: Mapping[str, Any]) -> str:
    """What a pipeline says to arguments that it cannot use; a method may be a name and its settings."""
    values = _renamed(arguments)
    if isinstance(values.get("method"), list):
        values["method"] = method_of(*values["method"])
    return _message(lambda: pipeline(name)(progress=False, **values))


def error_of_method(name: str, settings: Mapping[str, Any]) -> str:
    """What is said to a method that cannot be made."""
    return _message(lambda: method_of(name, settings))


def error_of_composition(names: Sequence[str]) -> str:
    """What is said to methods that do not go together."""
    return _message(lambda: Compose(*map(make_method, names)))


def error_of_loading(files: Mapping[str, str], name: str = "", **arguments: Any) -> str:
    """What is said to a model that cannot be loaded.

    Args:
        files: what the folder ``name`` holds, by name.
        name: of the folder inside one of its own, ``<folder>`` in the message; with no files whatever is to be loaded.
    """
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / name
        if files:
            folder.mkdir(exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text)
        message = _message(lambda: Pipeline.from_pretrained(folder if files else name, **arguments))
        return message.replace(root, "<folder>")


def error_of_command(arguments: Sequence[str]) -> str:
    """The exit status of the command line and what it prints, in an empty folder."""
    out, err = io.StringIO(), io.StringIO()
    with _empty_folder(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(arguments))
    return f"{status}|{out.getvalue()}|{err.getvalue()}"


@contextlib.contextmanager
def _empty_folder() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _message(work: Callable[[], Any]) -> str:
    """The kind and the text of the error that the work ends with."""
    try:
        work()
    except StepvarError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("no error")
