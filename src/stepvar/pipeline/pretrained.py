"""A pipeline is loaded, moved and saved."""

from __future__ import annotations

import os
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import torch

from stepvar.checkpoints import EMBEDDED, LoadedModel, load_model, save_model
from stepvar.checkpoints.sources import find_outline
from stepvar.core.plan import Plan
from stepvar.core.values import DEFAULT_MODEL, device_of, dtype_of, placement, text
from stepvar.core.words import LOAD, accepts, unknown_attribute
from stepvar.engine import Engine, EngineName
from stepvar.kernels.linear import Quantization, check_quantization
from stepvar.models.precision import CacheName
from stepvar.models.registry import FAMILIES
from stepvar.pipeline.loading import check_text_encoder, encoder_behind_cache, own_text_encoder
from stepvar.pipeline.parallel import GuidanceProcesses, Parallel, start_parallel
from stepvar.text import Encoder, WordEncoder
from stepvar.utils.ambient import stated_formats
from stepvar.utils.files import atomic_folder
from stepvar.utils.hub import hub_access
from stepvar.utils.log import logger

Self = TypeVar("Self", bound="Pretrained")

_PLACES = ("name", "tokenizer", "text_encoder")
"""Arguments of ``from_pretrained`` that may be local paths."""


class Pretrained:
    """A model with what it needs to generate, made of released files.

    Attributes:
        progress: whether a bar over the scales is shown, on a terminal only; a call may say otherwise.
        tile: side of the tiles of decoding in latent cells; None: images are decoded in one piece.
        sliced: whether the images of a batch are decoded one by one.
        processes: the two that run one guidance branch each; None: this one runs both.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        text_encoder: Encoder[Any] | None,
        engine: EngineName = "auto",
        processes: GuidanceProcesses | None = None,
    ) -> None:
        self.name = loaded.name
        self.model = loaded.model
        self.text_encoder: Any = text_encoder
        self._text_config = loaded.text_config
        self.defaults = loaded.defaults
        self.family = FAMILIES[loaded.family]
        self.inputs = self.family.inputs(self.model, self.text_encoder)
        self.progress = True
        self.tile: int | None = None
        self._origin: dict[str, str | None] | None = None
        self.sliced = False
        self.engine = Engine(engine)
        self.processes = processes
        self._fitting: set[Hashable] = set()
        self._plans: dict[Hashable, Plan] = {}

    @classmethod
    @accepts(LOAD)
    def from_pretrained(
        cls: type[Self],
        name: str | Path = DEFAULT_MODEL,
        variant: str | None = None,
        *,
        revision: str | None = None,
        tokenizer: str | Path | None = None,
        text_encoder: Encoder[Any] | str | Path | None = "auto",
        device: str | int | torch.device | None = None,
        dtype: torch.dtype | str = torch.float32,
        engine: EngineName = "auto",
        cache_dtype: CacheName | None = None,
        quantization: Quantization | None = None,
        parallel: Parallel | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Loads a model.

        Words of diffusers are taken, too: see the page "Coming from diffusers".

        Args:
            name: an embedded model ("wardrobe", "scenes", "scenes-video"), a repository on the hub
                ("FoundationVision/Infinity", "FoundationVision/var"), a local folder, or a checkpoint file.
            variant: which of the released sizes, such as "2b" or "d30".
            revision: branch, tag or commit on the hub.
            tokenizer: the tokenizer's file, where it does not lie beside the transformer's.
            text_encoder: "auto" loads what the model was trained with (Flan-T5-XL for the released Infinity models);
                the name or folder of another model of its kind, an encoder, or None to work with features only.
            device, dtype: where and in what precision, also by name ("auto", "cuda:1"; "bf16"); see :meth:`to`.
            engine: "eager", "graphs" (CUDA graphs), or "auto": graphs on CUDA; see :class:`~stepvar.engine.Engine`.
            cache_dtype: "int8" stores keys and values in half of the memory of bfloat16, with a scale per head and
                token; None: as they are computed.
            quantization: how the weights of the blocks are stored: "int8" on any device, or "fp8" on Hopper and newer
                GPUs, which also multiply in fp8. A large text encoder that is loaded here is stored in int8 either way.
            parallel: "guidance" runs the guidance branches of an image in two processes, one on each of two GPUs, which
                ``torchrun --nproc-per-node 2 script.py`` starts; both call the pipeline alike, and the first one's
                output has the images. None: one process runs both branches.
            cache_dir, token, local_files_only: of downloads; None: as ``HF_HOME`` and ``HF_TOKEN`` say.

        Raises:
            UsageError: if there is no such model, variant or device, the device cannot run the quantization, or
                there are not two processes for ``parallel``, before anything is fetched.
            CheckpointError: if its files are missing, damaged or do not fit.
        """
        for word, value in (("name", name), ("variant", variant), ("revision", revision), ("tokenizer", tokenizer)):
            if value is not None and not isinstance(value, Path):
                text(word, value)
        place, precision = device_of("device", "cpu" if device is None else device), dtype_of("dtype", dtype)
        Engine(engine)
        if quantization is not None:
            check_quantization(quantization, place)
        processes = start_parallel(parallel, place)
        place = place if processes is None else processes.device
        started = time.perf_counter()
        # Weights made in inference mode could never be changed again.
        with hub_access(cache_dir, token, local_files_only), torch.inference_mode(False), stated_formats():
            check_text_encoder(find_outline(name, variant, revision, tokenizer), text_encoder)
            loaded = load_model(name, variant=variant, revision=revision, dtype=precision, tokenizer=tokenizer)
            loaded.model.set_cache_dtype(cache_dtype)
            pipe = cls(loaded, own_text_encoder(loaded, text_encoder, quantization is not None), engine, processes)
            if quantization is not None:  # before it moves: the device never holds the weights at full length
                pipe.model.quantize(quantization)
            pipe.to(place, precision)
        pipe._remember(name, variant, revision, tokenizer, text_encoder)
        logger.debug("loaded %s in %.1f s: %r", pipe.name, time.perf_counter() - started, pipe)
        return pipe

    from_single_file = from_pretrained

    def _remember(self, name: Any, variant: Any, revision: Any, tokenizer: Any, text_encoder: Any) -> None:
        """Keeps what was asked for as texts; local files by their whole path."""
        if text_encoder is not None and not isinstance(text_encoder, (str, Path)):
            return  # an object, which no text stands for
        given = {"name": name, "variant": variant, "revision": revision, "tokenizer": tokenizer}
        self._origin = {
            key: None if one is None else os.path.abspath(one) if key in _PLACES and os.path.exists(one) else str(one)
            for key, one in (given | {"text_encoder": text_encoder}).items()
        }
        if str(name) in EMBEDDED:
            self._origin["name"] = str(name)

    @property
    def origin(self) -> dict[str, Any] | None:
        """What makes this pipeline again, for records in files: arguments of :meth:`from_pretrained`, how it decodes.

        None where it was made of parts.
        """
        if self._origin is None:
            return None
        now = {"engine": self.engine.name, "device": str(self.model.device), "tile": self.tile, "sliced": self.sliced}
        now |= {"cache_dtype": self.model.precision.cache, "quantization": self.quantization}
        return self._origin | now | {"dtype": str(self.dtype).removeprefix("torch.")}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise unknown_attribute(self, name)

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.model.parameters())
        encoder = getattr(self.text_encoder, "encoder", self.text_encoder)
        parts = [
            f"{self.family.name}, {weights / 1e6:,.1f} M parameters",
            f"{self.model.device} {str(self.dtype).removeprefix('torch.')}",
            f"quantised to {self.quantization}" if self.quantization is not None else "",
            f"text encoder {getattr(encoder, 'name', type(encoder).__name__)}" if encoder is not None else "",
            f"engine {self.engine.name}",
            f"tiles of {self.tile}" if self.tile is not None else "",
            "decoding one image at a time" if self.sliced else "",
        ]
        return f"Pipeline({self.name!r}: {', '.join(filter(None, parts))})"

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def quantization(self) -> Quantization | None:
        """How the weights of the blocks are stored; None: in :attr:`dtype`."""
        kind: Quantization | None = self.model.precision.quantization
        return kind

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Moves the model to a device or a precision, in place; the text encoder follows to the device.

        Args:
            args, kwargs: ``device`` ("cuda", "cuda:1", "auto", ...) and ``dtype`` (``torch.bfloat16``, "bf16", ...),
                in any order, or a tensor that has both.

        Raises:
            UsageError: for a device that is not there, a format that models cannot run in, or if it is offloaded.
        """
        place, dtype, others = placement(args, kwargs)
        device = None if place is None else device_of("device", place)
        self.engine.clear()
        with torch.inference_mode(False), stated_formats():
            if dtype is not None:
                self.model.to(dtype=dtype)
            if device is not None:
                self.model.to(device=device, **others)
                if self.text_encoder is not None:
                    self.text_encoder.to(device=device)
        return self

    def close(self) -> None:
        """Drops captured generations and, of a pipeline that is ``parallel``, leaves the other process."""
        self.engine.clear()
        if self.processes is not None:
            self.processes.close()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | str | None = None) -> Path:
        """Writes the model as a folder that :meth:`from_pretrained` reads: safetensors and a configuration.

        Args:
            folder: it must not exist.
            dtype: of the weights; None: as each is held.

        Returns:
            The folder.

        Raises:
            OutputError: if it exists, or cannot be written.
        """
        encoder = encoder_behind_cache(self.text_encoder)
        own, folder = encoder if isinstance(encoder, WordEncoder) else None, Path(folder)
        precision = None if dtype is None else dtype_of("dtype", dtype)
        with atomic_folder(folder) as made:
            config = None if own is None else self._text_config
            save_model(made, self.name, self.model, own, config, self.defaults, precision)
        return folder
