"""What all models share beside their layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, TypeVar, get_args

import torch
from torch import Tensor, nn

from stepvar.core.cache import KVCache, NoCache
from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.sampling import sample_pass
from stepvar.core.split import held_rows
from stepvar.core.stack import NO_HOOKS, Hooks, ModelInfo, RunBlocks
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.core.values import device_of, dtype_of, placement
from stepvar.errors import UsageError
from stepvar.kernels.linear import Quantization, check_quantization
from stepvar.models.base import NextScaleModel, Staged
from stepvar.models.blocks import BlockRun, GenerationState
from stepvar.models.offload import Offload, OffloadName, Part
from stepvar.models.precision import CacheName, Policy, Precision, apply_precision, for_weight
from stepvar.models.quantization import quantize_blocks
from stepvar.utils.ambient import stated_formats

Self = TypeVar("Self", bound="VARModel")
Table = TypeVar("Table")

Shape = tuple[str | None, float, Grid]
"""The name of a resolution, height over width, and the last grid."""

TABLES = 16
"""Tables that a model keeps at most: rotary tables of a schedule take a few megabytes."""


class VARModel(nn.Module, NextScaleModel[Any, Any]):
    """Base of the models: see :class:`NextScaleModel` for what is not described here.

    Attributes:
        offload: where the weights rest and when they visit the device; None: they stay there.
        sublayers: of each block, in order; see :class:`~stepvar.core.stack.ModelInfo`.
        run: the blocks of a pass.
        policy: which weights belong to which part of :class:`~stepvar.models.precision.Precision`.
        precision: the number format of each part; see :meth:`set_precision`.
    """

    policy: ClassVar[Policy] = ()
    run: ClassVar[type[BlockRun[Any, Any]]]
    sublayers: ClassVar[tuple[str, ...]] = ("self", "cross", "ffn")
    config: Any
    transformer: Any
    tokenizer: Any

    def __init__(self, config: Any, transformer: nn.Module, tokenizer: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.precision = Precision()
        self.offload: Offload | None = None
        self._tables: dict[Hashable, Any] = {}

    @property
    def device(self) -> torch.device:
        """Where the model computes; of an offloaded one not where its weights rest."""
        return next(self.parameters()).device if self.offload is None else self.offload.device

    def enable_offload(self, name: OffloadName, device: torch.device, blocks_on_device: int = 0) -> None:
        """Lets the weights rest on the CPU and visit a device while they are used; arguments as for :class:`Offload`.

        Raises:
            UsageError: if the model has not so many blocks, or the device cannot multiply weights as they are stored.
        """
        if self.precision.quantization is not None:
            check_quantization(self.precision.quantization, device)
        self.disable_offload()
        self.offload = Offload(self, name, device, blocks_on_device)

    def disable_offload(self) -> None:
        """Leaves the weights on the CPU."""
        if self.offload is not None:
            self.offload.remove()
            self.offload = None
            if not next(self.parameters()).is_meta:
                super().to("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The format of the blocks' products, after which a precision is named."""
        return self.precision.blocks

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(self.config.depth, self.sublayers)

    @abstractmethod
    def shapes(self) -> Iterable[Shape]:
        """What can be generated."""

    def set_precision(self: Self, precision: Precision | torch.dtype | str) -> Self:
        """Brings every weight to the number format of its part, in place; a dtype stands for ``Precision.of(dtype)``.

        Going back to a wider format does not bring the lost digits back: load the weights again.

        Raises:
            UsageError: for a format that models cannot run in, or if the weights are quantised to another.
        """
        self._check_not_offloaded()
        own = self.precision
        if not isinstance(precision, Precision):
            precision = replace(Precision.of(precision), cache=own.cache, quantization=own.quantization)
        if own.quantization is not None and replace(precision, cache=own.cache) != own:
            raise UsageError(
                f"precision: the weights are stored in {own.quantization} for {own.blocks}, which cannot be changed; "
                "load the model again"
            )
        self.precision = precision
        if own.quantization is None:
            apply_precision(self, precision, self.policy)
            if precision.quantization is not None:
                quantize_blocks(self, precision.quantization, self.policy)
        return self

    def quantize(self: Self, quantization: Quantization) -> Self:
        """Stores the weights of the products inside the blocks in eight bits, in place, layer by layer.

        Raises:
            UsageError: for an unknown kind, or if they are quantised to another already.
        """
        return self.set_precision(replace(self.precision, quantization=quantization))

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Moves the model like any module; a dtype goes to :meth:`set_precision` and not to every weight.

        Args:
            args, kwargs: those of ``torch.nn.Module.to``: a device, a dtype, or a tensor that has both.

        Raises:
            UsageError: for a device that is not there or cannot multiply the weights as they are stored, a format that
                models cannot run in, or if it is offloaded.
        """
        self._check_not_offloaded()
        device, dtype, others = placement(args, kwargs)
        if dtype is not None:
            self.set_precision(dtype)
        if device is not None and str(device) != "meta":
            device = device_of("device", device)
            if self.precision.quantization is not None:
                check_quantization(self.precision.quantization, device)
        return super().to(device=device, **others) if device is not None or others else self

    def cuda(self: Self, device: int | torch.device | None = None) -> Self:
        return self.to("cuda" if device is None else device)

    def type(self: Self, dst_type: torch.dtype | str) -> Self:
        return self.set_precision(dtype_of("dtype", dst_type))

    def double(self: Self) -> Self:
        return self.set_precision(torch.float64)

    def set_cache_dtype(self: Self, name: CacheName | None) -> Self:
        """Chooses how keys and values are stored: "int8", or None: as they are computed.

        Raises:
            UsageError: for another name.
        """
        if name not in (None, *get_args(CacheName)):
            raise UsageError(f"cache_dtype={name!r}: must be int8, or None for that of the model")
        self.precision = replace(self.precision, cache=name)
        return self

    def _check_not_offloaded(self) -> None:
        if self.offload is not None:
            raise UsageError("the model is offloaded: move it or change its precision before, or disable offloading")

    def float(self: Self) -> Self:
        return self.set_precision(torch.float32)

    def bfloat16(self: Self) -> Self:
        return self.set_precision(torch.bfloat16)

    def half(self: Self) -> Self:
        return self.set_precision(torch.float16)

    def start(self, condition: Any, plan: Plan) -> Any:
        return self.begin(condition if isinstance(condition, Staged) else self.stage(condition, plan), plan)

    def table(self, key: Hashable, make: Callable[[], Table]) -> Table:
        """What depends on no condition, made once and kept for the next generations on the same device.

        Args:
            key: what it depends on; the most recent ones are kept.
        """
        place = (self.device, key)
        table = self._tables.get(place)
        if table is None:
            for oldest in list(self._tables)[: 1 - TABLES]:  # a copy: other threads may add tables meanwhile
                self._tables.pop(oldest, None)
            with torch.inference_mode(False), torch.no_grad():  # later uses may be training
                table = self._tables[place] = make()
        return table

    def new_cache(self, plan: Plan, heads: int | None = None, prefix: int | Sequence[int] = 0) -> KVCache:
        """A cache with room for exactly the tokens that the plan lets each block keep, and ``prefix`` more.

        In a low precision keys are stored in it, too, although normalisation and rotary positions leave them in
        float32: attention would round them anyway, so the numbers are the same at half the memory.

        Args:
            heads: of keys and values; None: as many as the queries have.
            prefix: one number, or one for each block.
        """
        config, more = self.config, [prefix] * plan.depth if isinstance(prefix, int) else prefix
        capacities = [before + tokens for before, tokens in zip(more, plan.cache_tokens, strict=True)]
        heads = heads or config.heads
        if plan.schedule.kv_scope == "none":
            return NoCache(heads, config.head_dim, self.precision.blocks, self.device)
        return self.room_for(plan, capacities, heads, self.precision.cache is not None)

    def room_for(self, plan: Plan, capacities: Sequence[int], heads: int, quantized: bool = False) -> KVCache:
        """A cache for so many tokens of each layer, of the rows that this process runs of a plan."""
        own, head_dim = held_rows(plan), self.config.head_dim
        sizes = (capacities, own.stop - own.start, heads, head_dim)
        return KVCache(*sizes, self.precision.blocks, self.device, quantized, own.start)

    def new_latent(self, plan: Plan) -> Tensor:
        """The accumulated latent of images before the first pass: zeros (B, d, H, W)."""
        return torch.zeros(plan.samples, *self.config.latent_size(plan.schedule.grids[-1]), device=self.device)

    def code_tokens(self, latent: Tensor, step: Step) -> Tensor:
        """A latent as the tokens (R, N, C) of a pass, the same for both branches."""
        embed = self.transformer.word_embed
        tokens: Tensor = embed(for_weight(self.next_tokens(latent, step), embed.weight))
        return tokens.repeat(step.branches, 1, 1)

    def blocks(self, state: Any, step: Step, hooks: Hooks = NO_HOOKS) -> RunBlocks:
        return self.run(self, state, step, hooks)

    def row_logits(self, state: Any, features: Tensor, step: Step) -> Tensor:
        """Logits of the first rows of a pass (R, N, ..., classes), from their features (R, N, C)."""
        return self.transformer.logits(features, state.condition.pooled[step.row_slice][: len(features)])

    def predict(self, state: Any, tokens: TokenMap, step: Step) -> Tensor:
        return step.guided_logits(lambda rows: self.row_logits(state, tokens.features[:rows], step))

    def sample(
        self, state: Any, tokens: TokenMap, logits: Tensor, step: Step, noise: Noise
    ) -> tuple[Tensor, Tensor | None]:
        return sample_pass(logits, noise, step)

    def refine(
        self, state: Any, tokens: TokenMap, indices: Tensor, step: Step, noise: Noise, mask: Tensor | None = None
    ) -> None:
        """Nothing: in most families the indices say all."""

    def on_device(self, part: Part) -> AbstractContextManager[None]:
        return nullcontext() if self.offload is None else self.offload.on_device(part)

    def block_on_device(self, layer: int) -> AbstractContextManager[None]:
        """Has a block of an offloaded model on its device for as long as the block of code runs."""
        return nullcontext() if self.offload is None else self.offload.blocks[layer].on_device()

    def finish(self, state: Any) -> None:
        state.cache.free()

    @stated_formats()
    @torch.inference_mode()
    def encode(self, images: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
        """The codes of images (B, 3, H, W) in [-1, 1]: indices or bits (B, N, ...) of every pass of a schedule.

        Of an encoder that gives a distribution, the mean is coded.
        """
        with self.on_device("encoder"):
            return self.codes(images, schedule)

    @abstractmethod
    def codes(self, images: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
        """See :meth:`encode`."""

    @stated_formats()
    @torch.inference_mode()
    def decode(self, state: Any, tile: int | None = None, sliced: bool = False) -> Tensor:
        with self.on_device("decoder"):
            if not sliced:
                return self.pixels(state, slice(None), tile)
            samples = range(len(state.latent))
            return torch.cat([self.pixels(state, slice(sample, sample + 1), tile) for sample in samples])

    def latent(self, state: GenerationState) -> Tensor:
        return state.latent

    def decode_latent(self, latent: Tensor) -> Tensor:
        with self.on_device("decoder"):
            pixels: Tensor = self.tokenizer.decode(latent, None)
            return pixels.clamp(-1, 1)

    def pixels(self, state: Any, samples: slice, tile: int | None) -> Tensor:
        """The images so far of some of the samples; see :meth:`decode`."""
        pixels: Tensor = self.tokenizer.decode(state.latent[samples], tile)
        return pixels
