"""The text towers of two CLIP models side by side as text encoder: for the Switti models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stepvar.errors import UsageError
from stepvar.text.features import PooledFeatures, TextFeatures
from stepvar.text.pretrained import (
    OffloadableEncoder,
    check_dtype,
    find_folder,
    load_encoder,
    load_tokenizer,
    sources_of,
    warn_if_too_long,
)

CLIP_TOWERS = "openai/clip-vit-large-patch14,laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
"""Two models on the hub."""

CONTEXT = 77
"""Tokens that CLIP reads, begin and end mark counted."""


@dataclass(frozen=True)
class TowersOutput:
    """Last hidden states (B, L, C), those of all towers side by side on C."""

    last_hidden_state: Tensor


class Towers(nn.Module):
    """Text models that read the same prompts, each in its own tokens."""

    def __init__(self, towers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> TowersOutput:
        """input_ids and attention_mask (B, towers, L)."""
        seen = zip(self.towers, input_ids.unbind(1), attention_mask.unbind(1), strict=True)
        hidden = [tower(input_ids=ids, attention_mask=mask).last_hidden_state for tower, ids, mask in seen]
        return TowersOutput(torch.cat(hidden, dim=-1))


class CLIPEncoder(OffloadableEncoder):
    """The text towers of two CLIP models, without their projections, in float32.

    A prompt's features are the last hidden states of both, after the final norm, side by side on the channels; as many
    tokens as the second tower's tokenizer gives it, begin and end mark counted. Its pooled vector is that of the second
    tower at the end mark. Attention is causal, so padding changes none of these and is left out.

    Args:
        source: two names on the Hugging Face hub, or local folders, with a comma between them; each with configuration,
            tokenizer and weights.
        revision: branch, tag or commit on the hub, of both.
        dtype: of the weights and the arithmetic: float32, bfloat16 or float16.
        device: where the weights rest and the work is done.

    Attributes:
        channels: of the features: 2048 for the usual two.
        pooled_channels: of the pooled vector: 1280.

    Raises:
        UsageError: if ``transformers`` is not installed, there is no such model, or not two are named.
        CheckpointError: if files are missing or damaged, or a tokenizer has no padding.
    """

    def __init__(
        self,
        source: str | Path = CLIP_TOWERS,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
    ) -> None:
        check_dtype(dtype)
        names = sources_of(source)
        if len(names) != 2:
            raise UsageError(f"text_encoder={str(source)!r}: give two CLIP models with a comma between them")
        folders = [find_folder(name, revision, ("*.json", "merges.txt")) for name in names]
        self.tokenizers = [load_tokenizer(folder) for folder in folders]
        towers: list[Any] = [load_encoder(folder, dtype, "CLIPTextModel", "CLIP text model") for folder in folders]
        self.pooled_channels = int(towers[1].config.hidden_size)
        self.channels = int(towers[0].config.hidden_size) + self.pooled_channels
        super().__init__(str(source), Towers(towers), dtype, device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PooledFeatures:
        """Features (B, L, C) on :attr:`device`, L being the tokens of the longest prompt, and pooled vectors (B, P).

        The empty prompt is a begin and an end mark: the usual negative prompt.

        Raises:
            UsageError: for no prompts, and after ``free``.
        """
        if not prompts:
            raise UsageError("prompts: none given")
        for prompt in prompts:
            warn_if_too_long(len(self.tokenizers[1](prompt)["input_ids"]), CONTEXT)
        filled = [
            tokenizer(list(prompts), padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
            for tokenizer in self.tokenizers
        ]
        tokens, read = (torch.stack([one[name] for one in filled], dim=1) for name in ("input_ids", "attention_mask"))
        lengths = read[:, 1].sum(dim=1)
        longest = int(lengths.max())
        hidden = self._run(tokens[..., :longest], read[..., :longest])
        there = (torch.arange(longest) < lengths[:, None]).to(hidden.device)
        ends = (lengths - 1).to(hidden.device)
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), ends, -self.pooled_channels :]
        text = TextFeatures(hidden.masked_fill(~there[..., None], 0), tuple(lengths.tolist()))
        return PooledFeatures(text, pooled)
