"""Rewriting a checkpoint as a model folder of the project's own: safetensors files with a configuration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from stepvar.checkpoints.assign import adapt
from stepvar.checkpoints.folders import write_config
from stepvar.checkpoints.loading import empty_model, empty_text_encoder
from stepvar.checkpoints.reading import INDEX_SUFFIX, peek, read_state
from stepvar.checkpoints.sources import Source, find_source
from stepvar.errors import OutputError, UsageError
from stepvar.models.family import Part
from stepvar.utils.files import atomic_folder

SHARD_BYTES = 4_000_000_000
"""Most bytes of weights in one file; a part that has more is split."""

Progress = Callable[[int], None]
"""Called with the number of all tensors for each one written."""


def convert_model(
    name: str | Path,
    out: str | Path,
    variant: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes a folder that :func:`~stepvar.checkpoints.load_model` reads, whole or not at all.

    No more than one file of it is in memory at a time.

    Args:
        name, variant, revision, tokenizer: see :func:`~stepvar.checkpoints.load_model`.
        out: the folder; it must not exist.
        dtype: type of the weights; None: as each is stored.
        progress: see :data:`Progress`.
        shard_bytes: most bytes of weights in one file.

    Returns:
        The folder.

    Raises:
        UsageError, CheckpointError: as loading does.
        OutputError: if the folder exists or cannot be written, or there is no space for it.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise UsageError(f"dtype={dtype}: must be a type of floating-point numbers, such as torch.float32")
    out = Path(out)
    with atomic_folder(out) as folder:
        source = find_source(name, variant, revision, tokenizer)
        parts = _open_parts(source)
        _check_space(out, sum(_size(peek(part, key), dtype) for part in parts.values() for key in part))
        count = sum(map(len, parts.values()))
        for part, weights in parts.items():
            _write_part(folder, part, weights, dtype, shard_bytes, (lambda: progress(count)) if progress else _nothing)
        model = source.config.to_dict()
        write_config(folder, source.family.name, source.name, model, source.defaults, source.text_encoder)
    return out


def _nothing() -> None:
    pass


def _open_parts(source: Source) -> dict[str, Mapping[str, Tensor]]:
    """The weights of each part under the modules' names, checked against them."""
    model, encoder = empty_model(source), empty_text_encoder(source)
    opened: dict[str, Mapping[str, Tensor]] = {}
    for part, path in source.parts.items():
        rules = source.family.parts.get(part, Part())
        module: Any = encoder if part == "text_encoder" else getattr(model, part)
        opened[part] = adapt(read_state(path), module, rules, str(path))
    return opened


def _size(tensor: Tensor, dtype: torch.dtype | None) -> int:
    """Bytes of a tensor as it will be stored."""
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _check_space(out: Path, size: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if size > free:
        raise OutputError(f"{out}: needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; choose another place")


def _write_part(
    folder: Path,
    part: str,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    shard_bytes: int,
    advance: Callable[[], None],
) -> None:
    """One file, or several with an index."""
    shards = list(_split({name: _size(peek(weights, name), dtype) for name in weights}, shard_bytes))
    places = {}
    for number, names in enumerate(shards, start=1):
        whole = len(shards) == 1
        file = f"{part}.safetensors" if whole else f"{part}-{number:05}-of-{len(shards):05}.safetensors"
        stored = {}
        for name in names:
            tensor = weights[name]
            stored[name] = tensor.to(dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format)
            places[name] = file
            advance()
        _write(folder / file, stored)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": dict(sorted(places.items()))}
        path = folder / f"{part}.safetensors{INDEX_SUFFIX}"
        path.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _split(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Names in their order, in groups of at most ``most`` bytes, or of one tensor that alone has more."""
    group: list[str] = []
    total = 0
    for name, size in sizes.items():
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    yield group


def _write(path: Path, stored: dict[str, Tensor]) -> None:
    try:
        save_file(stored, path)
    except (SafetensorError, OSError) as error:
        raise OutputError(f"{path}: cannot be written ({error}); free space or choose another place") from error
