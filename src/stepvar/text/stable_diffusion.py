"""The CLIP text tower of a Stable Diffusion pipeline as text encoder: that of version 2.1 for the STAR models."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stepvar.errors import CheckpointError, UsageError
from stepvar.text.features import TextFeatures
from stepvar.text.pretrained import (
    LongPromptWarning,
    OffloadableEncoder,
    check_dtype,
    find_folder,
    import_transformers,
    load_encoder,
    quiet,
)

STABLE_DIFFUSION_2_1 = "stabilityai/stable-diffusion-2-1/text_encoder"

TOKENIZER = "tokenizer"
"""The folder beside that of the weights in which pipelines of diffusers keep the tokenizer."""


class StableDiffusionEncoder(OffloadableEncoder):
    """The text tower of a CLIP model: prompts to its last hidden states after the last norm, in float32.

    A prompt's features are those of its tokens between the marks of beginning and end, both included. The tower is
    causal, so padding behind them would change nothing; the last one, at the end mark, is what CLIP pools, without
    its projection.

    Args:
        source: a name on the Hugging Face hub, with the folder inside it where there is one
            ("owner/name/text_encoder"), or a local folder. The tokenizer lies with the weights, or in a folder
            ``tokenizer`` beside them.
        revision: branch, tag or commit on the hub.
        dtype: of the weights and the arithmetic: float32, bfloat16 or float16.
        device: where the weights rest and the work is done; see :meth:`enable_offload`.
        max_length: tokens read of a prompt, both marks counted.

    Attributes:
        channels: channels C of the features: 1024 for Stable Diffusion 2.1.

    Raises:
        UsageError: if ``transformers`` is not installed, or there is no such model.
        CheckpointError: if its files are missing, damaged, or not those of a CLIP text tower.
    """

    def __init__(
        self,
        source: str | Path = STABLE_DIFFUSION_2_1,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        max_length: int = 77,
    ) -> None:
        check_dtype(dtype)
        if max_length < 2:
            raise UsageError(f"max_length={max_length}: must be at least 2, the marks of beginning and end")
        own = ("*.json", "merges.txt")
        folder = find_folder(source, revision, (*own, *(f"../{TOKENIZER}/{name}" for name in own)))
        model = load_encoder(folder, dtype, "CLIPTextModel", "CLIP text tower")
        self.max_length = max_length
        self.tokenizer = _tokenizer(folder)
        self.channels = int(model.config.hidden_size)
        super().__init__(str(source), model, dtype, device)

    def tokens(self, prompt: str) -> list[int]:
        """Token numbers of a prompt with both marks; of a prompt too long the end is left out, with a warning."""
        length = len(self.tokenizer(prompt)["input_ids"])
        if length > self.max_length:
            message = f"prompt of {length} tokens: the text encoder reads {self.max_length} and ignores the end"
            warnings.warn(message, LongPromptWarning, stacklevel=2)
        numbers: list[int] = self.tokenizer(prompt, truncation=True, max_length=self.max_length)["input_ids"]
        return numbers

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features (B, L, C) in float32 on :attr:`device`, L being the tokens of the longest prompt.

        Raises:
            UsageError: for no prompts, and after :meth:`free`.
        """
        if not prompts:
            raise UsageError("prompts: none given")
        return self._features([self.tokens(prompt) for prompt in prompts])


def _tokenizer(folder: Path) -> Any:
    """The tokenizer with the weights, or beside them.

    Raises:
        CheckpointError: if there is none that can be read, or it does not put marks around prompts.
    """
    transformers = import_transformers()
    beside = folder.parent / TOKENIZER
    place = beside if beside.is_dir() else folder
    try:
        with quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:  # the tokenizers package raises plain Exception
        raise CheckpointError(f"{place}: the tokenizer cannot be read ({error}); fetch it again") from error
    if tokenizer("")["input_ids"] != [tokenizer.bos_token_id, tokenizer.eos_token_id]:
        raise CheckpointError(f"{place}: the tokenizer does not put CLIP's marks around prompts; fetch it again")
    return tokenizer
