"""Goldens: pairs ``NAME.json`` and ``NAME.safetensors`` of what an original implementation computed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stepvar.checkpoints import fill_module
from stepvar.conformance.weights import EXCLUDED, INFINITY_RULE, WeightRule
from stepvar.errors import CheckpointError, UsageError
from stepvar.utils.reading import parse_json, read_text

PACKAGED = Path(__file__).with_name("goldens")
"""The goldens that come with the package."""

Record = dict[str, Tensor]
"""What was computed, by the names that goldens use."""

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Golden:
    """One golden, and where and in what precision it is run.

    Attributes:
        path: of the JSON file.
        about: what the JSON file says.
        named: whether the user named this file, rather than a folder that holds it.
        tensors: what was computed, on the CPU; empty until :func:`read_tensors`.
        device, dtype: to run on and in.
    """

    path: Path
    about: dict[str, Any]
    named: bool
    tensors: dict[str, Tensor] = field(default_factory=dict)
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the run; goldens of single modules have them at the top level."""
        config = self.about.get("config", self.about)
        return config if isinstance(config, dict) else {}

    @property
    def exact(self) -> bool:
        """Whether whole numbers have to agree: in low precision a bit whose logits are close may flip."""
        return self.dtype == torch.float32

    @property
    def soft(self) -> bool:
        """Whether it adds soft codes: it stores them, or what they were sampled with."""
        return any(name.endswith("gumbel_exponential") or name.startswith("soft_") for name in self.tensors)

    def setting(self, name: str) -> Any:
        """One setting of the run, from its configuration or from beside it; a CheckpointError if there is none."""
        for settings in (self.config, self.about):
            if name in settings:
                return settings[name]
        raise CheckpointError(f"{self.path}: lacks the setting {name!r}; copy the golden again")

    def constant(self, method: str, name: str) -> Any:
        """One constant of the method that the golden ran; a CheckpointError if there is none."""
        constants = self.setting(method)
        if not isinstance(constants, dict) or name not in constants:
            raise CheckpointError(f"{self.path}: lacks the setting {method}.{name}; copy the golden again")
        return constants[name]

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the device; a CheckpointError if there is none."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: lacks the tensor {name!r}; copy the golden again")
        return self.tensors[name].to(self.device)

    def resume(self, name: str, computed: Tensor) -> Tensor:
        """What the next stage starts from: the tensor computed, in low precision the one that the golden stores."""
        return computed if self.exact or name not in self.tensors else self.tensor(name)

    def generator(self) -> torch.Generator:
        """The random numbers that the original sampled with."""
        return torch.Generator().manual_seed(self.config.get("g_seed") or self.about.get("g_seed") or 0)


@dataclass(frozen=True)
class Kind:
    """A kind of golden, recognised by what its files hold.

    Attributes:
        name: for reports; also what ``config.kind`` says, where a golden states it.
        settings, stores: names of settings and of tensors by which it is told from other kinds.
        run: computes what the golden stores, by name.
        inputs: pattern of the names of the tensors that are inputs, not computed.
        reduced: what is compared in low precision.
        early: pattern of the names of the tensors that are compared in low precision.
    """

    name: str
    run: Callable[[Golden], Record]
    inputs: str
    reduced: str
    settings: frozenset[str] = frozenset()
    stores: frozenset[str] = frozenset()
    early: str = r".*"

    def fits(self, golden: Golden) -> bool:
        named = golden.config.get("kind", self.name) == self.name
        return named and self.settings <= golden.config.keys() and self.stores <= golden.about["tensors"].keys()


def find_goldens(paths: Iterable[str | Path]) -> list[Golden]:
    """The goldens named, and those in the folders named and below, without their tensors.

    Raises:
        CheckpointError: if a file is missing, unreadable or not a golden.
        UsageError: if a folder holds no golden.
    """
    found: list[Golden] = []
    for path in map(Path, paths):
        folder = path.is_dir()
        file = path.with_suffix(".json") if path.suffix == ".safetensors" else path
        read = [Golden(one, _read(one, _load_json), not folder) for one in (path.rglob("*.json") if folder else [file])]
        goldens = [one for one in read if isinstance(one.about, dict) and isinstance(one.about.get("tensors"), dict)]
        if folder and not goldens:
            raise UsageError(f"{path}: holds no goldens; name a folder of NAME.json and NAME.safetensors pairs")
        if not goldens:
            raise CheckpointError(f"{file}: is no golden (it lists no tensors); name one, or a folder of them")
        found += sorted(goldens, key=lambda golden: golden.path)
    return found


def _load_json(path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(path)
    return parse_json(read_text(path, CheckpointError))


def _read(path: Path, load: Callable[[Path], Any]) -> Any:
    try:
        return load(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; a golden is a pair of files, check the path or copy both") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error}); copy the golden again") from None


def read_tensors(golden: Golden) -> Golden:
    """The golden with its tensors.

    Raises:
        CheckpointError: if their file is missing or damaged, or lacks a tensor that the JSON file lists.
    """
    path = golden.path.with_suffix(".safetensors")
    tensors = _read(path, load_file)
    for name, entry in golden.about["tensors"].items():
        shape = _listed_shape(entry)
        if name not in tensors or list(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{path}: tensor {name} of shape {shape} is missing; the pair does not belong together, "
                "copy both files again"
            )
    return replace(golden, tensors=tensors)


def _listed_shape(entry: Any) -> Any:
    """The shape in an entry of the list of tensors: ``[dtype, shape]`` or ``{"dtype": ..., "shape": ...}``."""
    if isinstance(entry, dict):
        return entry.get("shape")
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def build(
    golden: Golden,
    make: Callable[[], Model],
    lists: Mapping[str, str],
    rule: WeightRule = INFINITY_RULE,
    ignorable: Collection[str] = (),
) -> Model:
    """A model with the weights of a golden, made by the rule, in float32 on the golden's device.

    Args:
        make: builds the model.
        lists: by part of the model, the entry of the golden's files that lists the weights' names and shapes.
        ignorable: patterns of the names of weights that the original has and nothing reads.

    Raises:
        CheckpointError: if a part has other weights than the golden lists.
    """
    with torch.device("meta"):
        model = make()
    for part, entry in lists.items():
        module = model.get_submodule(part)
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        if listed := _listed_weights(golden, entry):
            # Some lists leave the constants out.
            shapes = {name: shape for name, shape in shapes.items() if name.endswith(EXCLUDED)} | listed
        weights = {name: rule(name, shape, golden.setting("seed")) for name, shape in shapes.items()}
        constants = [name for name in weights if name.endswith(EXCLUDED)]
        fill_module(module, weights, f"{golden.path}: {part or 'tokenizer'}", [*ignorable, *constants])
    return model.to(golden.device).eval().requires_grad_(False)


def _listed_weights(golden: Golden, entry: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original's weights: ``{name: [shape, ...]}``, or ``[[name, shape]]`` in its own file."""
    if entry in golden.about:
        return {name: tuple(shape) for name, (shape, *_) in golden.about[entry].items()}
    path = golden.path.parent / Path(str(golden.about.get("param_list"))).name
    if not path.is_file():
        return {}
    return {name: tuple(shape) for name, shape in _read(path, _load_json)[entry]}
