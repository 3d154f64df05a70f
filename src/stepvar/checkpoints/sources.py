"""From the name or path of a model to its files, configuration and settings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from stepvar.checkpoints.hub import WHOLE, fetch
from stepvar.checkpoints.reading import INDEX_SUFFIX, PLAIN, TORCH_SUFFIXES
from stepvar.core.arguments import SamplingArguments, parse_aspect_ratio
from stepvar.core.guidance import GUIDANCE_SCHEDULES, GUIDANCE_TYPES
from stepvar.errors import CheckpointError, UsageError
from stepvar.models.configs import check_entries
from stepvar.models.family import Family, Variant
from stepvar.models.registry import FAMILIES, release_of_repo, releases_named
from stepvar.text import WordEncoder
from stepvar.utils.reading import check_fields, read_json

EMBEDDED: tuple[str, ...] = ("scenes", "scenes-video", "wardrobe")
"""Models that ship inside the package."""

CONFIG = "config.json"
"""What a model is, in a folder of the project's own format: beside it lies a safetensors file, or shards, per part."""

_ENTRIES = {"name": str, "model": dict, "text_encoder": dict | None, "defaults": dict}
_NUMBERS = float | tuple[float, ...] | None
_DEFAULTS: dict[str, Any] = {
    "guidance_scale": _NUMBERS,
    "temperature": _NUMBERS,
    "top_k": int | tuple[int, ...] | None,
    "top_p": float | None,
    "more_smooth": bool | None,
    "cfg_layers": tuple[int, ...],
    "guidance_schedule": str | None,
    "guidance_type": str | None,
    "aspect_ratio": str | float,
}
"""Sampling settings that a model may state: arguments of a call; numbers also by clip, ``{"clips": [1.0, 0.4]}``."""

_WEIGHTS = (".safetensors", INDEX_SUFFIX, *TORCH_SUFFIXES)


@dataclass(frozen=True)
class Source:
    """A model that has been found and not yet read.

    Attributes:
        name: for reports.
        config: of the family's configuration class.
        defaults: sampling settings.
        parts: the file, index or folder of shards of each part of the model, and of its own text encoder if it has one.
        about: the file that says what the model is, for errors.
        text_encoder: the arguments of the model's own text encoder, if it has one.
    """

    name: str
    family: Family
    config: Any
    defaults: Mapping[str, Any]
    parts: Mapping[str, Path]
    about: Path
    text_encoder: Mapping[str, Any] | None = None


def find_model(name: str | Path) -> Path:
    """The folder of an embedded model, or the local folder or file given.

    Raises:
        UsageError: if there is no such model.
    """
    if str(name) in EMBEDDED:
        return Path(str(files("stepvar") / "weights" / str(name)))
    if os.path.exists(name):
        return Path(name)
    repos = ", ".join(family.repos[0] for family in FAMILIES.values())
    raise UsageError(
        f"model {str(name)!r}: unknown; use {', '.join(EMBEDDED)}, a release on the hub ({repos}), "
        "or a local folder or file"
    )


def _part_path(folder: Path, part: str) -> Path:
    """The file of a part, or the index of its shards."""
    index = folder / f"{part}.safetensors{INDEX_SUFFIX}"
    return index if index.is_file() else folder / f"{part}.safetensors"


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a model folder.

    Raises:
        CheckpointError: if it is missing or not valid.
    """
    path = folder / CONFIG
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: missing; a model folder needs it")
    config = read_json(path, CheckpointError, "fetch the folder again")
    if not isinstance(config.get("family"), str) or config["family"] not in FAMILIES:
        raise CheckpointError(f"{path}: family must be one of {', '.join(map(repr, FAMILIES))}")
    check_fields(config, _ENTRIES, str(path), CheckpointError, "fetch the folder again")
    defaults = config.get("defaults", {})
    if unknown := sorted(defaults.keys() - _DEFAULTS.keys()):
        raise CheckpointError(f"{path}: defaults: unknown settings {', '.join(unknown[:8])}; take them out")
    by_clip = {name: value["clips"] for name, value in defaults.items() if isinstance(value, dict) and "clips" in value}
    for found in ({name: value for name, value in defaults.items() if name not in by_clip}, by_clip):
        check_fields(found, _DEFAULTS, f"{path}: defaults", CheckpointError, "correct it")
    _check_defaults(path, {name: value for name, value in defaults.items() if name not in by_clip}, by_clip)
    return config


def _check_defaults(path: Path, plain: Mapping[str, Any], by_clip: Mapping[str, Any]) -> None:
    """Holds the sampling settings of a model to the bounds of a call's arguments."""
    own = dict(plain)
    try:
        if (ratio := own.pop("aspect_ratio", None)) is not None:
            parse_aspect_ratio(ratio)
        for name, known in (("guidance_schedule", GUIDANCE_SCHEDULES), ("guidance_type", GUIDANCE_TYPES)):
            if own.get(name) is not None and own[name] not in known:
                raise UsageError(f"{name}={own[name]!r}: must be one of {', '.join(known)}")
        SamplingArguments(**{name: value for name, value in own.items() if value is not None})
        for name, values in by_clip.items():
            if not values:
                raise UsageError(f"{name}: clips=[]: give at least one number")
            SamplingArguments(**{name: values})
    except UsageError as error:
        raise CheckpointError(f"{path}: defaults: {error}") from None


def find_source(
    name: str | Path,
    variant: str | None = None,
    revision: str | None = None,
    tokenizer: str | Path | None = None,
    local_files_only: bool = False,
) -> Source:
    """Finds a model; its arguments and errors are those of :func:`~stepvar.checkpoints.load_model`."""
    release = release_of_repo(str(name))
    if release is not None and not os.path.exists(name):
        family, usual = release
        return _on_hub(family, usual if variant is None else variant, revision, tokenizer, local_files_only)
    if revision is not None:
        raise UsageError(f"revision {revision!r}: applies to releases on the hub, not to {str(name)!r}; leave it out")
    path = find_model(name)
    if path.is_dir() and not _part_path(path, "transformer").is_file():  # not in the project's own format
        if (found := _released_in(path, variant)) is not None:
            return _local(*found, tokenizer)
        if _named(path) or any(path.glob(f"*{INDEX_SUFFIX}")) or any((path / name).is_file() for name in PLAIN):
            return _single(path, variant, tokenizer)
    if path.is_file():
        return _single(path, variant, tokenizer)
    if variant is not None:
        raise UsageError(f"variant {variant!r}: {str(name)!r} is one model without variants; leave it out")
    return _own(path, tokenizer)


def find_outline(
    name: str | Path,
    variant: str | None = None,
    revision: str | None = None,
    tokenizer: str | Path | None = None,
) -> Source:
    """Finds what a model is without fetching it: releases on the hub are known by their published sizes.

    Raises:
        UsageError, CheckpointError: as :func:`find_source`.
    """
    release = release_of_repo(str(name))
    if release is None or os.path.exists(name):
        return find_source(name, variant, revision, tokenizer)
    family, usual = release
    return _released(family, usual if variant is None else variant, {})


@contextmanager
def describing(path: Path) -> Iterator[None]:
    """Within it, what goes wrong in making a configuration or a model from it is an error in what ``path`` says."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not describe a model ({error!r}); fetch it again") from error


def _own(folder: Path, tokenizer: str | Path | None) -> Source:
    """A folder in the project's own format."""
    content = read_config(folder)
    family = FAMILIES[content["family"]]
    parts = {part: _part_path(folder, part) for part in family.parts}
    if content.get("text_encoder") is not None:
        parts["text_encoder"] = _part_path(folder, "text_encoder")
    if tokenizer is not None:
        parts["tokenizer"] = Path(tokenizer)
    return _described(content, folder, parts, folder.name, {})


def _described(
    content: Mapping[str, Any], folder: Path, parts: Mapping[str, Path], name: str, defaults: Mapping[str, Any]
) -> Source:
    """A model that the ``config.json`` of a folder describes; name and defaults are for where it does not say."""
    family, path = FAMILIES[content["family"]], folder / CONFIG
    with describing(path):
        config = family.config(content["model"])
        text = content["text_encoder"] if "text_encoder" in parts else None
        check_entries(text or {}, get_type_hints(WordEncoder.__init__), "text_encoder")
    return Source(content.get("name", name), family, config, content.get("defaults", defaults), parts, path, text)


def _released(family: Family, name: str, parts: Mapping[str, Path]) -> Source:
    """A release as published; its own files say what it is where the family's releases do, and files are there."""
    variant, path = _variant(family, name), parts.get("transformer", Path(family.repos[0]))
    config = variant.config
    if family.released_config is not None and parts:
        with describing(path):
            config = family.released_config(parts)
    return Source(f"{family.name}-{name}", family, config, variant.defaults, parts, path)


def _variant(family: Family, name: str) -> Variant:
    if name not in family.variants:
        raise UsageError(f"variant {name!r}: {family.name} has {', '.join(family.variants)}")
    return family.variants[name]


def _releases() -> Iterator[tuple[Family, str, Variant]]:
    for family in FAMILIES.values():
        for name, variant in family.variants.items():
            yield family, name, variant


def _on_hub(
    family: Family, name: str, revision: str | None, tokenizer: str | Path | None, local_files_only: bool
) -> Source:
    variant = _variant(family, name)
    if not variant.transformer:
        raise UsageError(
            f"variant {name!r}: the name of its file in {family.repos[0]} is not known; fetch the file and give its "
            f"path, with variant={name!r}"
        )

    def fetched(part: str, names: Sequence[str]) -> Path:
        if part in variant.repos:
            return fetch([variant.repos[part]], [WHOLE], revision, local_files_only)
        if part == "tokenizer" and family.tokenizer_repos:
            return fetch(family.tokenizer_repos, names, None, local_files_only)
        return fetch(family.repos, names, revision, local_files_only)

    # The small file first: what is wrong shows before gigabytes are fetched.
    path = fetched("tokenizer", variant.tokenizer) if tokenizer is None else _existing(tokenizer)
    return _released(family, name, {"transformer": fetched("transformer", variant.transformer), "tokenizer": path})


def _released_in(folder: Path, wanted: str | None) -> tuple[Family, str, Path] | None:
    """Which release the files of a folder are: its family, variant and transformer; None if there is none."""
    found = [
        (family, name, path)
        for family, name, variant in _releases()
        if (path := _first(folder, variant.transformer)) is not None
    ]
    if not found:
        return None
    here = ", ".join(name for _, name, _ in found)
    chosen = [one for one in found if wanted in (None, one[1], f"{one[0].name}-{one[1]}")]
    if not chosen:
        raise UsageError(f"variant {wanted!r}: {folder} holds {here}")
    if len(chosen) > 1:
        raise UsageError(f"{folder}: holds several models; give variant, one of {here}")
    return chosen[0]


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of several spellings that is there."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def _named(path: Path) -> list[tuple[Family, str]]:
    """The releases whose transformer has the name of a file or folder."""
    return [(family, name) for family, name, variant in _releases() if path.name in variant.transformer]


def _single(path: Path, name: str | None, tokenizer: str | Path | None) -> Source:
    """A transformer's file or folder of shards, whose tokenizer lies beside it or elsewhere."""
    if path.is_file() and not path.name.endswith(_WEIGHTS):
        raise CheckpointError(f"{path}: is no weight file; these end in {', '.join(_WEIGHTS)}")
    known = _named(path) if name is None else releases_named(name)
    if name is not None and not known:
        raise UsageError(f"variant {name!r}: unknown; choose one of {', '.join(own for _, own, _ in _releases())}")
    override = _override(path)
    if len(known) > 1:  # weights of two families may have the same names and shapes
        own = override[1]["family"] if override is not None else None
        known = [one for one in known if one in _named(path) or one[0].name == own] or known
    if len(known) > 1:
        names = ", ".join(f"{family.name}-{own}" for family, own in known)
        raise UsageError(f"variant {name!r}: {path.name} may be of several families; give one of {names}")
    if known:
        return _local(*known[0], path, tokenizer)
    if override is None:
        raise UsageError(f"{path}: its name does not tell which model it is; give variant, such as 2b or d16")
    family = FAMILIES[override[1]["family"]]
    return _local(family, family.default, path, tokenizer)


def _local(family: Family, name: str, transformer: Path, tokenizer: str | Path | None) -> Source:
    """A release from local files; a ``config.json`` beside them may describe another size."""
    variant = _variant(family, name)
    if tokenizer is not None:
        path: Path | None = _existing(tokenizer)
    else:
        path = next((found for place in _beside(transformer) if (found := _first(place, variant.tokenizer))), None)
    if path is None:
        raise CheckpointError(
            f"{_beside(transformer)[0]}: lacks the tokenizer {' or '.join(variant.tokenizer)}; fetch it too, "
            "or give the path of one"
        )
    parts = {"transformer": transformer, "tokenizer": path}
    override = _override(transformer)
    if override is None or override[1]["family"] != family.name:
        return _released(family, name, parts)
    return _described(override[1], override[0], parts, transformer.stem, variant.defaults)


def _existing(tokenizer: str | Path) -> Path:
    if not os.path.exists(tokenizer):
        raise UsageError(f"tokenizer {str(tokenizer)!r}: does not exist; give the path of its file")
    return Path(tokenizer)


def _beside(transformer: Path) -> list[Path]:
    """Where the other files of a transformer may lie: beside it, or in a plain folder of weights with them."""
    inside = transformer.is_dir() and any((transformer / name).is_file() for name in PLAIN)
    return [*([transformer] if inside else []), transformer.parent]


def _override(transformer: Path) -> tuple[Path, dict[str, Any]] | None:
    """The ``config.json`` beside official files and its folder, if it is of this project: other programs have theirs.

    Raises:
        CheckpointError: if it cannot be read, or is of this project and wrong.
    """
    for folder in _beside(transformer):
        if os.path.exists(path := folder / CONFIG):
            content = read_json(path, CheckpointError, "fetch it again, or take it away")
            if content.get("family") in list(FAMILIES) and "model" in content:
                return folder, read_config(folder)
    return None
