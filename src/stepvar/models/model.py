"""What the models of all families share beside their layers: number formats, and decoding by tiles."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.stack import ModelInfo
from stepvar.core.tokens import TokenMap
from stepvar.models.base import Staged
from stepvar.models.precision import Policy, Precision, apply_precision

Self = TypeVar("Self", bound="VARModel")
Table = TypeVar("Table")

TABLES = 16
"""Tables that a model keeps at most: rotary tables of a schedule take a few megabytes."""


class Tokenizer(Protocol):
    """The decoder of a tokenizer."""

    def decode(self, latent: Tensor, tile: int | None = None) -> Tensor: ...


class Latent(Protocol):
    """A state with an accumulated latent (B, d, H, W)."""

    latent: Tensor


class VARModel(nn.Module):
    """Base of the models.

    Attributes:
        sublayers: of each block, in order; see :class:`~stepvar.core.stack.ModelInfo`.
        policy: which weights belong to which part of :class:`~stepvar.models.precision.Precision`.
        precision: the number format of each part; see :meth:`set_precision`.
    """

    policy: ClassVar[Policy] = ()
    sublayers: ClassVar[tuple[str, ...]] = ("self", "cross", "ffn")
    config: Any
    tokenizer: Tokenizer

    def __init__(self) -> None:
        super().__init__()
        self.precision = Precision()
        self._tables: dict[Hashable, Any] = {}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The format of the blocks' products, after which a precision is named."""
        return self.precision.blocks

    @property
    def info(self) -> ModelInfo:
        """What methods may know of the model."""
        return ModelInfo(self.config.depth, self.sublayers)

    def set_precision(self: Self, precision: Precision | torch.dtype) -> Self:
        """Brings every weight to the number format of its part, in place; a dtype stands for ``Precision.of(dtype)``.

        Going back to a wider format does not bring the lost digits back: load the weights again.

        Raises:
            UsageError: for a format that models cannot run in.
        """
        self.precision = precision if isinstance(precision, Precision) else Precision.of(precision)
        apply_precision(self, self.precision, self.policy)
        return self

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Moves the model like any module; a dtype goes to :meth:`set_precision` and not to every weight."""
        dtypes = [value for value in (*args, kwargs.pop("dtype", None)) if isinstance(value, torch.dtype)]
        places = [value for value in args if not isinstance(value, torch.dtype)]
        if dtypes:
            self.set_precision(dtypes[-1])
        return super().to(*places, **kwargs) if places or kwargs else self

    def float(self: Self) -> Self:
        return self.set_precision(torch.float32)

    def bfloat16(self: Self) -> Self:
        return self.set_precision(torch.bfloat16)

    def half(self: Self) -> Self:
        return self.set_precision(torch.float16)

    def stage(self, condition: Any, plan: Plan, padded: bool = False) -> Staged:
        raise NotImplementedError

    def begin(self, staged: Any, plan: Plan) -> Any:
        raise NotImplementedError

    def start(self, condition: Any, plan: Plan) -> Any:
        """See :class:`~stepvar.models.base.NextScaleModel`."""
        return self.begin(condition if isinstance(condition, Staged) else self.stage(condition, plan), plan)

    def table(self, key: Hashable, make: Callable[[], Table]) -> Table:
        """What depends on no condition, made once and kept for the next generations on the same device.

        Args:
            key: what it depends on; the most recent ones are kept.
        """
        place = (self.device, key)
        table = self._tables.get(place)
        if table is None:
            table = make()
            while len(self._tables) >= TABLES:
                self._tables.pop(next(iter(self._tables)), None)
            self._tables[place] = table
        return table

    def refine(self, state: Any, tokens: TokenMap, indices: Tensor, step: Step, noise: Noise) -> None:
        """Nothing: in most families the indices say all."""

    @torch.inference_mode()
    def decode(self, state: Latent, tile: int | None = None) -> Tensor:
        """The image so far: (B, 3, H, W) in [-1, 1], in float32.

        Args:
            tile: side of the tiles in latent cells, for bounded memory; None: in one piece.
        """
        return self.tokenizer.decode(state.latent, tile)
