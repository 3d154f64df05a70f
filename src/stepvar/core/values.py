"""Values that users give, checked and converted: the one place for Python, the command line and whatever else calls.

What a value may be is said by a type annotation, with bounds in :class:`Range`. :func:`check_fields` holds a dataclass
to those of its fields, so the settings of a method and the arguments of a call are checked alike. A number may be one
of Python, of numpy, or a tensor of one value; a bool is no number; NaN and infinity are none either.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from numbers import Integral, Real
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union, cast, get_args, get_origin

from stepvar.errors import UnknownArgument, UsageError

if TYPE_CHECKING:
    import torch

MOST_VALUES = 10_000
"""Entries of a list of numbers, and images of one call: more are refused before anything is built of them."""

LONGEST_SHOWN = 60
"""Characters of a value that an error shows."""

DTYPES: dict[str, tuple[str, ...]] = {
    "float32": ("fp32", "float", "single"),
    "bfloat16": ("bf16",),
    "float16": ("fp16", "half"),
}
"""The number formats that models run in, and other names that they go by."""

DEVICES = ("cpu", "cuda", "mps", "auto")

DEFAULT_MODEL = "wardrobe"
"""The embedded model that is taken where none is named."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number, in an annotation: ``Annotated[int, Range(1, 64)]``.

    Attributes:
        least, most: inclusive bounds.
        above, below: exclusive bounds.
        note: what goes behind the bounds in an error, such as what a bound means.
        none: what None stands for, where it is allowed: ``"to choose by the schedule"``.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    note: str = ""
    none: str = ""

    def holds(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            said = f"from {_exact(self.least)} to {_exact(self.most)}"
        else:
            lower = [f"of at least {_exact(self.least)}"] if self.least is not None else []
            lower += [f"above {_exact(self.above)}"] if self.above is not None else []
            upper = [f"at most {_exact(self.most)}"] if self.most is not None else []
            upper += [f"below {_exact(self.below)}"] if self.below is not None else []
            said = " and ".join(lower + upper)
        return f"{said} ({self.note})" if self.note else said


def _exact(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


ANY = Range()

COUNT = Range(1, MOST_VALUES)
"""Of images, runs and whatever else takes its time or its memory one by one."""


def shown(value: Any) -> str:
    """A value as an error shows it: in one line, and cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a number of thousands of digits, or an object that cannot be shown
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the known word most like one, or nothing."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"; did you mean {near[0]!r}?" if near else ""


def as_plain(value: Any) -> Any:
    """A value of Python in place of a scalar of numpy, or of an array or tensor without dimensions."""
    if type(value) in (bool, int, float, str) or getattr(value, "ndim", None) != 0:
        return value
    try:
        return value.item()
    except (AttributeError, RuntimeError, TypeError, ValueError):  # such as a tensor of the meta device
        return value


def as_list(value: Any) -> list[Any] | None:
    """The entries of a list, a tuple, a range, or an array or tensor of one dimension; None if it is none of these."""
    if isinstance(value, (str, bytes, bytearray, Mapping)):
        return None
    if getattr(value, "ndim", 1) != 1 or not (isinstance(value, Sequence) or hasattr(value, "tolist")):
        return None
    if len(value) > MOST_VALUES:
        raise UsageError(f"{shown(value)}: has {len(value)} entries; give at most {MOST_VALUES}")
    if isinstance(value, Sequence):
        return [as_plain(one) for one in value]
    try:
        return list(value.tolist())
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None


def whole_number(name: str, value: Any, bounds: Range = ANY) -> int:
    """A whole number within bounds.

    Raises:
        UsageError: for anything else.
    """
    number: int = checked(name, value, Annotated[int, bounds])
    return number


def number(name: str, value: Any, bounds: Range = ANY) -> float:
    """A finite number within bounds; what is whole stays whole.

    Raises:
        UsageError: for anything else.
    """
    found: float = checked(name, value, Annotated[float, bounds])
    return found


def flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        UsageError: for anything else, also 0 and 1.
    """
    found: bool = checked(name, value, bool)
    return found


def text(name: str, value: Any) -> str:
    """A text that is not empty: an empty one is a mistake and not the same as none.

    Raises:
        UsageError: for anything else.
    """
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{name}={shown(value)}: must be a text that is not empty, or left out")
    return value


def checked(name: str, value: Any, kind: Any, bounds: Range = ANY) -> Any:
    """A value as its annotation says that it must be.

    Numbers of numpy and torch become those of Python, lists and arrays become tuples. What an annotation says beyond
    numbers, bools, texts, words, lists and dataclasses is not checked.

    Args:
        name: of the argument, for errors.
        kind: a type annotation; numbers in it are bounded by a :class:`Range` in ``Annotated``.

    Raises:
        UsageError: naming the value and what it must be.
    """
    options, bounds = _options(kind, bounds)
    plain = as_plain(value)
    for option in options:
        if _is_of(plain, option):
            if option not in (int, float):
                return plain
            found = _as_number(plain)
            if (option is int or _is_finite(found)) and bounds.holds(found):
                return found
            break
        if get_origin(option) is Sequence and (entries := as_list(plain)) is not None:
            return tuple(checked(name, one, get_args(option)[0], bounds) for one in entries)
        if not _known(option):
            return value
    numeric = isinstance(plain, Real) and not isinstance(plain, bool)
    single = [one for one in options if get_origin(one) is not Sequence]  # what a number could have been
    raise UsageError(f"{name}={shown(value)}: must be {_described((numeric and single) or options, bounds)}")


def check_fields(instance: Any) -> None:
    """Holds the fields of a frozen dataclass to their annotations, and converts them; for its ``__post_init__``.

    Raises:
        UsageError: naming the first field that cannot be used.
    """
    for name, kind in field_kinds(cast(Hashable, type(instance))).items():
        value = getattr(instance, name)
        converted = checked(name, value, kind)
        if converted is not value:
            object.__setattr__(instance, name, converted)


@cache
def field_kinds(owner: Hashable) -> dict[str, Any]:
    """The annotations of the fields of a dataclass, by name; those that cannot be evaluated are left out."""
    found: dict[str, Any] = {}
    assert isinstance(owner, type)
    for base in reversed(owner.__mro__):
        try:
            found |= inspect.get_annotations(base, eval_str=True)
        except Exception:  # a class inside a function may name what no module knows
            continue
    own = [field.name for field in fields(owner)]
    return {name: found[name] for name in own if name in found and get_origin(found[name]) is not ClassVar}


def describe_kind(kind: Any) -> str:
    """What a value of an annotation must be, in words."""
    return _described(*_options(kind, ANY))


def _options(kind: Any, bounds: Range) -> tuple[tuple[Any, ...], Range]:
    """The alternatives of an annotation, and the bounds of its numbers."""
    found: list[Any] = []
    if get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        bounds = next((one for one in more if isinstance(one, Range)), bounds)
    for one in get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,):
        nested = get_origin(one) in (Annotated, Union, types.UnionType)
        inner, bounds = _options(one, bounds) if nested else ((one,), bounds)
        found += inner
    return tuple(found), bounds


def _known(option: Any) -> bool:
    """Whether values of an alternative can be told from others."""
    return option is None or get_origin(option) in (Literal, Sequence) or _is_class(option)


def _is_class(option: Any) -> bool:
    return inspect.isclass(option) and option is not Any and not get_args(option)


def _is_of(value: Any, option: Any) -> bool:
    if option in (type(None), None):
        return value is None
    if get_origin(option) is Literal:
        return isinstance(value, str) and value in get_args(option)
    if option is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if option is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    return _is_class(option) and isinstance(value, option)


def _as_number(value: Any) -> int | float:
    """A real number of any library as one of Python."""
    if type(value) in (int, float):
        return value
    try:
        return int(value) if isinstance(value, Integral) else float(value)
    except OverflowError:  # a fraction beyond all floating-point numbers
        return math.inf


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floating-point ones
        return False


def _described(options: Sequence[Any], bounds: Range) -> str:
    """The alternatives of an annotation in words."""
    said = []
    for option in options:
        if option in (type(None), None):
            said.append(f"None {bounds.none}".strip())
        elif get_origin(option) is Literal:
            said.append(f"one of {', '.join(map(str, get_args(option)))}")
        elif get_origin(option) is Sequence:
            inner = describe_kind(get_args(option)[0])
            said.append("a list of such numbers" if inner in ("a number", "a whole number") else f"a list: {inner}")
        elif option in (int, float):
            said.append(f"{'a whole number' if option is int else 'a number'} {bounds}".strip())
        elif option is bool:
            said.append("True or False")
        elif option is str:
            said.append("a text")
        else:
            said.append(f"a {getattr(option, '__name__', option)}")
    separator = ", or " if any("," in one or " and " in one or " to " in one for one in said) else " or "
    return separator.join(dict.fromkeys(said))


# Names of number formats and devices.


def dtype_of(name: str, value: Any) -> torch.dtype:
    """The number format that a value names: ``torch.bfloat16``, ``"bfloat16"``, ``"bf16"``, ``"torch.bfloat16"``.

    Raises:
        UsageError: for anything else, or a format that models do not run in.
    """
    import torch

    word = str(value).removeprefix("torch.").lower() if isinstance(value, (str, torch.dtype)) else ""
    for known, others in DTYPES.items():
        if word == known or word in others:
            found: torch.dtype = getattr(torch, known)
            return found
    raise UsageError(f"{name} {shown(value)}: unknown; choose one of {', '.join(DTYPES)}")


def device_of(name: str, value: Any) -> torch.device:
    """A device of this machine; ``"auto"`` is the GPU if there is one.

    Args:
        value: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, ``"auto"``, a ``torch.device``, or the number of a GPU.

    Raises:
        UsageError: for anything else, or a device that this machine lacks.
    """
    import torch

    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    value = as_plain(value)
    if isinstance(value, str) and value.lower() == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if counts[kind]))
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"cuda:{value}" if 0 <= value < 2**15 else shown(value)
    try:
        device = value if isinstance(value, torch.device) else torch.device(value if isinstance(value, str) else "")
        found = (device.index or 0) < counts[device.type]
    except (RuntimeError, KeyError, ValueError, TypeError):
        raise UsageError(f"{name} {shown(value)}: unknown; choose one of {', '.join(DEVICES)}") from None
    if not found:
        raise UsageError(f"{name} {shown(str(value))}: this machine has none that PyTorch can use; try cpu")
    return device


def placement(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, torch.dtype | None, dict[str, Any]]:
    """The device and the number format that arguments of ``to`` say, and what else they ask of ``torch.nn.Module.to``.

    They come in any order: ``to("cuda")``, ``to(torch.float16)``, ``to("cuda", "bf16")``, ``to(other_tensor)``,
    ``to(device=..., dtype=...)``. A device is not looked for yet.

    Raises:
        UsageError: for what is none of these, or two devices or formats.
    """
    import torch

    devices: list[Any] = []
    dtypes: list[Any] = []
    others = {name: kwargs[name] for name in ("non_blocking", "memory_format") if name in kwargs}
    given = [("", value) for value in args]
    given += [(name, value) for name, value in kwargs.items() if name not in others]
    for name, value in given:
        if name not in ("", "device", "dtype", "torch_dtype", "tensor", "other"):
            raise UnknownArgument(f"{name}: not an argument of to(); it takes device and dtype")
        if isinstance(value, torch.Tensor) and (value.ndim or name in ("tensor", "other")):
            devices.append(value.device)
            dtypes.append(value.dtype)
        elif name in ("dtype", "torch_dtype") or isinstance(value, torch.dtype) or _names_dtype(value):
            dtypes += [value] if value is not None else []
        elif isinstance(value, bool) and not name:
            others["non_blocking"] = value
        elif value is not None:
            devices.append(value)
    if len(devices) > 1 or len(dtypes) > 1:
        raise UsageError(f"to{shown(tuple(value for _, value in given))}: give one device and one dtype")
    return (devices or [None])[0], dtype_of("dtype", dtypes[0]) if dtypes else None, others


def _names_dtype(value: Any) -> bool:
    word = value.removeprefix("torch.").lower() if isinstance(value, str) else ""
    return any(word in (known, *others) for known, others in DTYPES.items()) or value in ("float64", "double")
