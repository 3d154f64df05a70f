"""What a pipeline can do to need less memory, and how much it needs."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeVar

import torch

from stepvar.core.plan import Plan
from stepvar.core.split import split_plan
from stepvar.core.values import device_of, whole_number
from stepvar.cost.dry_run import DryRun, MetaExchange, dry_run
from stepvar.cost.memory import TEXT_TOKENS, check_fits, fits_easily, memory_of
from stepvar.engine import Engine
from stepvar.errors import UsageError
from stepvar.methods import Method
from stepvar.models.offload import OffloadName
from stepvar.models.tiling import SMALLEST_TILE
from stepvar.pipeline.loading import encoder_behind_cache
from stepvar.pipeline.parallel import GuidanceProcesses
from stepvar.text import OffloadableEncoder
from stepvar.utils.ambient import stated_formats
from stepvar.utils.device import execution_device

Self = TypeVar("Self", bound="MemoryOptions")


class MemoryOptions:
    """Offloading, decoding in parts, and the memory that a generation needs.

    Attributes:
        tile: side of the tiles of decoding in latent cells; None: images are decoded in one piece.
        sliced: whether the images of a batch are decoded one by one.
    """

    name: str
    model: Any
    inputs: Any
    text_encoder: Any
    engine: Engine
    processes: GuidanceProcesses | None
    tile: int | None
    sliced: bool
    _fitting: set[Hashable]

    @property
    def device(self) -> torch.device:
        return self.model.device

    def enable_text_encoder_offload(self: Self, device: str | torch.device | None = None) -> Self:
        """Lets the text encoder's weights rest on the CPU and visit ``device`` (None: the model's) only to encode.

        Raises:
            UsageError: if the model's text encoder is too small for that to make sense.
        """
        encoder = encoder_behind_cache(self.text_encoder)
        if not isinstance(encoder, OffloadableEncoder):
            raise UsageError(f"text encoder offload: {self.name} has no large text encoder; leave it where it is")
        encoder.enable_offload(self.device if device is None else device)
        return self

    def enable_model_cpu_offload(self: Self, device: str | torch.device | None = None) -> Self:
        """Lets all weights rest on the CPU: text encoder, transformer and decoder visit the device one after another.

        Load the pipeline on the CPU, then call this. Results are the same to the bit. Every generation copies the
        weights once. Previews, too, copy the decoder, and hold it beside the transformer.

        Args:
            device: where they work; None: where the model is, or from the CPU the first GPU.

        Raises:
            UsageError: if the model is on the CPU and there is no GPU.
        """
        return self._offload("model", device)

    def enable_sequential_cpu_offload(
        self: Self, device: str | torch.device | None = None, blocks_on_device: int = 0
    ) -> Self:
        """As :meth:`enable_model_cpu_offload`, and the blocks of the transformer visit the device one by one, too.

        While a block runs, the next one is copied. Every scale copies all blocks, which takes longer than small scales
        compute: the less memory, the slower.

        Args:
            device: as there.
            blocks_on_device: blocks that stay for the whole loop over scales; as many as fit.

        Raises:
            UsageError: as there, or if the model has not so many blocks.
        """
        return self._offload("sequential", device, blocks_on_device)

    def disable_cpu_offload(self: Self) -> Self:
        """Ends both kinds of offloading; the weights are left on the CPU, see :meth:`to`."""
        self.model.disable_offload()
        encoder = encoder_behind_cache(self.text_encoder)
        if isinstance(encoder, OffloadableEncoder):
            encoder.disable_offload().to("cpu")
        return self

    def _offload(self: Self, name: OffloadName, device: str | torch.device | None, blocks_on_device: int = 0) -> Self:
        self.engine.clear()
        if device is None:
            place = execution_device(self.device)
        else:  # a model without data works on "meta"
            place = torch.device("meta") if str(device) == "meta" else device_of("device", device)
        with torch.inference_mode(False):
            self.model.enable_offload(name, place, whole_number("blocks_on_device", blocks_on_device))
        encoder = encoder_behind_cache(self.text_encoder)
        if isinstance(encoder, OffloadableEncoder):
            encoder.enable_offload(place)
        elif encoder is not None:
            encoder.to(device=place)  # a few embeddings
        return self

    def enable_vae_tiling(self: Self, tile: int = 32) -> Self:
        """Decodes large images tile by tile, in bounded memory.

        Args:
            tile: side of a tile in latent cells.

        Raises:
            UsageError: if it is too small for tiles to overlap.
        """
        tile = whole_number("tile", tile)
        if tile < SMALLEST_TILE:
            raise UsageError(f"tile={tile}: must be at least {SMALLEST_TILE} latent cells")
        self.tile = tile
        return self

    def disable_vae_tiling(self: Self) -> Self:
        """Decodes images in one piece again."""
        self.tile = None
        return self

    def enable_vae_slicing(self: Self) -> Self:
        """Decodes the images of a batch one by one, in the memory of one."""
        self.sliced = True
        return self

    def disable_vae_slicing(self: Self) -> Self:
        """Decodes the images of a batch together again."""
        self.sliced = False
        return self

    def _check_memory(self, plan: Plan, method: Method) -> None:
        """Refuses what the device can never hold, with advice; what else is there is not counted.

        Two processes both look at what that of the conditional branch holds, which decodes, too, so that both refuse.
        """
        kind = self._kind(plan, method)
        if kind in self._fitting:
            return
        if self.processes is not None:
            plan = split_plan(plan, MetaExchange())
        available = memory_of(self.device)
        if available is not None and not fits_easily(self.model, plan, available):
            check_fits(self.dry_run(plan, method), available, f"device {self.device.type}")
        self._fitting.add(kind)

    def _kind(self, plan: Plan, method: Method) -> Hashable:
        """What a generation's memory depends on."""
        model = self.model
        asked = (repr(plan.settings), plan.samples, repr(method))
        return (*asked, self.device, repr(model.precision), repr(model.offload), self.tile, self.sliced)

    def dry_run(self, plan: Plan, method: Method, text_tokens: int = TEXT_TOKENS) -> DryRun:
        """The operations and the memory of a generation, without a text encoder; nothing is computed.

        Args:
            plan: as the method resolved it.
            text_tokens: of a prompt, where its length is free.
        """
        with stated_formats():
            wanted = self.inputs.example(text_tokens, plan.schedule)
            condition = self.inputs.prepare(wanted, plan.samples).encode(plan.schedule, ()).condition
            return dry_run(self.model, condition, plan, method, tile=self.tile, sliced=self.sliced)
