"""Writing model folders of the project's own: ``config.json``, and a safetensors file, or shards, per part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from stepvar.checkpoints.int8 import SCALES, pack
from stepvar.checkpoints.loading import meta_modules, open_part
from stepvar.checkpoints.reading import INDEX_SUFFIX, Weights
from stepvar.checkpoints.sources import CONFIG, find_source
from stepvar.errors import OutputError, UsageError
from stepvar.models.family import Part
from stepvar.models.registry import family_of_model
from stepvar.utils.files import atomic_folder, atomic_path, write_text


def write_config(
    folder: Path,
    family: str,
    name: str,
    model: Mapping[str, Any],
    defaults: Mapping[str, Any],
    text_encoder: Mapping[str, Any] | None = None,
) -> None:
    """Writes the ``config.json`` of a model folder, whole or not at all."""
    config: dict[str, Any] = {"family": family, "name": name, "model": dict(model)}
    if text_encoder is not None:
        config["text_encoder"] = dict(text_encoder)
    config["defaults"] = dict(defaults)
    write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def save_model(
    folder: Path,
    name: str,
    model: Any,
    text_encoder: nn.Module | None,
    text_config: Mapping[str, Any] | None,
    defaults: Mapping[str, Any],
    dtype: torch.dtype | None = torch.float16,
) -> None:
    """Writes a folder that :func:`~stepvar.checkpoints.load_model` reads; each file whole or not at all.

    Args:
        model: of any family.
        text_encoder: an encoder of the model's own; None where it has none, or a public one.
        text_config: the arguments that made the encoder.
        defaults: sampling settings to use where the caller gives none.
        dtype: of the weights; None: as each is held.

    Raises:
        UsageError: if the model is of no family, or its weights are quantised.
        OutputError: if the folder cannot be written.
    """
    family = family_of_model(model)
    if (kind := model.precision.quantization) is not None:
        raise UsageError(f"{name}: the weights are stored in {kind}; load the model without quantization to save it")
    parts: dict[str, nn.Module] = {part: getattr(model, part) for part in family.parts}
    if text_encoder is not None:
        parts["text_encoder"] = text_encoder
    folder.mkdir(parents=True, exist_ok=True)
    for part, module in parts.items():
        exact = family.parts.get(part, Part()).exact
        save_weights(folder / f"{part}.safetensors", module.state_dict(), dtype, exact=exact)
    write_config(folder, family.name, name, model.config.to_dict(), defaults, text_config)


def save_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    packed: bool = False,
    exact: Collection[str] = (),
) -> None:
    """Writes tensors to a safetensors file, whole or not at all.

    Args:
        dtype: of the tensors; None: as each is.
        packed: in eight bits, what does not fit them in ``dtype``.
        exact: names of those that stay as they are.
    """
    if packed:
        stored = pack(weights, dtype or torch.float16)
    else:
        held = ((name, tensor.detach()) for name, tensor in weights.items())
        stored = {
            name: tensor.to("cpu", tensor.dtype if name in exact or dtype is None else dtype).contiguous()
            for name, tensor in held
        }
    with atomic_path(path) as temporary:
        save_file(stored, temporary)


def convert_model(
    name: str | Path,
    out: str | Path,
    variant: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
    progress: Callable[[int], object] = lambda count: None,
    shard_bytes: int = 4_000_000_000,
) -> Path:
    """Writes a folder that :func:`~stepvar.checkpoints.load_model` reads, whole or not at all.

    No more than one file of it is in memory at a time.

    Args:
        name, variant, revision, tokenizer: see :func:`~stepvar.checkpoints.load_model`.
        out: the folder; it must not exist.
        dtype: type of the weights; None: as each is stored.
        progress: called with the number of all tensors for each one written.
        shard_bytes: most bytes of weights in one file; a part that has more is split.

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
        parts = {
            part: _stored(open_part(source, part, module), dtype, source.family.parts.get(part, Part()).exact)
            for part, module in modules.items()
        }
        size = sum(tensor.nbytes for weights in parts.values() for tensor in weights.meta.values())
        if size > (free := shutil.disk_usage(out.parent).free):
            raise OutputError(f"{out}: needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; choose another place")
        advance = partial(progress, sum(map(len, parts.values())))
        for part, weights in parts.items():
            _write_part(folder, part, weights, shard_bytes, advance)
        model = source.config.to_dict()
        write_config(folder, source.family.name, source.name, model, source.defaults, source.text_encoder)
    return out


def _stored(weights: Weights, dtype: torch.dtype | None, exact: Collection[str]) -> Weights:
    """Weights as they will be stored: copies, in a type of their own if there is one, else as they lie in files."""
    kept = weights.packed if dtype is None else {}
    meta = {
        name: tensor if name in exact or dtype is None else tensor.to(dtype)
        for name, tensor in weights.meta.items()
        if name not in kept
    }
    for name in kept:
        rows = weights.meta[name]
        meta[name] = torch.empty(rows.shape, dtype=torch.int8, device="meta")
        meta[name + SCALES] = torch.empty(len(rows), dtype=torch.float32, device="meta")

    def read(name: str) -> Tensor:
        packed = name.removesuffix(SCALES)
        tensor = kept[packed]()[packed != name] if packed in kept else weights[name]
        return tensor.to(meta[name].dtype, copy=True, memory_format=torch.contiguous_format)

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
