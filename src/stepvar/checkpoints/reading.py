"""Weight files of every published layout, read tensor by tensor."""

from __future__ import annotations

import json
import pickle
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stepvar.checkpoints.int8 import unpacked
from stepvar.errors import CheckpointError

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
INDEX_SUFFIX = ".index.json"

AVERAGED = "ema_model.bin"
"""Averaged weights in a folder, which stand in for those beside them."""

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""What the one file of a folder is called."""

_NESTING = ("trainer", "gpt_ema_fsdp", "gpt_fsdp", "vae")
_ZIP = b"PK\x03\x04"
_PORTIONS = 40
"""A file is mapped into memory anew after each of this many equal parts of its weights."""


class Weights(Mapping[str, Tensor]):
    """Tensors by name, read when asked for.

    A tensor that :meth:`__getitem__` gives may be a view of the file: copy what is to stay, and let the rest go, so
    that its memory can be given back.

    Args:
        names: in the order in which they are best read.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the inherited one would read the tensor

    @abstractmethod
    def peek(self, name: str) -> Tensor:
        """The tensor for its shape and type only."""


def peek(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor for its shape and type only, without reading its values where they are in a file."""
    return weights.peek(name) if isinstance(weights, Weights) else weights[name]


class MappedFile(Weights):
    """A file whose tensors are views of it.

    What was read of a mapped file counts as memory of the process for as long as it is mapped: after each portion
    the file is mapped anew.
    """

    def __init__(self, path: Path, read: Callable[[Path], Mapping[str, Tensor]]) -> None:
        self._path = path
        self._read = read
        self._tensors = read(path)
        super().__init__(self._tensors)
        self._portion = sum(tensor.nbytes for tensor in self._tensors.values()) // _PORTIONS
        self._touched = 0

    def __getitem__(self, name: str) -> Tensor:
        if self._touched > self._portion:
            self._tensors = {}  # lets go of the old mapping before the new one is made
            self._tensors, self._touched = self._read(self._path), 0
        tensor = self._tensors[name]
        self._touched += tensor.nbytes
        return tensor

    def peek(self, name: str) -> Tensor:
        return self._tensors[name]


class _OpenSafetensors(Mapping[str, Tensor]):
    """The views of an open safetensors file."""

    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(path, framework="pt")
        self._names = dict.fromkeys(self._file.keys())  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the inherited one would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Shards(Weights):
    """Weights spread over several files; one of them is open at a time."""

    def __init__(self, index: Path) -> None:
        self._folder = index.parent
        self._places = _read_index(index)
        for shard in sorted(set(self._places.values())):
            if not (self._folder / shard).is_file():
                raise CheckpointError(f"{self._folder / shard}: missing, though {index.name} lists it; fetch it again")
        self._open: tuple[str, Mapping[str, Tensor]] = ("", {})
        # Shard by shard, so that each is opened once.
        super().__init__(sorted(self._places, key=lambda name: self._places[name]))

    def _shard_of(self, name: str) -> Mapping[str, Tensor]:
        shard = self._places[name]
        if self._open[0] != shard:
            self._open = ("", {})  # lets go of one shard before the next is opened
            self._open = (shard, read_state(self._folder / shard))
        if name not in self._open[1]:
            raise CheckpointError(f"{self._folder / shard}: lacks {name}, which the index places there; fetch it again")
        return self._open[1]

    def __getitem__(self, name: str) -> Tensor:
        return self._shard_of(name)[name]

    def peek(self, name: str) -> Tensor:
        return peek(self._shard_of(name), name)


class MergedWeights(Weights):
    """Weights of one file, and those that it lacks from another.

    Args:
        over, under: what is in both is taken from the first.
    """

    def __init__(self, over: Mapping[str, Tensor], under: Mapping[str, Tensor]) -> None:
        super().__init__([*over, *(name for name in under if name not in over)])
        self._over, self._under = over, under

    def _holder(self, name: str) -> Mapping[str, Tensor]:
        return self._over if name in self._over else self._under

    def __getitem__(self, name: str) -> Tensor:
        return self._holder(name)[name]

    def peek(self, name: str) -> Tensor:
        return peek(self._holder(name), name)


def read_state(path: str | Path, ema: bool = True) -> Mapping[str, Tensor]:
    """The weights of a checkpoint, whatever its layout; nothing in it is ever executed.

    Layouts: ``.safetensors``; ``.pth``, ``.pt`` and ``.bin`` of ``torch.save``, flat or nested as the training
    scripts nest them (``trainer`` and in it ``gpt_ema_fsdp`` or ``gpt_fsdp``; ``vae``); a folder of shards with an
    index, or the index itself; a folder of one such file, and in it, beside the file, averaged weights in their own.

    Args:
        ema: whether averaged weights are preferred where a training checkpoint has both.

    Returns:
        Tensors by name, on the CPU, in the types stored, read as they are asked for. Those of the old format of
        ``torch.save``, which cannot be read in parts, are in memory at once.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, ema)
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; check the path, or fetch it again")
    if path.name.endswith(INDEX_SUFFIX):
        return Shards(path)
    if path.suffix == ".safetensors":
        return MappedFile(path, _read_safetensors)
    if path.suffix not in TORCH_SUFFIXES:
        raise CheckpointError(f"{path}: must end in .safetensors, {', '.join(TORCH_SUFFIXES)} or {INDEX_SUFFIX}")
    if not _is_zip(path):  # the format of torch.save before version 1.6
        return _read_torch(path, ema, mapped=False)
    return MappedFile(path, lambda path: _read_torch(path, ema, mapped=True))


def _read_folder(folder: Path, ema: bool) -> Mapping[str, Tensor]:
    """A folder of shards with their index, or of one file; averaged weights in a file of their own come first."""
    averaged, whole = folder / AVERAGED, [folder / name for name in WHOLE if (folder / name).is_file()]
    if not ema or not averaged.is_file():
        return read_state(whole[0]) if whole else Shards(find_index(folder))
    if not whole and not any(folder.glob(f"*{INDEX_SUFFIX}")):
        return read_state(averaged)
    return MergedWeights(read_state(averaged), _read_folder(folder, ema=False))


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint at once.

    Raises:
        CheckpointError: see :func:`read_state`.
    """
    return dict(read_state(path))


def find_index(folder: Path) -> Path:
    """The index of a folder of shards; that of safetensors files if there are several.

    Raises:
        CheckpointError: if there is none.
    """
    found = sorted(folder.glob(f"*{INDEX_SUFFIX}"), key=lambda path: "safetensors" not in path.name)
    if not found:
        raise CheckpointError(f"{folder}: has no index of shards (*{INDEX_SUFFIX}); fetch the folder again")
    return found[0]


def _read_index(path: Path) -> dict[str, str]:
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        # A shard lies beside its index: a name with a folder in it would lead elsewhere.
        if any(Path(shard).name != shard for shard in places.values()):
            raise ValueError("a shard in another folder")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is no index of shards ({error}); fetch it again") from None
    return dict(places)


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return unpacked(_OpenSafetensors(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error}); fetch it again") from None


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_ZIP)) == _ZIP
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None


def _read_torch(path: Path, ema: bool, mapped: bool) -> Mapping[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else "not a pickle"
        raise CheckpointError(
            f"{path}: damaged, or holds more than weights, and code from a file is never run ({reason}); "
            "fetch it again, or save its state dict alone"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: damaged or truncated ({reason}); fetch it again") from None
    return _state_in(content, path, ema)


def _state_in(content: Any, path: Path, ema: bool) -> Mapping[str, Tensor]:
    """The state dict inside what a file holds, looking into the levels that training scripts put around it."""
    levels = [level for level in _NESTING if ema or level != "gpt_ema_fsdp"]
    while isinstance(content, Mapping):
        inner = [content[level] for level in levels if isinstance(content.get(level), Mapping) and content[level]]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds no weights by name; save its state dict alone")
    other = sorted(str(name) for name, value in content.items() if not _is_weight(name, value))
    if other:
        raise CheckpointError(
            f"{path}: holds more than weights ({', '.join(other[:8])}{', ...' if len(other) > 8 else ''}); "
            "save its state dict alone"
        )
    return content


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
