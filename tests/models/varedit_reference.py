"""VAREdit written down plainly: all keys that a scale sees in one list, no pruning, no batch, the most likely bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.models.infinity.transformer import Block
from stepvar.models.varedit import VAREdit

Pair = tuple[Tensor, Tensor]


def positions(schedule: ScaleSchedule, full: ScaleSchedule) -> Tensor:
    """Where source and target tokens of a schedule stand (N, 2), given the 1M schedule of the same shape."""
    last = full[-1]
    places = [(last.h + i, last.w + j) for i in range(last.h) for j in range(last.w)]
    for grid in full:
        places += [
            (round(i * last.h / grid.h), round(j * last.w / grid.w)) for i in range(grid.h) for j in range(grid.w)
        ]
    return torch.tensor(places[: schedule[-1].size + schedule.size], dtype=torch.float32)


class Reference:
    """One edit: a conditional row, and an unconditional one behind it.

    Args:
        texts: features (L, C) of both rows.
        places: see :func:`positions`.
        cfg_layers: where the rows are combined, as in :class:`~stepvar.core.plan.Settings`.
    """

    def __init__(self, model: VAREdit, texts: Sequence[Tensor], places: Tensor, cfg_layers: Sequence[int]) -> None:
        self.config, self.net, self.cfg_layers = model.config, model.transformer, cfg_layers
        normed = [self.net.text_norm(one[None]) for one in texts]
        self.pooled = torch.cat([self.net.text_proj_for_sos.ca(one, None) for one in normed])
        self.context = [self.net.text_proj_for_ca(one) for one in normed]
        self.shared = self.net.shared_ada_lin(self.pooled).unflatten(-1, (6, -1))
        quarter = self.config.head_dim // 4
        frequencies = 10000.0 ** (-torch.arange(quarter) / quarter)
        self.angles = torch.cat([places[:, :1] * frequencies, places[:, 1:] * frequencies], dim=1)
        self.seen: list[list[Pair]] = [[] for _ in self.net.blocks]

    def run(self, source: Tensor, schedule: ScaleSchedule, guidance: Sequence[float]) -> list[Tensor]:
        """The guided logits (1, N, bits, 2) of every scale, from a source (1, d, H, W)."""
        self.full, self.place = (schedule[-1].h, schedule[-1].w), 0
        self.blocks(self.embed(source, self.full), len(schedule) - 1, self.full, 1.0, source=True)
        total, found = torch.zeros_like(source), []
        for index, grid in enumerate(schedule):
            size = (grid.h, grid.w)
            x = self.pooled[:, None] + self.net.pos_start if index == 0 else self.embed(total, size)
            x = self.blocks(x, index, size, guidance[index])
            logits, own = self.net.logits(x, self.pooled), guidance[index] if 0 in self.cfg_layers else 1.0
            found.append(own * logits[:1] + (1 - own) * logits[1:])
            bits = found[-1].argmax(-1).transpose(1, 2).unflatten(2, size)
            bits = F.pixel_shuffle(bits, 2) if self.config.patchify else bits
            codes = (2.0 * bits - 1) / math.sqrt(self.config.tokenizer.code_bits)
            total = total + F.interpolate(codes, total.shape[-2:], mode="bilinear")
        return found

    def embed(self, latent: Tensor, size: tuple[int, int]) -> Tensor:
        cells = 2 if self.config.patchify else 1
        small = F.interpolate(latent, (cells * size[0], cells * size[1]), mode="bilinear")
        tokens = F.pixel_unshuffle(small, cells).flatten(2).transpose(1, 2)
        return self.net.word_embed(tokens).repeat(2, 1, 1)

    def blocks(self, x: Tensor, level: int, size: tuple[int, int], guidance: float, source: bool = False) -> Tensor:
        first, self.place = self.place, self.place + x.shape[1]
        angles = self.angles[first : self.place]
        depth, chunk = self.config.depth, self.config.depth // self.config.block_chunks
        for layer, block in enumerate(self.net.blocks):
            if layer == 0 or (self.config.level_every_chunk and layer % chunk == 0):
                x = x + self.net.lvl_embed.weight[level]
            x = self.block(block, layer, x, angles, size, source)
            if layer - depth in self.cfg_layers:
                x = (guidance * x[:1] + (1 - guidance) * x[1:]).repeat(2, 1, 1) if guidance != 1 else x
        return x

    def block(self, block: Block, layer: int, x: Tensor, angles: Tensor, size: tuple[int, int], source: bool) -> Tensor:
        gate1, gate2, scale1, scale2, shift1, shift2 = (block.ada_gss[0] + self.shared)[:, :, None].unbind(1)
        heads = self.config.heads
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
        joint = normed @ block.sa.joint.weight.T + torch.cat(
            [block.sa.q_bias, torch.zeros_like(block.sa.q_bias), block.sa.v_bias]
        )
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in joint.chunk(3, dim=-1))
        q = F.normalize(q, dim=-1) * block.sa.scale_mul_1H11.clamp(max=math.log(100)).exp()
        q, k = turned(q, angles), turned(F.normalize(k, dim=-1), angles)
        self.seen[layer].append((k, v))
        pairs = self.seen[layer]
        if layer == 0 and not source:  # the source at the size of the scale
            pairs = [tuple(self.shrunk(part, size) for part in pairs[0]), *pairs[1:]]  # type: ignore[list-item]
        keys, values = (torch.cat(part, dim=2) for part in zip(*pairs, strict=True))
        seen = (q @ keys.transpose(2, 3)).softmax(-1) @ values
        x = x + gate1 * block.sa.proj(seen.transpose(1, 2).flatten(2))
        x = x + torch.cat([self.cross(block, x[row : row + 1], self.context[row]) for row in range(2)])
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
        return x + gate2 * block.ffn.fc2(F.gelu(block.ffn.fc1(normed), approximate="tanh"))

    def shrunk(self, part: Tensor, size: tuple[int, int]) -> Tensor:
        """(2, heads, N, head_dim) of the source, averaged to a size."""
        rows = []
        for head in part.flatten(0, 1):
            cells = head.T.unflatten(1, self.full)
            rows.append(F.adaptive_avg_pool2d(cells[None], size)[0].flatten(1).T)
        return torch.stack(rows).unflatten(0, part.shape[:2])

    def cross(self, block: Block, x: Tensor, text: Tensor) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:], block.ca_norm.weight, block.ca_norm.bias, 1e-6)
        k, v = (text @ block.ca.mat_kv.weight.T).chunk(2, dim=-1)
        q, k, v = (
            part.unflatten(-1, (self.config.heads, -1)).transpose(1, 2)
            for part in (block.ca.mat_q(normed), k, v + block.ca.v_bias)
        )
        seen = (q @ k.transpose(2, 3) / math.sqrt(self.config.head_dim)).softmax(-1) @ v
        return block.ca.proj(seen.transpose(1, 2).flatten(2))


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Pairs of neighbouring channels of (R, heads, N, D), each turned by its angle (N, D / 2)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
