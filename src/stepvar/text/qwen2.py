"""A Qwen2 language model as text encoder: for the HART models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from stepvar.errors import CheckpointError, UsageError
from stepvar.text.features import ContextFeatures
from stepvar.text.pretrained import (
    OffloadableEncoder,
    check_dtype,
    find_folder,
    load_encoder,
    load_tokenizer,
    warn_if_too_long,
)

INSTRUCTION = "instruction.txt"
"""The file beside the weights that may hold the instruction."""


class Qwen2Encoder(OffloadableEncoder):
    """The last hidden states of a Qwen2 model, padding included, in float32.

    Every prompt takes exactly ``slots`` tokens; on which side padding lies, and with which token, is the folder's
    tokenizer's to say. An instruction is read before the prompt, and its hidden states are dropped.

    Args:
        source: a name on the Hugging Face hub, or a local folder with configuration, tokenizer and weights.
        instruction: None: the text of ``instruction.txt`` in the folder if there is one, else none; "": none.
            The published models were used with an instruction of their authors, which this project does not carry.
        slots: tokens per prompt.
        revision: branch, tag or commit on the hub.
        dtype: of the weights and the arithmetic: float32, bfloat16 or float16.
        device: where the weights rest and the work is done.

    Raises:
        UsageError: if ``transformers`` is not installed, or there is no such model.
        CheckpointError: if its files are missing or damaged, or its tokenizer has no padding.
    """

    def __init__(
        self,
        source: str | Path,
        instruction: str | None = None,
        *,
        slots: int = 300,
        revision: str | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
    ) -> None:
        check_dtype(dtype)
        if slots < 1:
            raise UsageError(f"slots={slots}: must be at least 1")
        folder = find_folder(source, revision, ("*.json", "merges.txt", INSTRUCTION))
        self.slots = slots
        self.instruction = instruction
        if instruction is None:
            path = folder / INSTRUCTION
            try:
                self.instruction = path.read_text(encoding="utf-8") if path.is_file() else ""
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: cannot be read ({error})") from None
        self.tokenizer = load_tokenizer(folder)
        super().__init__(str(source), load_encoder(folder, dtype, "AutoModel", "Qwen2 model"), dtype, device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> ContextFeatures:
        """Features (B, slots, C) on :attr:`device`, with the mask of the words and their places.

        Raises:
            UsageError: for no prompts, and after ``free``.
        """
        if not prompts:
            raise UsageError("prompts: none given")
        tokens = torch.tensor([self.tokens(prompt) for prompt in prompts])
        mask = tokens != self.tokenizer.pad_token_id
        # The instruction takes at most as many tokens as a prompt.
        asked = self.tokenizer(self.instruction, truncation=True, max_length=self.slots)["input_ids"]
        before = torch.tensor(asked if self.instruction else [], dtype=torch.long).expand(len(prompts), -1)
        read = torch.cat([torch.ones_like(before, dtype=torch.bool), mask], dim=1)
        hidden = self._run(torch.cat([before, tokens], dim=1), read)[:, before.shape[1] :]
        return ContextFeatures.of(hidden, mask.to(hidden.device))

    def tokens(self, prompt: str) -> list[int]:
        """Numbers of exactly ``slots`` tokens; of a prompt too long the end is left out, with a warning."""
        warn_if_too_long(len(self.tokenizer(prompt)["input_ids"]), self.slots)
        filled = self.tokenizer(prompt, padding="max_length", truncation=True, max_length=self.slots)
        numbers: list[int] = filled["input_ids"]
        return numbers
