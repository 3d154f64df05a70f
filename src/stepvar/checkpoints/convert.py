"""Rewriting a checkpoint as a model folder of the project's own: safetensors files with a configuration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from stepvar.checkpoints.folders import write_config
from stepvar.checkpoints.loading import meta_modules, open_part
from stepvar.checkpoints.reading import INDEX_SUFFIX, Weights
from stepvar.checkpoints.sources import find_source
from stepvar.errors import OutputError, UsageError
from stepvar.utils.files import atomic_folder

SHARD_BYTES = 4_000_000_000
"""Most bytes of weights in one file; a part that has more is split."""


def convert_model(
    name: str | Path,
    out: str | Path,
    variant: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
    progress: Callable[[int], object] = lambda count: None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes a folder that :func:`~stepvar.checkpoints.load_model` reads, whole or not at all.

    No more than one file of it is in memory at a time.

    Args:
        name, variant, revision, tokenizer: see :func:`~stepvar.checkpoints.load_model`.
        out: the folder; it must not exist.
        dtype: type of the weights; None: as each is stored.
        progress: called with the number of all tensors for each one written.
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
        _, modules = meta_modules(source)
        parts = {part: _stored(open_part(source, part, module), dtype) for part, module in modules.items()}
        size = sum(tensor.nbytes for weights in parts.values() for tensor in weights.meta.values())
        if size > (free := shutil.disk_usage(out.parent).free):
            raise OutputError(f"{out}: needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; choose another place")
        advance = partial(progress, sum(map(len, parts.values())))
        for part, weights in parts.items():
            _write_part(folder, part, weights, shard_bytes, advance)
        model = source.config.to_dict()
        write_config(folder, source.family.name, source.name, model, source.defaults, source.text_encoder)
    return out


def _stored(weights: Weights, dtype: torch.dtype | None) -> Weights:
    """Weights as they will be stored: copies, in a type of their own if there is one."""
    meta = {name: tensor.to(dtype or tensor.dtype) for name, tensor in weights.meta.items()}

    def read(name: str) -> Tensor:
        return weights[name].to(meta[name].dtype, copy=True, memory_format=torch.contiguous_format)

    return Weights(meta, read)


def _write_part(folder: Path, part: str, weights: Weights, shard_bytes: int, advance: Callable[[], object]) -> None:
    """One file, or several with an index."""
    shards = list(_split({name: tensor.nbytes for name, tensor in weights.meta.items()}, shard_bytes))
    places = {}
    for number, names in enumerate(shards, start=1):
        file = f"{part}-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else f"{part}.safetensors"
        stored = {}
        for name in names:
            stored[name], places[name] = weights[name], file
            advance()
        try:
            save_file(stored, folder / file)
        except (SafetensorError, OSError) as error:
            raise OutputError(
                f"{folder / file}: cannot be written ({error}); free space or choose another place"
            ) from error
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
