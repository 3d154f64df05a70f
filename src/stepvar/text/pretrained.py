"""Text encoders of the ``transformers`` package: their files, and where their weights rest and work."""

from __future__ import annotations

import pickle
import posixpath
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import Self

from stepvar.errors import CheckpointError, UsageError
from stepvar.kernels.linear import Quantization, quantize_linears
from stepvar.text.features import TextFeatures
from stepvar.utils.hub import hub_options

_SAFE = ("model*.safetensors", "model.safetensors.index.json")
_TORCH = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_DAMAGE = (OSError, RuntimeError, ValueError, LookupError, TypeError, SafetensorError, pickle.UnpicklingError)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class LongPromptWarning(UserWarning):
    """A prompt has more tokens than the encoder reads."""


class OffloadableEncoder:
    """Base of the encoders that run a model of ``transformers``.

    Args:
        name: of the model, for errors.
        model: on the CPU, in ``dtype``.

    Attributes:
        device: where the work is done and the features appear.
        dtype: of the weights; the features are float32.
        quantization: how the weights of linear layers are stored; see :meth:`quantize`.
    """

    keeps_float32: ClassVar[str | None] = None
    """In float16, weights with this in their names stay in float32."""

    def __init__(self, name: str, model: nn.Module, dtype: torch.dtype, device: str | torch.device) -> None:
        self.name = name
        self.device = torch.device("cpu")
        self.dtype = dtype
        self.quantization: Quantization | None = None
        self._model: nn.Module | None = model
        self._offloaded = False
        self.to(device)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves the weights to a device or a precision, in place.

        Under :meth:`enable_offload` the device stays the one chosen there, so that moving a whole pipeline does not
        undo it. A precision once lost does not come back: load again for a higher one.

        Raises:
            UsageError: for another precision than float32, bfloat16 or float16, or than the weights were quantised for.
        """
        if dtype is not None:
            check_dtype(dtype)
            if self.quantization is not None and dtype != self.dtype:
                raise UsageError(
                    f"dtype={dtype}: the weights of {self.name} are stored in {self.quantization} for {self.dtype}; "
                    "load the text encoder again"
                )
            self.dtype = dtype
        if device is not None and not self._offloaded:
            self.device = torch.device(device)
        if self._model is not None:
            self._model.to("cpu" if self._offloaded else self.device)
            for name, weight in self._model.named_parameters():
                if not weight.is_floating_point():
                    continue  # quantised
                wide = self.dtype == torch.float16 and self.keeps_float32 is not None and self.keeps_float32 in name
                weight.data = weight.data.to(torch.float32 if wide else self.dtype)
        return self

    def quantize(self) -> Self:
        """Stores the weights of all linear layers in int8, in place, layer by layer; embeddings and norms stay.

        Raises:
            UsageError: after :meth:`free`.
        """
        quantize_linears(self._weights(), "int8")
        self.quantization = "int8"
        return self

    def enable_offload(self, execution_device: str | torch.device) -> Self:
        """Lets the weights rest on the CPU, and the work be done on ``execution_device``.

        - ``enable_offload("cuda")``: each call of ``encode`` copies the weights to the device and drops the copy
          when it is done. Nothing travels back. For a graphics card that cannot hold text encoder and image model.
        - ``enable_offload("cpu")``: encodes on the CPU; only the features travel to the image model. For a card
          that has no room for the text encoder at all; slower.

        Wrap the encoder in :class:`~stepvar.text.CachedEncoder` so that repeated prompts cost neither.
        """
        self.device = torch.device(execution_device)
        self._offloaded = True
        return self.to()

    def disable_offload(self) -> Self:
        """Lets the weights rest where the work is done again."""
        self._offloaded = False
        return self.to()

    def free(self) -> None:
        """Drops the weights. Prompts can no longer be encoded; features made before stay valid."""
        self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _features(self, rows: Sequence[Sequence[int]]) -> TextFeatures:
        """Features of prompts given as their tokens, zeros behind each."""
        lengths = tuple(len(row) for row in rows)
        read = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        hidden = self._run(pad_sequence([torch.tensor(row) for row in rows], batch_first=True), read)
        return TextFeatures(hidden.masked_fill(~read.to(hidden.device)[..., None], 0), lengths)

    def _run(self, tokens: Tensor, read: Tensor) -> Tensor:
        """tokens (B, L), read (B, L) false on padding -> last hidden states (B, L, C) in float32.

        A model of several towers takes (B, towers, L) of each.
        """
        model = self._weights()
        inputs = {"input_ids": tokens.to(self.device), "attention_mask": read.to(self.device).long()}
        visiting = {}
        if self._offloaded:
            # The module keeps its weights on the CPU and works with a copy that lives as long as this call.
            kept = (*model.named_parameters(), *model.named_buffers())
            visiting = {name: tensor.to(self.device, non_blocking=True) for name, tensor in kept}
        hidden: Tensor = functional_call(model, visiting, kwargs=inputs).last_hidden_state
        return hidden.float()

    def _weights(self) -> nn.Module:
        if self._model is None:
            raise UsageError(f"the weights of {self.name} were freed: load the text encoder again")
        return self._model


def check_dtype(dtype: torch.dtype) -> None:
    """Raises a UsageError for a precision that text encoders cannot run in."""
    if dtype not in _DTYPES:
        raise UsageError(f"dtype={dtype}: must be one of {', '.join(str(known) for known in _DTYPES)}")


def import_transformers() -> Any:
    """The ``transformers`` package; a UsageError if it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UsageError("the text encoder needs transformers: pip install '.[text]' in the checkout") from None
    return transformers


def check_source(source: str | Path) -> None:
    """Whether a text encoder can be had, found out before anything large is fetched or read.

    Raises:
        UsageError: if its package is missing, or there is no such folder or repository.
        CheckpointError: if a folder holds no configuration or no weights.
    """
    import_transformers()
    for one in sources_of(source):
        _check_source(one)


def sources_of(source: str | Path) -> list[str]:
    """The names or folders that a text encoder is made of: two where they stand with a comma between them."""
    return [str(source)] if Path(source).expanduser().is_dir() else [one.strip() for one in str(source).split(",")]


def _check_source(source: str) -> None:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        try:
            from huggingface_hub import hf_hub_download

            repo, inside = _repository(source)
            hf_hub_download(repo, posixpath.join(inside, "config.json"), **hub_options())
        except Exception as error:  # the client's and its network stack's have no common base
            raise _not_found(source, error) from error
        return
    if not _holds(folder, _SAFE) and not _holds(folder, _TORCH):
        raise CheckpointError(f"{folder}: no model.safetensors or pytorch_model.bin; give the folder of a text encoder")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json; give the whole folder of a text encoder")


def _repository(source: str | Path) -> tuple[str, str]:
    """The repository that "owner/name/folder" names, and the folder in it; "" for none."""
    parts = str(source).split("/")
    return "/".join(parts[:2]), "/".join(parts[2:])


def _not_found(source: str | Path, error: Exception) -> UsageError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UsageError(f"text encoder {str(source)!r}: no local folder, and not from the hub: {reason}")


def find_folder(source: str | Path, revision: str | None, small: Sequence[str]) -> Path:
    """A local folder as it is, or that of a model on the hub, where ``HF_HOME`` and its like hold.

    Only the weights of one format are fetched, and the ``small`` files beside them: names or patterns. Of a model in a
    folder of its repository, "owner/name/folder", names count from that folder.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UsageError(f"revision={revision!r}: {folder} is a local folder and has none; leave it off")
        return folder
    import_transformers()  # names the extra to install; the hub's client comes with it
    from huggingface_hub import snapshot_download

    repo, inside = _repository(source)

    def fetch(*patterns: str) -> Path:
        wanted = [posixpath.normpath(posixpath.join(inside, name)) for name in (*small, *patterns)]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, **hub_options())) / inside

    try:
        found = fetch(*_SAFE)
        return found if _holds(found, _SAFE) else fetch(*_TORCH)
    except Exception as error:  # the client's errors and those of its network stack have no common base
        raise _not_found(source, error) from error


def load_encoder(folder: Path, dtype: torch.dtype, kind: str, what: str) -> Any:
    """The text model in a folder, of a class of ``transformers``, on the CPU and without gradients.

    Reads safetensors; where there are none, PyTorch files through the loader that accepts tensors only: weights are
    never unpickled. ``what`` names the model in errors.
    """
    transformers = import_transformers()
    safe = _holds(folder, _SAFE)
    if not safe and not _holds(folder, _TORCH):
        raise CheckpointError(f"{folder}: no model.safetensors or pytorch_model.bin; give the folder of a {what}")
    try:
        with quiet(transformers):
            model, info = getattr(transformers, kind).from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=safe,
                weights_only=True,
                output_loading_info=True,
            )
    except _DAMAGE as error:
        raise CheckpointError(f"{folder}: weights cannot be read ({error}); fetch them again") from error
    # Weights not in the files would be random numbers. Those of the decoder are expected to be left over.
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{folder}: not a whole {what}; {len(missing)} missing: {', '.join(missing[:8])}")
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        CheckpointError: if it cannot be read, or has no padding token.
    """
    transformers = import_transformers()
    # The class for a kind of model would rebuild the tokenizer from parts of tokenizer.json.
    kind = "PreTrainedTokenizerFast" if (folder / "tokenizer.json").is_file() else "AutoTokenizer"
    try:
        with quiet(transformers):
            tokenizer = getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers package raises plain Exception
        raise CheckpointError(f"{folder}: the tokenizer cannot be read ({error}); fetch it again") from error
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{folder}: the tokenizer has no padding token; fetch its configuration, too")
    return tokenizer


def warn_if_too_long(tokens: int, most: int) -> None:
    """Warns of a prompt whose end is left out."""
    if tokens > most:
        message = f"prompt of {tokens} tokens: the model reads {most} and ignores the end"
        warnings.warn(message, LongPromptWarning, stacklevel=3)


def _holds(folder: Path, patterns: Sequence[str]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without reports, such as that the decoder's weights are not used."""
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
