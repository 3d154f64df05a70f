"""The small text encoder of the embedded models."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stepvar.errors import UsageError
from stepvar.text.features import TextFeatures

EXAMPLE_WORDS = 5


class UnknownWordWarning(UserWarning):
    """A prompt has words that a closed-vocabulary encoder does not know."""


class WordEncoder(nn.Module):
    """A small transformer over a closed vocabulary of words: the text encoder of the embedded models.

    Args:
        vocabulary: the known words; one more entry stands for the end of the prompt.
        synonyms: words read as another word.
        width: channels of the features.
        max_words: longest prompt.

    Attributes:
        example: a few of the words that it knows, as a prompt.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        synonyms: Mapping[str, str],
        width: int = 256,
        layers: int = 2,
        heads: int = 4,
        hidden: int = 512,
        max_words: int = 31,
    ) -> None:
        super().__init__()
        self.index = {word: number for number, word in enumerate(vocabulary)}
        self.index |= {word: self.index[known] for word, known in synonyms.items()}
        self.end = len(vocabulary)
        self.max_words = max_words
        longer = sorted(sorted(vocabulary, key=len)[len(vocabulary) // 2 :])  # the short ones are articles and the like
        self.example = " ".join(longer[:: -(-len(longer) // EXAMPLE_WORDS) or 1][:max_words])
        self.words = nn.Embedding(len(vocabulary) + 1, width)
        self.places = nn.Parameter(torch.randn(max_words + 1, width))  # as loud as the words: order binds them
        layer = nn.TransformerEncoderLayer(
            width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    def check(self, prompt: str, name: str = "prompt") -> list[str]:
        """The words of a prompt.

        Args:
            name: of the argument, for errors.

        Raises:
            UsageError: when the prompt is too long, or has no known word.
        """
        words = _words(prompt)
        if len(words) > self.max_words:
            raise UsageError(f"{name} of {len(words)} words: this model reads at most {self.max_words}; shorten it")
        if not any(word in self.index for word in words):
            some = self.example.replace(" ", ", ")
            raise UsageError(f"{name} {prompt!r}: this model knows none of its words; it knows words such as {some}")
        return words

    def tokens(self, prompt: str) -> list[int]:
        """Word numbers of a prompt and the end mark; unknown words are left out, with a warning.

        Raises:
            UsageError: as :meth:`check`.
        """
        words = self.check(prompt)
        if remark := self.remark(prompt):
            warnings.warn(remark, UnknownWordWarning, stacklevel=2)
        return [*(self.index[word] for word in words if word in self.index), self.end]

    def remark(self, prompt: str) -> str:
        """What to tell of the words of a prompt that are left out; empty if all are known."""
        unknown = sorted({word for word in _words(prompt) if word not in self.index})
        return f"this model knows only the words of its vocabulary and ignores {', '.join(unknown)}" if unknown else ""

    def forward(self, tokens: Tensor, lengths: Sequence[int] | Tensor) -> Tensor:
        """tokens (B, L) padded after ``lengths`` -> features (B, L, width)."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        padding = place >= torch.as_tensor(lengths, device=tokens.device)[:, None]
        features = self.words(tokens) + self.places[: tokens.shape[1]]
        encoded: Tensor = self.layers(features, src_key_padding_mask=padding)
        return encoded

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        rows = [self.tokens(prompt) for prompt in prompts]
        lengths = tuple(len(row) for row in rows)
        padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=self.end)
        return TextFeatures(self(padded.to(self.places.device), lengths), lengths)


def example_prompt(encoder: Any) -> str:
    """A prompt that an encoder reads as a whole, to measure and to warm up with."""
    encoder = getattr(encoder, "encoder", encoder)  # behind a cache
    return encoder.example if isinstance(encoder, WordEncoder) else "a red circle on sand"


def _words(prompt: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", prompt.lower())
