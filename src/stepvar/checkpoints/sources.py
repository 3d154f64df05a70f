"""From the name or path of a model to its files, configuration and settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from stepvar.checkpoints.hub import fetch
from stepvar.checkpoints.reading import INDEX_SUFFIX, TORCH_SUFFIXES
from stepvar.errors import CheckpointError, UsageError
from stepvar.models.family import Family, Variant
from stepvar.models.registry import FAMILIES, families_of_variant, family_of_repo

EMBEDDED: tuple[str, ...] = ("scenes", "scenes-video")
"""Models that ship inside the package."""

CONFIG = "config.json"
"""What a model is, in a folder of the project's own format: beside it lies a safetensors file, or shards, per part."""

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
    path = Path(name)
    if path.exists():
        return path
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
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; a model folder needs it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); fetch the folder again") from None
    if not isinstance(config, dict) or config.get("family") not in FAMILIES:
        raise CheckpointError(f"{path}: family must be one of {', '.join(map(repr, FAMILIES))}")
    return config


def find_source(
    name: str | Path,
    variant: str | None = None,
    revision: str | None = None,
    tokenizer: str | Path | None = None,
    local_files_only: bool = False,
) -> Source:
    """Finds a model; its arguments and errors are those of :func:`~stepvar.checkpoints.load_model`."""
    family = family_of_repo(str(name))
    if family is not None and not Path(name).exists():
        chosen = family.default if variant is None else variant
        return _on_hub(family, chosen, revision, tokenizer, local_files_only)
    if revision is not None:
        raise UsageError(f"revision {revision!r}: applies to releases on the hub, not to {str(name)!r}; leave it out")
    path = find_model(name)
    if path.is_dir() and not _part_path(path, "transformer").is_file():  # not in the project's own format
        if (found := _released_in(path, variant)) is not None:
            return _local(*found, tokenizer)
        if _named(path) or any(path.glob(f"*{INDEX_SUFFIX}")):
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
    family = family_of_repo(str(name))
    if family is None or Path(name).exists():
        return find_source(name, variant, revision, tokenizer)
    return _released(family, family.default if variant is None else variant, {})


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
    # The small file first: what is wrong shows before gigabytes are fetched.
    if tokenizer is not None:
        path = _existing(tokenizer)
    else:
        path = fetch(family.repos, variant.tokenizer, revision, local_files_only)
    transformer = fetch(family.repos, variant.transformer, revision, local_files_only)
    return _released(family, name, {"transformer": transformer, "tokenizer": path})


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
    chosen = [one for one in found if wanted in (None, one[1])]
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
    known = _named(path) if name is None else [(family, name) for family in families_of_variant(name)]
    if name is not None and not known:
        raise UsageError(f"variant {name!r}: unknown; choose one of {', '.join(own for _, own, _ in _releases())}")
    if known:
        return _local(*known[0], path, tokenizer)
    override = _override(path.parent)
    if override is None:
        raise UsageError(f"{path}: its name does not tell which model it is; give variant, such as 2b or d16")
    family = FAMILIES[override["family"]]
    return _local(family, family.default, path, tokenizer)


def _local(family: Family, name: str, transformer: Path, tokenizer: str | Path | None) -> Source:
    """A release from local files; a ``config.json`` beside them may describe another size."""
    variant, folder = _variant(family, name), transformer.parent
    path = _first(folder, variant.tokenizer) if tokenizer is None else _existing(tokenizer)
    if path is None:
        raise CheckpointError(
            f"{folder}: lacks the tokenizer {' or '.join(variant.tokenizer)}; fetch it too, or give the path of one"
        )
    parts = {"transformer": transformer, "tokenizer": path}
    override = _override(folder)
    if override is None or override["family"] != family.name:
        return _released(family, name, parts)
    return _described(override, folder, parts, transformer.stem, variant.defaults)


def _existing(tokenizer: str | Path) -> Path:
    if not Path(tokenizer).exists():
        raise UsageError(f"tokenizer {str(tokenizer)!r}: does not exist; give the path of its file")
    return Path(tokenizer)


def _override(folder: Path) -> dict[str, Any] | None:
    """The ``config.json`` beside official files, if it is of this project: other programs have theirs."""
    try:
        content = read_config(folder)
    except CheckpointError:
        return None
    return content if "model" in content else None
