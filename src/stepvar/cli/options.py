"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from stepvar.core.values import DEVICES, DTYPES, Range, device_of, dtype_of, number
from stepvar.errors import UsageError

if TYPE_CHECKING:
    import torch

    from stepvar.kernels import linear as kernels
    from stepvar.methods import Method
    from stepvar.pipeline import Pipeline


def path_text(text: str) -> str:
    """Parser of paths whose text matters, such as a slash at the end; an empty one is not the folder "."."""
    if not text:  # as of a variable of the shell that is not set
        raise typer.BadParameter("is empty, which is no path; give one, or leave it out")
    return text


def path(text: str) -> Path:
    """Parser of all other paths on the command line."""
    return Path(path_text(text))


OFFLOADS = ("text-encoder", "model", "sequential")

Model = Annotated[
    str, typer.Option("--model", help="An embedded model, a repository on the hub, or a local folder or file.")
]
Variant = Annotated[str | None, typer.Option("--variant", help="Which released size, such as 2b or d30.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.")]
TextEncoder = Annotated[
    str | None,
    typer.Option(
        "--text-encoder",
        help="A text encoder in place of the model's own, and of its kind: a name on the hub, or a folder; for Switti "
        "two, with a comma between them.",
    ),
]
Offload = Annotated[
    str | None,
    typer.Option(
        "--offload",
        help="Keep weights on the CPU except while they are used: text-encoder; model (text encoder, transformer and "
        "decoder in turn); or sequential (the transformer block by block, too).",
    ),
]
BlocksOnDevice = Annotated[
    int | None, typer.Option("--blocks-on-device", help="With sequential offload: blocks that stay during the loop.")
]
CacheDtype = Annotated[
    str | None, typer.Option("--cache-dtype", help="int8 stores keys and values in half of the memory of bfloat16.")
]
Slicing = Annotated[bool, typer.Option("--vae-slicing", help="Decode the images of a batch one by one.")]
Tile = Annotated[int | None, typer.Option("--tile", help="Decode by tiles of this many latent cells.")]
Device = Annotated[str, typer.Option("--device", help=f"One of {', '.join(DEVICES)}.")]
Dtype = Annotated[str, typer.Option("--dtype", help=f"One of {', '.join(DTYPES)}.")]
Quantization = Annotated[
    str | None,
    typer.Option("--quantization", help="Store the weights of the blocks in int8, or in fp8 (Hopper and newer GPUs)."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Image i uses SEED + i; without it one is chosen at random.")]
Runs = Annotated[int, typer.Option("--runs", help="Rounds that are timed, after those to warm up.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]
Keep = Annotated[str | None, typer.Option(help="Share of tokens kept at the late scales; or one per scale, 0.7,0.4.")]
Last = Annotated[str | None, typer.Option(help="How many scales from the end are pruned.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any setting of the method; of one among several, drop-guidance.last=2."
    ),
]
GuidanceScale = Annotated[
    str | None,
    typer.Option(help="How closely to follow the prompt; one number, or one per scale; 1 turns guidance off."),
]
Temperature = Annotated[str | None, typer.Option(help="Lower is more decided; one number, or one per scale.")]
AspectRatio = Annotated[str | None, typer.Option(help="Width to height, such as 3:2; default: the model's own.")]
Resolution = Annotated[str | None, typer.Option(help="Name of a schedule, such as 0.25M.")]
Seconds = Annotated[float | None, typer.Option(help="Video models: length of the video; 0 generates an image.")]
Speedup = Annotated[
    float | None,
    typer.Option(
        "--speedup",
        help="How many times as fast as dense, in place of --keep and --last; with --method auto by the best method; "
        "see 'calibrate'.",
    ),
]
SpeedupOf = Annotated[
    str | None,
    typer.Option("--speedup-of", help="What --speedup applies to: the whole image (default), or the scales alone."),
]


def load_pipeline(
    model: str,
    device: str,
    dtype: str,
    variant: str | None = None,
    revision: str | None = None,
    text_encoder: str | None = None,
    memory: Memory | None = None,
    quantization: str | None = None,
) -> Pipeline:
    """The model on its device, in its precision; a wrong name of either fails before anything is read."""
    place, precision, memory = parse_device(device), parse_dtype(dtype), memory or Memory()
    kind = parse_quantization(quantization, place)
    from stepvar.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(
        model,
        variant,
        revision=revision,
        text_encoder="auto" if text_encoder is None else text_encoder,
        device="cpu" if memory.offload in ("model", "sequential") else place,  # it may not fit there as a whole
        dtype=precision,
        quantization=kind,
    )
    memory.apply(pipe, place)
    return pipe


@dataclass(frozen=True)
class Memory:
    """The options that save memory; see those of the same names.

    Raises:
        UsageError: for a value that is none.
    """

    offload: Offload = None
    blocks_on_device: BlocksOnDevice = None
    cache_dtype: CacheDtype = None
    tile: Tile = None
    vae_slicing: Slicing = False

    def __post_init__(self) -> None:
        if self.offload not in (None, *OFFLOADS):
            raise UsageError(f"offload={self.offload!r}: must be one of {', '.join(OFFLOADS)}")
        if self.blocks_on_device is not None and self.offload != "sequential":
            raise UsageError(f"blocks-on-device={self.blocks_on_device}: goes with --offload sequential only")
        if self.cache_dtype not in (None, "int8"):
            raise UsageError(f"cache-dtype={self.cache_dtype!r}: must be int8, or left out")

    def describe(self) -> list[str]:
        """What differs from the usual, in words."""
        words = []
        if self.offload is not None:
            staying = f" ({self.blocks_on_device} blocks stay)" if self.blocks_on_device else ""
            words.append(f"{self.offload} offload{staying}")
        if self.cache_dtype is not None:
            words.append(f"cache {self.cache_dtype}")
        return words

    def apply(self, pipe: Pipeline, device: str | torch.device) -> None:
        """Sets up a pipeline.

        Args:
            device: where it computes.
        """
        pipe.model.set_cache_dtype(self.cache_dtype)
        if self.tile is not None:
            pipe.enable_vae_tiling(self.tile)
        if self.vae_slicing:
            pipe.enable_vae_slicing()
        if self.offload == "text-encoder":
            pipe.enable_text_encoder_offload(device)
        if self.offload == "model":
            pipe.enable_model_cpu_offload(device)
        if self.offload == "sequential":
            pipe.enable_sequential_cpu_offload(device, self.blocks_on_device or 0)


def parse_device(name: str) -> torch.device:
    """A device of this machine; a UsageError if it has none of this name."""
    return device_of("device", name)


def parse_dtype(name: str) -> torch.dtype:
    """A precision to compute in, by one of its names; a UsageError for another one."""
    return dtype_of("dtype", name)


def check_counts(**given: tuple[int | float | None, Range]) -> None:
    """Holds numbers of the command line to their bounds, before anything is loaded; None was not given.

    Raises:
        UsageError: naming the first that is out of them.
    """
    for name, (value, bounds) in given.items():
        if value is not None:
            number(name.replace("_", "-"), value, bounds)


def parse_quantization(name: str | None, device: torch.device | None = None) -> kernels.Quantization | None:
    """How weights are to be stored; a UsageError if there is no such way, or not on this device."""
    if name is None:
        return None
    from stepvar.kernels.linear import QUANTIZATIONS, check_quantization

    check_quantization(name, device)
    return next(kind for kind in QUANTIZATIONS if kind == name)


def parse_method(name: str, given: dict[str, str | None], settings: Sequence[str]) -> Method:
    """A method from its name and the texts of its settings.

    Args:
        name: of one method or of several, as for :func:`~stepvar.methods.make_method`; settings may follow behind
            spaces: ``"stepvar keep=0.4"``. The module of a class may be a file in the working directory.
        given: settings that have an option of their own; None where it was not used.
        settings: ``name=value`` of any others.

    Raises:
        UsageError: for an unknown method or setting, or a value that is none.
    """
    from stepvar.methods.registry import assign_settings, build, parse_names

    texts = {key: text for key, text in given.items() if text is not None}
    name, *inside = name.split() or [name]
    for setting in (*inside, *settings):
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"set {setting!r}: give name=value, such as --set last=2")
        owner, dot, key = key.strip().rpartition(".")
        whole = f"{owner}{dot}{key.replace('-', '_')}"
        if texts.get(whole, text.strip()) != text.strip():
            raise UsageError(f"set {setting!r}: {whole} is {texts[whole]!r} already; give one of the two")
        texts[whole] = text.strip()
    find_own_classes(name)
    parts = parse_names(name)
    owned = assign_settings(parts, texts)
    for part, own in zip(parts, owned, strict=True):
        kinds = get_type_hints(part.method)
        own.update({key: parse_value(key, text, kinds[key]) for key, text in own.items()})
    return build(parts, owned)


def find_own_classes(name: str) -> None:
    """Lets a name such as ``my_module:Class`` mean a file in the working directory."""
    from stepvar.methods.registry import is_class_path

    if any(map(is_class_path, name.split("+"))) and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def parse_value(name: str, text: str, kind: Any) -> Any:
    """A text as a value of a type annotation: numbers, none, words, and lists like ``0.7,0.4``; or a UsageError."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    kinds = tuple(one for one in kinds if not is_dataclass(one))  # objects have names beside them
    for one in kinds:
        try:
            return _convert(text, one)
        except (LookupError, ValueError):
            continue
    raise UsageError(f"{name}={text!r}: must be {' or '.join(_describe(one) for one in kinds)}")


def parse_numbers(name: str, text: str | None) -> float | Sequence[float] | None:
    """One number, or one per scale."""
    return None if text is None else parse_value(name, text, float | Sequence[float])


def _convert(text: str, kind: Any) -> Any:
    if kind is type(None):
        return {"none": None}[text.lower()]
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    if get_origin(kind) is Literal:
        return {str(word): word for word in get_args(kind)}[text]
    if get_origin(kind) is Sequence:
        return tuple(_convert(part.strip(), get_args(kind)[0]) for part in text.split(","))
    return kind(text)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is Sequence:
        return "a list such as 0.7,0.4"
    names = {type(None): "none", bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(kind, str(kind))
