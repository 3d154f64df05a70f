"""Weight files of every published layout, read tensor by tensor."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stepvar.checkpoints.int8 import SCALES, unpack
from stepvar.checkpoints.pickles import DEEPEST, depth_of_tuples
from stepvar.errors import CheckpointError, printable
from stepvar.utils.reading import check_regular, fits, read_json

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
INDEX_SUFFIX = ".index.json"

PLAIN = ("model.safetensors", "pytorch_model.bin", "ema_model.bin")
"""Files of a folder that holds one model, as ``save_pretrained`` of other libraries writes it."""

_NESTING = ("trainer", "gpt_ema_fsdp", "gpt_fsdp", "var_wo_ddp", "vae")
"""Levels that training scripts put around weights, those that are preferred first."""

_DEEPEST = 4
_PICKLES = 5
"""A file of the old format of ``torch.save`` begins with so many pickles; numbers follow."""
_PORTIONS = 40
"""A file is mapped into memory again after each of this many equal parts of its weights."""


class Weights(Mapping[str, Tensor]):
    """Tensors by name, read when asked for.

    What is read may be a view of the file: copy what is to stay, and let the rest go, so that its memory can be
    given back.

    Args:
        meta: a tensor of the same shape and type on the meta device, by name, in the order in which to read best.
        read: gives the tensor of a name.
        packed: those that are stored in eight bits, by name: the matrix and the factors of its rows.
    """

    def __init__(
        self,
        meta: Mapping[str, Tensor],
        read: Callable[[str], Tensor],
        packed: Mapping[str, Callable[[], tuple[Tensor, Tensor]]] | None = None,
    ) -> None:
        self.meta = meta
        self._read = read
        self.packed = packed or {}

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.meta)

    def __len__(self) -> int:
        return len(self.meta)

    def __contains__(self, name: object) -> bool:
        return name in self.meta  # the inherited one would read the tensor


def read_state(path: str | Path) -> Weights:
    """The weights of a checkpoint, whatever its layout; nothing in it is ever executed.

    Layouts: ``.safetensors``; ``.pth``, ``.pt`` and ``.bin`` of ``torch.save``, flat or nested as the training
    scripts nest them (``trainer`` and in it ``gpt_ema_fsdp``, which is preferred, or ``gpt_fsdp``; ``vae``); a folder
    of shards with an index, or the index itself; a folder of one such file, and in it, beside the file, averaged
    weights in their own.

    Returns:
        Tensors by name, on the CPU, in the types stored. Those of the old format of ``torch.save``, which cannot be
        read in parts, are in memory at once.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise CheckpointError(f"{path}: missing; check the path, or fetch it again")
    check_regular(path, error=CheckpointError)
    if path.name.endswith(INDEX_SUFFIX):
        return _shards(path)
    if path.suffix == ".safetensors":
        return _unpacked(_mapped(path, _read_safetensors))
    if path.suffix not in TORCH_SUFFIXES:
        raise CheckpointError(f"{path}: must end in .safetensors, {', '.join(TORCH_SUFFIXES)} or {INDEX_SUFFIX}")
    if _is_zip(path):
        _check_archive(path)
        return _mapped(path, lambda path: _read_torch(path, mapped=True))
    content = _read_torch(path, mapped=False)  # the format of torch.save before version 1.6
    return Weights(_meta(content), content.__getitem__)


def _meta(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}


def _mapped(path: Path, load: Callable[[Path], Mapping[str, Tensor]]) -> Weights:
    """A file whose tensors ``load`` gives as views of it.

    What was read of a mapped file counts as memory of the process for as long as it is mapped: after each portion
    the file is mapped again.
    """
    tensors = load(path)
    portion, touched = sum(tensor.nbytes for tensor in tensors.values()) // _PORTIONS, 0

    def read(name: str) -> Tensor:
        nonlocal tensors, touched
        if touched > portion:
            tensors = {}  # lets go of the old mapping before the new one is made
            tensors, touched = load(path), 0
        touched += tensors[name].nbytes
        return tensors[name]

    return Weights(_meta(tensors), read)


def _unpacked(stored: Weights) -> Weights:
    """Matrices that are stored in eight bits as float32, all else as it is; see :mod:`stepvar.checkpoints.int8`."""
    scales = [name for name in stored if name.endswith(SCALES)]
    packed = [name.removesuffix(SCALES) for name in scales]
    for name in packed:
        matrix, rows = stored.meta.get(name), stored.meta[name + SCALES]
        if (
            matrix is None
            or matrix.dtype != torch.int8
            or rows.shape != matrix.shape[:1]
            or not rows.is_floating_point()
        ):
            raise CheckpointError(
                f"{name + SCALES} {tuple(rows.shape)}: are no factors of the rows of an eight-bit matrix {name}; "
                "write the file again"
            )

    def pair(name: str) -> tuple[Tensor, Tensor]:
        return stored[name], stored[name + SCALES]

    def read(name: str) -> Tensor:
        return unpack(*pair(name)) if name in pairs else stored[name]

    pairs = {name: partial(pair, name) for name in packed}
    meta = {name: tensor for name, tensor in stored.meta.items() if not name.endswith(SCALES)}
    return Weights(meta | {name: meta[name].float() for name in packed}, read, pairs)


def _folder(folder: Path) -> Weights:
    """One file, or shards with their index; of averaged weights in a file of their own all that they hold."""
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"), key=lambda path: "safetensors" not in path.name)
    model, torch_model, averaged_model = PLAIN
    names = (folder / model, folder / torch_model, *indices)
    averaged, base = folder / averaged_model, [path for path in names if path.is_file()][:1]
    found = [read_state(path) for path in ([averaged, *base] if averaged.is_file() else base)]
    if not found:
        raise CheckpointError(f"{folder}: has no index of shards (*{INDEX_SUFFIX}); fetch the folder again")
    holders: dict[str, Weights] = {}
    for weights in found:
        for name in weights:
            holders.setdefault(name, weights)
    return Weights({name: held.meta[name] for name, held in holders.items()}, lambda name: holders[name][name])


def _shards(index: Path) -> Weights:
    """Weights spread over several files; one of them is open at a time."""
    folder, places = index.parent, _read_index(index)
    meta: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder / shard}: missing, though {index.name} lists it; fetch it again")
        held = read_state(folder / shard).meta
        for name in (name for name, place in places.items() if place == shard):
            if name not in held:
                raise CheckpointError(f"{folder / shard}: lacks {name}, which the index places there; fetch it again")
            meta[name] = held[name]
    current: dict[str, Weights] = {}

    def read(name: str) -> Tensor:
        shard = places[name]
        if shard not in current:
            current.clear()  # lets go of one shard before the next is opened
            current[shard] = read_state(folder / shard)
        return current[shard][name]

    return Weights(meta, read)


def _read_index(path: Path) -> dict[str, str]:
    places = read_json(path, CheckpointError, "fetch it again").get("weight_map")
    if not isinstance(places, dict) or not places or not all(fits(shard, str) for shard in places.values()):
        raise CheckpointError(f"{path}: is no index of shards (weight_map gives no file by name); fetch it again")
    for shard in set(places.values()):
        # A shard lies beside its index, and is none itself: a name with a folder in it would lead elsewhere.
        if Path(shard).name != shard or not shard.endswith((".safetensors", *TORCH_SUFFIXES)):
            raise CheckpointError(f"{path}: {shard!r} is no shard in the same folder; fetch it again")
    return places


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    _check_head(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, *_ODD) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({_reason(error, path)}); fetch it again") from None


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None


def _check_archive(path: Path) -> None:
    """Refuses what ``torch.save`` never writes: members that are packed, and would grow without limit when read."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            deep = 0
            for member in members:
                if member.filename.endswith("data.pkl") and member.compress_type == zipfile.ZIP_STORED:
                    with archive.open(member) as file:
                        deep = max(deep, depth_of_tuples(file))
    except (zipfile.BadZipFile, OSError, NotImplementedError, OverflowError, *_ODD) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({_reason(error, path)}); fetch it again") from None
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        named = printable(packed[0], 80) if packed else "its members overlap"
        raise CheckpointError(f"{path}: is a packed archive ({named}), which torch.save never writes; fetch it again")
    _check_depth(deep, path)


def _check_depth(depth: int, path: Path) -> None:
    if depth > DEEPEST:
        raise CheckpointError(f"{path}: holds tuples in tuples, {depth} deep, which no checkpoint does; fetch it again")


def _read_torch(path: Path, mapped: bool) -> Mapping[str, Tensor]:
    if not mapped:
        _check_head(path)
        try:
            with path.open("rb") as file:
                for _ in range(_PICKLES):
                    _check_depth(depth_of_tuples(file), path)
        except (ValueError, IndexError, OSError):
            pass  # torch.load says better what is wrong
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: damaged, or holds more than weights, and code from a file is never run "
            f"({_reason(error, path)}); fetch it again, or save its state dict alone"
        ) from None
    except (OSError, EOFError, *_ODD) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({_reason(error, path)}); fetch it again") from None
    return _state_in(content, path)


_ODD = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, MemoryError)
"""What damaged files make the readers of other libraries raise."""


def _reason(error: BaseException, path: Path) -> str:
    """What another library says of a file, in a few words and without advice that does not hold here."""
    text = str(error)
    if blocked := re.search(r"GLOBAL ([\w.]+)|(?:class|global|function) ([\w.]*\.[\w.]+)", text):
        return f"it needs {blocked[1] or blocked[2]}"
    line = printable((text.splitlines() or [""])[0].replace(str(path), path.name), 160).rstrip(". ")
    advice = "weights_only" in line or "weights only" in line.casefold() or not line
    return type(error).__name__ if advice else line


def _check_head(path: Path) -> None:
    """Tells what is often found in place of a checkpoint."""
    with path.open("rb") as file:
        head = file.read(64).lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: is a pointer of Git LFS, not the file; run 'git lfs pull', or fetch it again")
    if head.startswith(b"<"):
        raise CheckpointError(f"{path}: is a web page, not a checkpoint; fetch the file itself")


def _state_in(content: Any, path: Path) -> Mapping[str, Tensor]:
    """The state dict inside what a file holds, looking into the levels that training scripts put around it."""
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            break
        inner = [content[level] for level in _NESTING if isinstance(content.get(level), Mapping) and content[level]]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds no weights by name; save its state dict alone")
    other = sorted(printable(str(name), 60) for name, value in content.items() if not _is_weight(name, value))
    if other:
        raise CheckpointError(
            f"{path}: holds more than weights ({', '.join(other[:8])}{', ...' if len(other) > 8 else ''}); "
            "save its state dict alone"
        )
    return content


def _is_weight(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_nested
        and not value.is_complex()
    )
