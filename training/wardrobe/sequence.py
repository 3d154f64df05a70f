"""Text encoder and transformer over all scales at once, with the true bits as input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.core.tokens import ScaleSchedule
from stepvar.kernels.norm import Norm
from stepvar.models.infinity.rope import rotary_table
from stepvar.models.infinity.transformer import Block, Conditioning, InfinityTransformer
from stepvar.models.layers import merge_heads, split_heads
from stepvar.text import WordEncoder, length_mask
from training.draws import wrong_draws
from training.transformer import initialise
from training.wardrobe.presets import WardrobePreset

ROOM = 20
"""Places for the words of a caption; one length for all batches, so that blocks are compiled once."""
SMALL_SCALE = 200
"""Scales of fewer tokens share one masked attention; larger ones attend one by one, without a mask."""
DROPOUT = 0.1


@dataclass
class Places:
    """Where each token of a concatenated pyramid lies, and whom it may attend to.

    Attributes:
        levels: (N,) scale of each token.
        ends: end of each scale in the sequence.
        cos, sin: (1, 1, N, head_dim / 2).
        merged: number of leading scales that share one attention, and its mask.
    """

    levels: Tensor
    ends: tuple[int, ...]
    cos: Tensor
    sin: Tensor
    merged: int
    mask: Tensor

    @classmethod
    def of(cls, schedule: ScaleSchedule, scales: int, head_dim: int, device: torch.device) -> Places:
        grids, frame = schedule.grids[:scales], schedule.frame or schedule.grids[-1]
        tables = [rotary_table(grid, frame, head_dim) for grid in grids]
        cos, sin = (torch.cat(column)[None, None].to(device) for column in zip(*tables, strict=True))
        sizes = torch.tensor([grid.size for grid in grids])
        levels = torch.arange(scales).repeat_interleave(sizes).to(device)
        ends = tuple(sizes.cumsum(0).tolist())
        merged = max(1, sum(grid.size < SMALL_SCALE for grid in grids))
        early = levels[: ends[merged - 1]]
        return cls(levels, ends, cos, sin, merged, early[:, None] >= early[None])


def attend(q: Tensor, k: Tensor, v: Tensor, ends: tuple[int, ...], merged: int, mask: Tensor) -> Tensor:
    """Every scale sees itself and the coarser ones; the scale of the scores is in the queries."""
    q, k = q.to(v.dtype), k.to(v.dtype)
    end = ends[merged - 1]
    seen = [F.scaled_dot_product_attention(q[:, :, :end], k[:, :, :end], v[:, :, :end], attn_mask=mask, scale=1.0)]
    for start, end in zip(ends[merged - 1 :], ends[merged:], strict=False):
        own = q[:, :, start:end]
        seen.append(F.scaled_dot_product_attention(own, k[:, :, :end], v[:, :, :end], scale=1.0))
    return torch.cat(seen, dim=2)


def run_block(
    block: Block,
    x: Tensor,
    modulation: Tensor,
    text: tuple[Tensor, Tensor, Tensor],
    rotary: tuple[Tensor, Tensor],
    reach: tuple[tuple[int, ...], int, Tensor],
    dropout: float,
) -> Tensor:
    """A block of the transformer on (B, N, C), with dropped channels in its updates.

    The same as the block's own ``forward`` without dropout (a test says so), in plain tensors, so that it compiles.

    Args:
        modulation: (B, 6, C).
        text: keys and values (B, heads, L, head_dim) and mask (B, 1, 1, L).
        reach: ends, merged and mask of :class:`Places`.
    """
    gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unsqueeze(2).unbind(1)
    keys, values, mask = text

    def attend_self(_: int, q: Tensor, k: Tensor, v: Tensor, _projection: object) -> Tensor:
        return attend(q, k, v, *reach)

    update = gate1 * block.sa(Norm("layer", scale=scale1, shift=shift1)(x), 0, attend_self, rotary)
    x = x + F.dropout(update, dropout)
    query = split_heads(block.ca.mat_q(block.ca_norm(x)), block.ca.heads)
    read = F.scaled_dot_product_attention(query, keys.to(query.dtype), values.to(query.dtype), attn_mask=mask)
    x = x + F.dropout(block.ca.proj(merge_heads(read)).to(x.dtype), dropout)
    return x + F.dropout(gate2 * block.ffn(Norm("layer", scale=scale2, shift=shift2)(x)), dropout)


torch._dynamo.config.recompile_limit = 32  # one variant for each shape
_compiled_block = torch.compile(run_block, dynamic=False)


class TextToBits(nn.Module):
    """Text encoder and transformer.

    Attributes:
        compiled: whether the blocks are compiled.
    """

    def __init__(self, preset: WardrobePreset) -> None:
        super().__init__()
        self.text = WordEncoder(**preset.text)
        self.transformer = InfinityTransformer(preset.model)
        self.compiled = False
        initialise(self.transformer)

    def forward(self, words: Tensor, lengths: list[int], dropped: Tensor, tokens: Tensor, places: Places) -> Tensor:
        """Logits (B, N, d, 2) of the bits of all scales.

        Args:
            words: (B, ROOM) padded behind ``lengths``, each below ``ROOM``.
            dropped: (B,) bool: without text.
            tokens: (B, N - 1, d), what the scales behind the first one read.
        """
        transformer = self.transformer
        condition = self.condition(words, lengths, dropped)
        x = torch.cat([transformer.first_tokens(condition), transformer.word_embed(tokens)], dim=1)
        x = x.float() + transformer.lvl_embed.weight[places.levels]
        run = _compiled_block if self.compiled and self.training else run_block
        reach, rotary = (places.ends, places.merged, places.mask), (places.cos, places.sin)
        dropout = DROPOUT if self.training else 0.0
        for layer, block in enumerate(transformer.blocks):
            memory = condition.memory[layer]
            assert memory.mask is not None  # no caption fills its room
            text = (memory.keys, memory.values, memory.mask)
            x = run(block, x, condition.modulation[layer].float(), text, rotary, reach, dropout)
        return transformer.logits(x, condition.pooled)

    def condition(self, words: Tensor, lengths: list[int], dropped: Tensor) -> Conditioning:
        features = self.text(words, lengths)
        batch, size = words.shape
        null = self.transformer.null_text(batch, size)
        mask = None if min(lengths) == size else length_mask(lengths, size).to(words.device)
        return self.transformer.condition(torch.where(dropped[:, None, None], null, features), mask)


def pad_words(text: WordEncoder, captions: list[str]) -> tuple[Tensor, list[int]]:
    """Word numbers (B, ROOM) of captions, and how many each has."""
    rows = [text.tokens(line)[: ROOM - 1] for line in captions]
    words = torch.full((len(rows), ROOM), text.end, dtype=torch.int64)
    for place, row in enumerate(rows):
        words[place, : len(row)] = torch.tensor(row)
    return words, [len(row) for row in rows]


def bit_losses(logits: Tensor, targets: list[Tensor]) -> Tensor:
    """Mean cross-entropy (scales,) of the bits, in nats."""
    sizes = [target.shape[-1] * target.shape[-2] for target in targets]
    margins = logits[..., 1] - logits[..., 0]
    losses = [
        F.binary_cross_entropy_with_logits(part, target.flatten(2).transpose(1, 2).float())
        for part, target in zip(margins.split(sizes, dim=1), targets, strict=True)
    ]
    return torch.stack(losses)


def drawn_wrongly(logits: Tensor, targets: list[Tensor], shares: Tensor, temperature: Tensor) -> list[Tensor]:
    """Per scale where (B, d, h, w) a draw from ``logits`` differs from the true bits; kept for a share of the bits.

    Args:
        shares, temperature: (B,).
    """
    true = torch.cat([target.flatten(2).transpose(1, 2) for target in targets], dim=1)
    wrong = wrong_draws(logits[..., 1] - logits[..., 0], true, shares, temperature)
    parts = wrong.split([target.shape[-2:].numel() for target in targets], dim=1)
    return [part.transpose(1, 2).unflatten(2, target.shape[-2:]) for part, target in zip(parts, targets, strict=True)]


def weighted(losses: Tensor, targets: list[Tensor]) -> Tensor:
    """Mean over scales, each weighted by the root of its tokens."""
    roots = losses.new_tensor([math.sqrt(target.shape[-1] * target.shape[-2]) for target in targets])
    return (losses * roots).sum() / roots.sum()
