"""T5 as text encoder: Flan-T5-XL for the Infinity models."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from stepvar.errors import CheckpointError, UsageError
from stepvar.text.features import TextFeatures
from stepvar.text.pretrained import LongPromptWarning, OffloadableEncoder, check_dtype, find_folder, load_encoder

FLAN_T5_XL = "google/flan-t5-xl"

_QUOTED = 20
"""Words of what is left out that a warning names."""


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

    Attributes:
        channels: channels C of the features: 2048 for Flan-T5-XL.

    Raises:
        UsageError: if ``transformers`` is not installed, or there is no such model.
        CheckpointError: if its files are missing, damaged, or not those of a T5 model.
    """

    keeps_float32: ClassVar[str | None] = ".wo."  # as ``transformers`` casts T5 at loading

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
        folder = find_folder(source, revision, ("config.json", "tokenizer.json"))
        model = load_encoder(folder, dtype, "T5EncoderModel", "T5 encoder")
        self.max_length = max_length
        self.tokenizer = _tokenizer(folder, model.config.eos_token_id)
        self.channels = int(model.config.d_model)
        super().__init__(str(source), model, dtype, device)

    def tokens(self, prompt: str) -> list[int]:
        """Token numbers of a prompt and the end mark; of a prompt too long the end is left out, with a warning."""
        encoding = self.tokenizer.encode(prompt)
        tokens: list[int] = encoding.ids
        if len(tokens) <= self.max_length:
            return tokens
        kept = self.max_length - 1
        ignored = _words_from(prompt, encoding.offsets[kept][0])
        more = f" and {len(ignored) - _QUOTED} more" if len(ignored) > _QUOTED else ""
        warnings.warn(
            f"prompt of {len(tokens)} tokens: the text encoder reads {self.max_length} and ignores the end, "
            f"{' '.join(ignored[:_QUOTED])!r}{more}",
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
        return self._features([self.tokens(prompt) for prompt in prompts])


def _tokenizer(folder: Path, end: int) -> Any:
    """The ``tokenizers.Tokenizer`` in a folder, without truncation and padding; ``end`` must close every prompt.

    ``tokenizer.json`` is read as it is: it says all, and the classes of ``transformers`` rebuild a T5 tokenizer from
    parts of it, by rules that change between versions.
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


def _words_from(prompt: str, start: int) -> list[str]:
    """The words from a character on; a word that begins before it is not whole and counts."""
    while prompt[start : start + 1].isspace():  # some tokens begin with the space before the word
        start += 1
    while start > 0 and not prompt[start - 1].isspace():
        start -= 1
    return prompt[start:].split()
