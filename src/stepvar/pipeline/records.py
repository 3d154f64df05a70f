"""What a file says of how it was made, enough to generate it again to the bit: written by the pipeline, read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Any

from stepvar.errors import UsageError
from stepvar.methods import Compose, Method, make_method
from stepvar.methods.registry import is_offered
from stepvar.output import Output
from stepvar.utils.reading import check_fields, parse_json
from stepvar.utils.version import __version__

REPEAT = "repeat"
"""The text that holds the record, as JSON."""

_NOT_SETTINGS = (
    *("self", "prompt", "class_labels", "method", "seed", "generator", "noise", "speedup"),
    *("output_type", "progress", "callback_on_scale_end"),
)
_SHOWN_ELSEWHERE = ("num_images_per_prompt", "cfg_layers")
_PIPELINE = {
    "name": str,
    "variant": str | None,
    "revision": str | None,
    "tokenizer": str | None,
    "text_encoder": str | None,
    "engine": str,
    "device": str,
    "dtype": str,
    "tile": int | None,
    "sliced": bool,
    "cache_dtype": str | None,
    "quantization": str | None,
}


@dataclass(frozen=True)
class Record:
    """One image or video of a generation.

    Attributes:
        pipeline: arguments of ``Pipeline.from_pretrained``, and the ``tile`` of decoding.
        call: arguments of the call, without the method.
        method: with its settings.
        index: of the image or video among those that the call generated.
    """

    pipeline: dict[str, Any]
    call: dict[str, Any]
    method: Method
    index: int

    def run(self, pipe: Callable[..., Output], progress: bool = False) -> Output:
        """Generates the whole batch again: an image may differ in its last bits in a batch of another size.

        Raises:
            UsageError: if the record names arguments that a pipeline does not take.
        """
        unknown = self.call.keys() - signature(pipe).parameters.keys()
        if unknown or not self.call.keys().isdisjoint({*_NOT_SETTINGS} - {"prompt", "class_labels", "seed"}):
            raise UsageError(f"arguments {', '.join(sorted(self.call))}: not all can be repeated; the file is damaged")
        return pipe(**self.call, method=self.method, progress=progress)


class _CannotRepeat(Exception):
    """Something that no text stands for."""


def describe(
    name: str,
    origin: Mapping[str, Any] | None,
    given: Mapping[str, Any],
    method: Method,
    seeds: Sequence[int] | None,
    captions: Sequence[str],
) -> list[dict[str, str]]:
    """The texts for the files of a generation, one set per image or video.

    Args:
        name: of the model, for people.
        origin: of the pipeline, see :attr:`Record.pipeline`; None: it was not made by ``from_pretrained``.
        given: the arguments of the call.
    """
    settings = {key: value for key, value in given.items() if value is not None and key not in _NOT_SETTINGS}
    shown = {key: value for key, value in settings.items() if key not in _SHOWN_ELSEWHERE}
    what = {key: given[key] for key in ("prompt", "class_labels") if given.get(key) is not None}
    try:
        if origin is None:
            raise _CannotRepeat("the pipeline was made of parts")
        if seeds is None:
            raise _CannotRepeat("a generator or noise was given")
        call = {key: _plain(value, key) for key, value in {**what, **settings}.items()}
        call["seed"] = list(seeds)
        repeat = {"pipeline": dict(origin), "call": call, "method": _method_record(method)}
        reason = None
    except _CannotRepeat as error:
        repeat, reason = {}, str(error)
    found = []
    for index, caption in enumerate(captions):
        texts = {"prompt": caption}
        texts |= {} if seeds is None else {"seed": str(seeds[index])}
        texts |= {"model": name, "method": str(method), "method_settings": json.dumps(method.settings(), default=str)}
        texts |= {key: _text(_own(key, value, index, len(captions))) for key, value in shown.items()}
        if origin is not None:
            texts |= {"device": str(origin["device"]), "dtype": str(origin["dtype"])}
            texts |= {} if origin["quantization"] is None else {"quantization": str(origin["quantization"])}
        texts["version"] = f"stepvar {__version__}"
        texts |= {REPEAT: json.dumps(repeat | {"index": index})} if reason is None else {"not repeatable": reason}
        found.append(texts)
    return found


def _own(key: str, value: Any, index: int, images: int) -> Any:
    """What an argument is for one image: of negative prompts, which come one per prompt, its own."""
    if key == "negative_prompt" and not isinstance(value, str):
        return value[index * len(value) // images]
    return value


def _text(value: Any) -> str:
    if isinstance(value, (str, Path)):
        return str(value)
    try:
        return json.dumps(_plain(value, ""))
    except _CannotRepeat:
        return f"({type(value).__name__})"


def _plain(value: Any, name: str) -> Any:
    """A value as JSON has it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, (list, tuple)):
        return [_plain(one, name) for one in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # numbers of NumPy and PyTorch
        return value.item()
    raise _CannotRepeat(f"{name} was given as a {type(value).__name__}")


def _method_record(method: Method) -> list[dict[str, Any]]:
    """The parts of a method by name, with their settings."""
    parts = method.parts if isinstance(method, Compose) else (method,)
    found = []
    for part in parts:
        if type(part) is not Method and not is_offered(type(part)):
            raise _CannotRepeat(f"method {part} is a class of your own: generate again from Python")
        settings = {field.name: _plain(getattr(part, field.name), field.name) for field in fields(part)}
        found.append({"name": part.name, "settings": settings})
    try:
        same = type(method) is Method or _build_method(found) == method  # the base class is dense generation
    except (UsageError, TypeError, ValueError):
        same = False
    if not same:  # a class that is registered nowhere: nothing is imported because a file names it
        raise _CannotRepeat(f"method {method} is not a registered one")
    return found


def _build_method(parts: Sequence[Mapping[str, Any]]) -> Method:
    methods = []
    for part in parts:
        if ":" in part["name"] or "+" in part["name"]:
            raise UsageError(f"method {part['name']!r}: is no registered one")
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in part["settings"].items()}
        methods.append(make_method(part["name"], **settings))
    return methods[0] if len(methods) == 1 else Compose(*methods)


def read_record(texts: Mapping[str, str], where: str) -> Record:
    """What the texts of a file say of how to generate it again.

    Args:
        where: the file, for errors.

    Raises:
        UsageError: if they do not say it, or are damaged.
    """
    if REPEAT not in texts:
        reason = texts.get("not repeatable", "it does not say how it was made")
        raise UsageError(f"{where}: cannot be generated again ({reason}); 'stepvar info' shows what it says")
    remedy = "the file is damaged, or of another version"
    try:
        record = parse_json(texts[REPEAT])
        pipeline, call, index = record["pipeline"], record["call"], record["index"]
        if not isinstance(call, dict) or not isinstance(call.get("seed"), list) or not isinstance(index, int):
            raise ValueError("seed or index missing")
        check_fields(pipeline, _PIPELINE, where, UsageError, remedy)
        if pipeline.keys() != _PIPELINE.keys():
            raise ValueError("arguments of the pipeline missing")
        method = _build_method(record["method"])
        if not 0 <= index < len(call["seed"]):
            raise ValueError("index out of range")
    except UsageError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{where}: its record cannot be read ({error!r}); {remedy}") from None
    return Record(dict(pipeline), call, method, index)
