"""What the configurations of all families share: sizes that follow from others, and reading them from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar, TypeVar

from stepvar.errors import CheckpointError

Self = TypeVar("Self", bound="ModelConfig")


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
            CheckpointError: for unknown or missing fields.
        """
        own = {name: _frozen(value) for name, value in values.items() if name != "tokenizer"}
        inner = {name: _frozen(value) for name, value in dict(values.get("tokenizer", {})).items()}
        for given, described in ((own, cls), (inner, cls.tokenizer_type)):
            unknown = set(given) - {field.name for field in fields(described)}  # type: ignore[arg-type]
            if unknown:
                raise CheckpointError(f"configuration: unknown fields {', '.join(sorted(unknown))}")
        build: Any = cls
        try:
            config: Self = build(**own, tokenizer=cls.tokenizer_type(**inner))
        except TypeError as error:
            raise CheckpointError(f"configuration: {error}") from None
        return config


def _frozen(value: Any) -> Any:
    """JSON knows no tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value
