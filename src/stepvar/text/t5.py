"""T5 as text encoder: Flan-T5-XL for the Infinity models."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepvar.errors import UsageError
from stepvar.text.features import TextFeatures
from stepvar.text.offload import OffloadableEncoder, check_dtype
from stepvar.text.pretrained import find_folder, load_encoder, load_tokenizer

FLAN_T5_XL = "google/flan-t5-xl"


class LongPromptWarning(UserWarning):
    """A prompt has more tokens than the encoder reads."""


class T5Encoder(OffloadableEncoder):
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
        check_dtype(dtype)
        if max_length < 2:
            raise UsageError(f"max_length={max_length}: must be at least 2, a token and the end mark")
        folder = find_folder(source, revision)
        model = load_encoder(folder, dtype)
        config: Any = model.config
        self.max_length = max_length
        self.tokenizer = load_tokenizer(folder, config.eos_token_id)
        self._channels = int(config.d_model)
        super().__init__(str(source), model, dtype, device)

    @property
    def channels(self) -> int:
        """Channels C of the features: 2048 for Flan-T5-XL."""
        return self._channels

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
        rows = [self.tokens(prompt) for prompt in prompts]
        lengths = tuple(len(row) for row in rows)
        tokens = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
        read = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        hidden = self._run(tokens, read)
        return TextFeatures(hidden.masked_fill(~read.to(hidden.device)[..., None], 0), lengths)

    def _cast(self, model: nn.Module) -> None:
        """As ``transformers`` casts T5 at loading: in float16 the ``wo`` layers stay in float32."""
        for name, weight in model.named_parameters():
            wide = self.dtype == torch.float16 and ".wo." in name
            weight.data = weight.data.to(torch.float32 if wide else self.dtype)


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
