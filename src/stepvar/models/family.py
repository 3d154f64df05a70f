"""What there is to know of a model family beside its modules: where its weights are, and how their names differ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepvar.core.guidance import relative_scales
from stepvar.models.inputs import InputProcessor
from stepvar.text import Encoder, T5Encoder

Rename = Callable[[Collection[str], Collection[str]], Mapping[str, str]]
"""(names in a file, names of a module) -> name of the module: name in the file, where the two differ."""


@dataclass(frozen=True)
class Part:
    """How the files of one part of a model (its transformer, its tokenizer) relate to the module.

    Attributes:
        ignorable: patterns (``*`` stands for anything) of names that files hold and the module does not need.
        rename: finds a module's names under the other names that some files give them.
        tables: tables of which a file may hold more rows than the module has; the first ones are taken.
        exact: names of weights that are written as they are, whatever type is asked for: rounded, they mean nothing.
    """

    ignorable: tuple[str, ...] = ()
    rename: Rename = lambda stored, own: {}
    tables: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """A released model.

    Attributes:
        config: of the family's configuration class.
        transformer: its file or folder on the hub, and other spellings of that name; empty: the name is not known.
        tokenizer: likewise.
        defaults: sampling settings of its authors.
        repos: by part, the repository that holds nothing but this part; others are in the family's.
    """

    config: Any
    transformer: tuple[str, ...]
    tokenizer: tuple[str, ...]
    defaults: Mapping[str, Any]
    repos: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: in ``config.json`` of model folders.
        repos: its repository on the hub, and other spellings of that name.
        variants: the released models by name.
        tokenizer_repos: likewise of the tokenizer, where that lies in another one; its main branch is taken.
        default: the variant that a repository name alone stands for.
        config: from the ``model`` of a ``config.json`` to a configuration; raises CheckpointError.
        build: from a configuration to a module with the children ``transformer`` and ``tokenizer``; a class, by
            which a model's family is known.
        parts: by child.
        inputs: from a model and its text encoder, if it has one, to what prepares the inputs of a generation.
        video: whether its models generate videos.
        edits: whether they change an image that has to be given.
        guidance_schedule: how one guidance scale is spread over the scales, where the caller does not say.
        text_encoder: name on the hub of the public text encoder that the released models use.
        encoder: from the name or folder of a text model and the configuration to an encoder of prompts.
        released_config: where the files of a release say what it is: from the path of each part to a configuration.
        relative_scales: from a number of scales to the relative scale of each, by which soft codes sharpen; None: its
            codes are sampled.
        filtered_soft_codes: whether soft codes blend only what top-k and top-p keep.
    """

    name: str
    repos: tuple[str, ...]
    variants: Mapping[str, Variant]
    default: str
    config: Callable[[dict[str, Any]], Any]
    build: type[Any]
    parts: Mapping[str, Part]
    inputs: Callable[[Any, Any], InputProcessor]
    text_encoder: str | None = None
    encoder: Callable[[str | Path, Any], Encoder[Any]] = lambda source, _: T5Encoder(source)
    released_config: Callable[[Mapping[str, Path]], Any] | None = None
    relative_scales: Callable[[int], tuple[float | None, ...]] = relative_scales
    filtered_soft_codes: bool = True
    video: bool = False
    edits: bool = False
    guidance_schedule: str = "constant"
    tokenizer_repos: tuple[str, ...] = ()
