"""Finds and reads the files of a T5 encoder. Weights are never unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from stepvar.errors import CheckpointError, UsageError

_SAFE = ("model*.safetensors", "model.safetensors.index.json")
_TORCH = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_SMALL = ("config.json", "tokenizer.json")
_DAMAGE = (OSError, RuntimeError, ValueError, LookupError, TypeError, SafetensorError, pickle.UnpicklingError)


def import_transformers() -> Any:
    """The ``transformers`` package.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise UsageError("the text encoder needs the package transformers: pip install 'stepvar[text]'") from None
    return transformers


def find_folder(source: str | Path, revision: str | None = None, small: Sequence[str] = _SMALL) -> Path:
    """A local folder as it is, or that of a model on the hub, downloaded if need be.

    Only the weights of one format are fetched. The hub's own settings hold: ``HF_HOME``, ``HF_TOKEN``,
    ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``.

    Args:
        small: names of the files beside the weights, or patterns of them.

    Raises:
        UsageError: if there is neither, or the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UsageError(f"revision={revision!r}: {folder} is a local folder and has none; leave it off")
        return folder
    import_transformers()  # names the extra to install; the hub's client comes with it
    from huggingface_hub import snapshot_download

    def fetch(*patterns: str) -> Path:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=[*small, *patterns]))

    try:
        found = fetch(*_SAFE)
        return found if _holds(found, _SAFE) else fetch(*_TORCH)
    except Exception as error:  # the client's errors and those of its network stack have no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"text encoder {str(source)!r}: no local folder, and not from the hub: {reason}") from error


def load_encoder(folder: Path, dtype: torch.dtype, kind: str = "T5EncoderModel", what: str = "T5 encoder") -> nn.Module:
    """The text model in a folder, on the CPU, without gradients; of a T5 model the encoder half.

    Reads safetensors; where there are none, PyTorch files through the loader that accepts tensors only.

    Args:
        kind: the class of ``transformers``.
        what: what it is, for errors.

    Raises:
        CheckpointError: if files are missing, damaged, or do not hold the whole model.
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
    module: nn.Module = model.eval().requires_grad_(False)
    return module


def load_tokenizer(folder: Path, end: int) -> Any:
    """The ``tokenizers.Tokenizer`` in a folder, without truncation and padding.

    ``tokenizer.json`` is read as it is: it says all, and the classes of ``transformers`` rebuild a T5 tokenizer from
    parts of it, by rules that change between versions.

    Args:
        end: number of the end mark, which must close every prompt.

    Raises:
        CheckpointError: if it is missing, damaged, or sets no end mark.
    """
    from tokenizers import Tokenizer  # comes with transformers

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; the folder of a T5 model needs it")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(f"{path}: damaged or truncated ({error}); fetch it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.encode("").ids != [end]:
        raise CheckpointError(f"{path}: does not close prompts with the end mark of T5, token {end}")
    return tokenizer


def _holds(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


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
