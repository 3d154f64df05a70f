"""T5 as text encoder: Flan-T5-XL for the Infinity models."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stepvar.errors import UsageError
from stepvar.text.features import TextFeatures
from stepvar.text.pretrained import find_folder, load_encoder, load_tokenizer

FLAN_T5_XL = "google/flan-t5-xl"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class LongPromptWarning(UserWarning):
    """A prompt has more tokens than the encoder reads."""


class T5Encoder:
    """The encoder of a T5 model: prompts to its last hidden states, in float32.

    A prompt's features are those of its tokens and the end mark, nothing else: the padding of a batch is masked
    and does not change them. The batch is padded to its longest prompt, not to ``max_length``.

    Args:
        source: a name on the Hugging Face hub, or a local folder with ``config.json``, ``tokenizer.json`` and
            weights (``model*.safetensors``, or ``pytorch_model*.bin``).
        revision: branch, tag or commit on the hub.
        dtype: of the weights and the arithmetic: float32, bfloat16 or float16. In float16, which the published
            Infinity code uses, the last layer of each feed-forward part stays in float32: it overflows otherwise.
        device: where the weights rest and the work is done; see :meth:`enable_offload`.
        max_length: tokens read of a prompt, the end mark counted.

    Raises:
        UsageError: if ``transformers`` is not installed, or there is no such model.
        CheckpointError: if its files are missing, damaged, or not those of a T5 model.
    """

    def __init__(
        self,
        source: str | Path = FLAN_T5_XL,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
        max_length: int = 512,
    ) -> None:
        _check_dtype(dtype)
        if max_length < 2:
            raise UsageError(f"max_length={max_length}: must be at least 2, a token and the end mark")
        folder = find_folder(source, revision)
        model = load_encoder(folder, dtype)
        config: Any = model.config
        self.name = str(source)
        self.max_length = max_length
        self.tokenizer = load_tokenizer(folder, config.eos_token_id)
        self._channels = int(config.d_model)
        self._model: nn.Module | None = model
        self._dtype = dtype
        self._device = torch.device("cpu")
        self._offloaded = False
        self.to(device)

    @property
    def channels(self) -> int:
        """Channels C of the features: 2048 for Flan-T5-XL."""
        return self._channels

    @property
    def device(self) -> torch.device:
        """Where the work is done and the features appear."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; the features are float32."""
        return self._dtype

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> T5Encoder:
        """Moves the weights to a device or a precision, in place.

        Under :meth:`enable_offload` the device stays the one chosen there, so that moving a whole pipeline does not
        undo it. A precision once lost does not come back: load again for a higher one.

        Raises:
            UsageError: for another precision than float32, bfloat16 or float16.
        """
        if dtype is not None:
            _check_dtype(dtype)
            self._dtype = dtype
        if device is not None and not self._offloaded:
            self._device = torch.device(device)
        if self._model is not None:
            self._model.to("cpu" if self._offloaded else self._device)
            _cast(self._model, self._dtype)
        return self

    def enable_offload(self, execution_device: str | torch.device) -> T5Encoder:
        """Lets the weights rest on the CPU, and the work be done on ``execution_device``.

        - ``enable_offload("cuda")``: each call of :meth:`encode` copies the weights to the device and drops the copy
          when it is done. Nothing travels back. For a graphics card that cannot hold text encoder and image model.
        - ``enable_offload("cpu")``: encodes on the CPU; only the features travel to the image model. For a card
          that has no room for the text encoder at all; slower.

        Wrap the encoder in :class:`~stepvar.text.CachedEncoder` so that repeated prompts cost neither.
        """
        self._device = torch.device(execution_device)
        self._offloaded = True
        return self.to()

    def disable_offload(self) -> T5Encoder:
        """Lets the weights rest where the work is done again."""
        self._offloaded = False
        return self.to()

    def free(self) -> None:
        """Drops the weights. Prompts can no longer be encoded; features made before stay valid."""
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def tokens(self, prompt: str) -> list[int]:
        """Token numbers of a prompt and the end mark; of a prompt too long the end is left out, with a warning."""
        encoding = self.tokenizer.encode(prompt)
        tokens: list[int] = encoding.ids
        if len(tokens) <= self.max_length:
            return tokens
        kept = self.max_length - 1
        warnings.warn(
            f"prompt of {len(tokens)} tokens: the text encoder reads {self.max_length} and ignores the end, "
            + _quote(_words_from(prompt, encoding.offsets[kept][0])),
            LongPromptWarning,
            stacklevel=2,
        )
        return [*tokens[:kept], tokens[-1]]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features (B, L, C) in float32 on :attr:`device`, L being the tokens of the longest prompt.

        The empty prompt is a single end mark: the usual negative prompt.

        Raises:
            UsageError: for no prompts, and after :meth:`free`.
        """
        if not prompts:
            raise UsageError("prompts: none given")
        if self._model is None:
            raise UsageError(f"the weights of {self.name} were freed: load the text encoder again")
        rows = [self.tokens(prompt) for prompt in prompts]
        lengths = tuple(len(row) for row in rows)
        tokens = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
        read = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        tokens, read = tokens.to(self._device), read.to(self._device)
        hidden = self._run(self._model, tokens, read)
        return TextFeatures(hidden.float().masked_fill(~read[..., None], 0), lengths)

    def _run(self, model: nn.Module, tokens: Tensor, read: Tensor) -> Tensor:
        """tokens (B, L), read (B, L) false on padding -> last hidden states (B, L, C)."""
        inputs = {"input_ids": tokens, "attention_mask": read.long()}
        if not self._offloaded:
            hidden: Tensor = model(**inputs).last_hidden_state
            return hidden
        # The module keeps its weights on the CPU and works with a copy that lives as long as this call.
        visiting = {name: weight.to(self._device, non_blocking=True) for name, weight in model.named_parameters()}
        visited: Tensor = functional_call(model, visiting, kwargs=inputs).last_hidden_state
        return visited


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in _DTYPES:
        raise UsageError(f"dtype={dtype}: must be one of {', '.join(str(known) for known in _DTYPES)}")


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """As ``transformers`` casts T5 at loading: in float16 the ``wo`` layers stay in float32."""
    for name, weight in model.named_parameters():
        wide = dtype == torch.float16 and ".wo." in name
        weight.data = weight.data.to(torch.float32 if wide else dtype)


def _words_from(prompt: str, start: int) -> list[str]:
    """The words from a character on; a word that begins before it is not whole and counts."""
    while prompt[start : start + 1].isspace():  # some tokens begin with the space before the word
        start += 1
    while start > 0 and not prompt[start - 1].isspace():
        start -= 1
    return prompt[start:].split()


def _quote(words: Sequence[str], most: int = 20) -> str:
    """In one line, and not a page of it."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return f"{' '.join(words[:most])!r}{more}"
