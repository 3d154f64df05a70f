"""What the configurations of all families share: sizes that follow from others, and reading them from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar, TypeVar, get_type_hints

from stepvar.errors import CheckpointError
from stepvar.utils.reading import check_fields

LARGEST: tuple[tuple[tuple[str, ...], int], ...] = (
    (("depth", "blocks", "layers", "multipliers"), 512),
    (("width", "channels", "vocabulary", "classes", "maxlen", "tokens", "hidden", "theta"), 1_000_000),
)
"""The largest values of fields by the words in their names: modules are built one by one, and channels are not."""

LARGEST_COUNT = 4096
"""That of other numbers: scales, sides, repetitions, heads."""

MAY_BE_ZERO = ("semantic_scales",)
"""Fields that count something of which there may be none; whatever else is counted is at least 1."""

LONGEST_TUPLE = 256

Self = TypeVar("Self", bound="ModelConfig")
Word = TypeVar("Word")


class AutoencoderConfig:
    """A base of the dataclasses that describe the image tokenizers.

    Attributes:
        base_channels: channels at full resolution.
        multipliers: channel multiplier per level.
    """

    base_channels: int
    multipliers: tuple[int, ...]

    @property
    def stride(self) -> int:
        """Pixels per latent cell along each side."""
        return 1 << (len(self.multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the first at full resolution."""
        return tuple(self.base_channels * multiplier for multiplier in self.multipliers)


class ModelConfig:
    """A base of the dataclasses that describe a model and, in ``tokenizer``, its tokenizer."""

    tokenizer_type: ClassVar[type[Any]]
    width: int
    heads: int
    tokenizer: Any

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def stride(self) -> int:
        """Pixels per token along each side."""
        stride: int = self.tokenizer.stride
        return stride

    def check_heads(self, multiple: int) -> None:
        """Raises a CheckpointError unless the heads share the channels evenly, a multiple of a number each."""
        if self.width % self.heads or self.head_dim % multiple:
            raise CheckpointError(f"heads={self.heads}: width={self.width} must give heads of a multiple of {multiple}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[Self], values: Mapping[str, Any]) -> Self:
        """Reads what :meth:`to_dict` wrote, also after JSON.

        Raises:
            CheckpointError: for unknown or missing fields, values of another type, or sizes beyond all models.
        """
        inner = values.get("tokenizer", {})
        if not isinstance(inner, Mapping):
            raise CheckpointError(f"configuration: tokenizer={inner!r} must be an object")
        own = {name: _frozen(value) for name, value in values.items() if name != "tokenizer"}
        inner = {name: _frozen(value) for name, value in inner.items()}
        for given, described in ((own, cls), (inner, cls.tokenizer_type)):
            hints = get_type_hints(described)
            unknown = set(given) - {field.name for field in fields(described)}  # type: ignore[arg-type]
            if unknown:
                raise CheckpointError(f"configuration: unknown fields {', '.join(sorted(unknown)[:8])}")
            check_entries(given, hints, "configuration")
        build: Any = cls
        try:
            config: Self = build(**own, tokenizer=cls.tokenizer_type(**inner))
        except TypeError as error:
            raise CheckpointError(f"configuration: {error}") from None
        return config


class PublishedConfig:
    """The entries of a part's published configuration file; what is missing or not supported is refused."""

    def __init__(self, values: Mapping[str, Any], part: str) -> None:
        self.values, self.part = values, part

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise CheckpointError(f"{self.part}: the configuration lacks {name}")
        return self.values[name]

    def get(self, name: str, default: Any) -> Any:
        return self.values.get(name, default)

    def word(self, name: str, default: str, words: Mapping[str, Word]) -> Word:
        """An entry that is one of a few words, in our own."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in words:
            raise CheckpointError(f"{self.part}: {name}={value!r} is not supported; only {', '.join(words)}")
        return words[value]

    def must_be(self, name: str, value: Any) -> None:
        if self.get(name, value) != value:
            raise CheckpointError(f"{self.part}: {name}={self.values[name]!r} is not supported; only {value!r}")


def check_entries(given: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> None:
    """Checks types and sizes of what a file says of a module.

    Args:
        hints: types by name, as annotations have them.

    Raises:
        CheckpointError: naming the entry, its value and the limit.
    """
    check_fields(given, hints, where, CheckpointError, "fetch it again")
    for name, value in given.items():
        most = next((most for words, most in LARGEST if any(word in name for word in words)), LARGEST_COUNT)
        for one in numbers_in(value):
            if not one <= most:
                raise CheckpointError(f"{where}: {name}={one}: at most {most}; no model is larger")
            least = 0 if isinstance(one, (bool, float)) or name in MAY_BE_ZERO else 1
            if one < least:
                raise CheckpointError(f"{where}: {name}={one}: at least {least}; fetch it again")


def numbers_in(value: Any) -> list[float]:
    """The numbers in a value and in the tuples in it; a CheckpointError for tuples longer than any model's."""
    if isinstance(value, tuple):
        if len(value) > LONGEST_TUPLE:
            raise CheckpointError(f"configuration: a list of {len(value)} entries; at most {LONGEST_TUPLE}")
        return [number for one in value for number in numbers_in(one)]
    return [value] if isinstance(value, (int, float)) else []


def _frozen(value: Any) -> Any:
    """JSON knows no tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value
