"""HART written down once more, slowly: every row and token, from a state dict alone, with growing lists of keys.

It shares no code with the package but resampling by PyTorch, and follows the order in which the original computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.models.hart import HARTConfig

State = Mapping[str, Tensor]


class Reference:
    """One generation without sampling: the most likely codes, hard, and the noise as it is told."""

    def __init__(self, config: HARTConfig, weights: State, tokenizer: State) -> None:
        self.config, self.w, self.t = config, weights, tokenizer
        self.keys: list[list[Tensor]] = [[] for _ in range(config.depth)]
        self.values: list[list[Tensor]] = [[] for _ in range(config.depth)]
        self.angles: dict[tuple[int, int], Tensor] = {}

    def norm(self, x: Tensor, name: str) -> Tensor:
        if self.config.positions == "learned" and name != "context_norm":
            centred = x - x.mean(-1, keepdim=True)
            x = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"] if f"{name}.weight" in self.w else x
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[f"{name}.weight"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        bias = self.w.get(f"{name}.bias")
        return x @ self.w[f"{name}.weight"].T + (0 if bias is None else bias)

    def sinusoid(self, number: float, name: str) -> Tensor:
        angles = torch.tensor([number * math.exp(-math.log(10000) * k / 128) for k in range(128)])
        inner = self.linear(torch.cat([angles.cos(), angles.sin()]), f"{name}.mlp.0")
        return self.linear(inner * inner.sigmoid(), f"{name}.mlp.2")

    def level(self, scale: int) -> Tensor:
        table = self.config.levels == "table"
        return self.w["lvl_embed.weight"][scale] if table else self.sinusoid(scale, "lvl_embed")

    def turned(self, x: Tensor, row: int, scale: int, tokens: Tensor | None) -> Tensor:
        """x (heads, N, D) of the tokens (N,) of one row; None: of all."""
        if (row, scale) not in self.angles:
            dim, count = x.shape[-1], self.config.patch_nums[scale] ** 2 if scale else x.shape[1]
            table = [[self.angle(row, scale, token, i, dim) for i in range(dim)] for token in range(count)]
            self.angles[row, scale] = torch.tensor(table, dtype=torch.float64)
        angles = self.angles[row, scale] if tokens is None else self.angles[row, scale][tokens]
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos().float() + torch.cat([-second, first], dim=-1) * angles.sin().float()

    def angle(self, row: int, scale: int, token: int, channel: int, dim: int) -> float:
        side, last = self.config.patch_nums[scale], self.config.patch_nums[-1]
        if scale == 0:
            return float(self.places[row, token]) * 10000 ** (-2 * (channel % (dim // 2)) / dim)
        cell = token // side if channel < dim // 2 else token % side
        place = cell * last / side + float(self.places[row, -1])
        return place * 10000 ** (-4 * (channel % (dim // 4)) / dim)

    def attention(self, x: Tensor, layer: int, scale: int, tokens: Tensor | None) -> Tensor:
        name, config = f"blocks.{layer}.attn", self.config
        key = "qkv_proj" if config.positions == "rotary" else "mat_qkv"
        joined = x @ self.w[f"{name}.{key}.weight"].T
        q, k, v = joined.chunk(3, dim=-1)
        q, v = q + self.w[f"{name}.q_bias"], v + self.w[f"{name}.v_bias"]
        q, k, v = (part.unflatten(-1, (config.heads, -1)).transpose(1, 2) for part in (q, k, v))
        factor = 0.25 / math.sqrt(config.head_dim)
        if config.unit_attention:
            q, k, factor = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True), 1.0
            q = q * self.w[f"{name}.scale_mul_1H11"].clamp(max=math.log(100)).exp()
        if config.positions == "rotary":
            rows = [(r, scale, None if tokens is None else tokens[r]) for r in range(len(q))]
            q, k = (torch.stack([self.turned(p[row[0]], *row) for row in rows]) for p in (q, k))
        self.keys[layer].append(k)
        self.values[layer].append(v)
        shares = (q @ torch.cat(self.keys[layer], 2).transpose(2, 3) * factor).softmax(-1)
        return self.linear((shares @ torch.cat(self.values[layer], 2)).transpose(1, 2).flatten(2), f"{name}.proj")

    def feed_forward(self, x: Tensor, layer: int) -> Tensor:
        name = f"blocks.{layer}.ffn"
        if self.config.feed_forward == "swiglu":
            gate = self.linear(x, f"{name}.gate_proj")
            return self.linear(gate * gate.sigmoid() * self.linear(x, f"{name}.up_proj"), f"{name}.down_proj")
        h = self.linear(x, f"{name}.fc1")
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        return self.linear(h, f"{name}.fc2")

    def block(self, x: Tensor, layer: int, scale: int) -> Tensor:
        x = x + self.update("attn", x, layer, scale)
        return x + self.update("ffn", x, layer, scale)

    def update(self, sublayer: str, x: Tensor, layer: int, scale: int, tokens: Tensor | None = None) -> Tensor:
        """What a sub-layer adds to x (R, N, C), all tokens of a scale or those at ``tokens`` (R, N)."""
        name, config = f"blocks.{layer}", self.config
        mean = (self.cond * self.mask[..., None]).sum(1) / self.mask.sum(1, keepdim=True).clamp(min=1)
        if config.modulation == "shared":
            six = self.w[f"{name}.scale_shift_table"][None] + mean[:, None]
        elif config.modulation == "own":
            pooled = self.cond.max(dim=1).values if config.pooling == "max" else mean
            six = self.linear(pooled * pooled.sigmoid(), f"{name}.ada_lin.1").view(len(x), 6, -1)
        else:
            six = torch.tensor([1.0, 1, 0, 0, 0, 0]).view(1, 6, 1).expand(len(x), 6, x.shape[-1])
        g1, g2, s1, s2, b1, b2 = (six[:, i, None] for i in range(6))
        normed = self.norm(x, f"{name}.ln_wo_grad")
        if sublayer == "attn":
            return g1 * self.attention(normed * (1 + s1) + b1, layer, scale, tokens)
        return g2 * self.feed_forward(normed * (1 + s2) + b2, layer)

    def logits(self, x: Tensor) -> Tensor:
        pooled = self.cond.max(dim=1).values
        scale, shift = self.linear(pooled * pooled.sigmoid(), "head_nm.ada_lin.1")[:, None].chunk(2, dim=-1)
        return self.linear(self.norm(x, "head_nm.ln_wo_grad") * (1 + scale) + shift, "head")

    def run(self, features: Tensor, mask: Tensor, places: Tensor, cfg: float, noise: list[Tensor]) -> dict[str, Any]:
        """Indices per scale, the last hidden states, and the accumulated latent."""
        config, samples = self.config, len(features)
        both = torch.cat([features, torch.zeros_like(features)])
        self.mask = torch.cat([mask, torch.zeros_like(mask)]).float()
        self.mask[samples:, 0] = 1
        self.places = torch.cat([places, torch.zeros_like(places)])
        text = self.norm(both, "context_norm") if config.context_norm else both
        self.cond = self.linear(text, "context_embed")
        learned = config.positions == "learned"
        x, start = self.cond + self.level(0), config.context_tokens
        if learned:
            x = x + self.w["pos_start"] + self.w["pos_1LC"][:, :start]
        sides, channels = config.patch_nums, config.tokenizer.channels
        last, full = len(sides) - 1, sides[-1]
        total = torch.zeros(samples, channels, full, full)
        indices = []
        for scale, side in enumerate(sides):
            if scale:
                tokens = F.adaptive_avg_pool2d(total, side).flatten(2).transpose(1, 2)
                x = (self.linear(tokens, "word_embed") + self.level(scale)).repeat(2, 1, 1)
                if learned:
                    x, start = x + self.w["pos_1LC"][:, start : start + side**2], start + side**2
            for layer in range(config.depth):
                x = self.block(x, layer, scale)
            t = cfg * min(scale, last - 1) / last
            seen = self.logits(x)[:, -1:] if scale == 0 else self.logits(x)
            guided = (1 + t) * seen[:samples] - t * seen[samples:]
            indices.append(guided.argmax(dim=-1))
            codes = self.t["quantize.embedding.weight"][indices[-1]]
            codes = codes.transpose(1, 2).view(samples, channels, side, side)
            total = total + (codes if scale == last else self.phi(codes, scale))
        rest = self.diffuse(x, indices[-1], t, noise)
        total = total + rest.transpose(1, 2).view_as(total)
        return {"indices": indices, "hidden": x, "latent": total}

    def phi(self, codes: Tensor, scale: int) -> Tensor:
        side, last = self.config.patch_nums[-1], len(self.config.patch_nums) - 1
        if codes.shape[-1] != side:
            codes = F.interpolate(codes, size=(side, side), mode="bicubic")
        ticks = [1 / 12, 13 / 36, 23 / 36, 11 / 12]
        name = f"quantize.quant_resi.qresi_ls.{min(range(4), key=lambda i: abs(ticks[i] - scale / last))}"
        return 0.5 * codes + 0.5 * F.conv2d(codes, self.t[f"{name}.weight"], self.t[f"{name}.bias"], padding=1)

    def diffuse(self, x: Tensor, indices: Tensor, t: float, noise: list[Tensor]) -> Tensor:
        embedded = self.linear(self.t["quantize.embedding.weight"][indices], "word_embed").repeat(2, 1, 1)
        z = self.norm(x + embedded, "decoder_norm")
        sample, steps = noise[0], self.config.diffusion_steps
        kept = [round(i * 999 / (steps - 1)) for i in range(steps)]
        alphas, left = [], 1.0
        for i in range(1000):
            here, there = (math.cos((u / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (i, i + 1))
            left *= 1 - min(1 - there / here, 0.999)
            alphas.append(left)
        bars = [alphas[step] for step in kept]
        for i in reversed(range(steps)):
            before = bars[i - 1] if i else 1.0
            beta = 1 - bars[i] / before
            noises, shares = self.network(torch.cat([sample, sample]), z, kept[i]).chunk(2, dim=-1)
            half = len(sample)
            eps = (1 + t) * noises[:half] - t * noises[half:]
            clean = ((sample - math.sqrt(1 - bars[i]) * eps) / math.sqrt(bars[i])).clamp(-1, 1)
            mean = math.sqrt(before) * beta / (1 - bars[i]) * clean
            mean = mean + math.sqrt(1 - beta) * (1 - before) / (1 - bars[i]) * sample
            share, least = (shares[:half] + 1) / 2, beta * (1 - before) / (1 - bars[i])
            if i == 0:
                return 0.6 * mean
            variance = share * math.log(beta) + (1 - share) * math.log(least)
            sample = mean + (variance / 2).exp() * noise[steps - i]
        raise AssertionError

    def network(self, x: Tensor, z: Tensor, step: int) -> Tensor:
        name = "diffloss.net"
        y = self.sinusoid(step, f"{name}.time_embed") + self.linear(z, f"{name}.cond_embed")
        y, h = y * y.sigmoid(), self.linear(x, f"{name}.input_proj")
        for i in range(self.config.diffusion_depth):
            block = f"{name}.res_blocks.{i}"
            shift, scale, gate = self.linear(y, f"{block}.adaLN_modulation.1").chunk(3, dim=-1)
            normed = standard(h) * self.w[f"{block}.in_ln.weight"] + self.w[f"{block}.in_ln.bias"]
            inner = self.linear(normed * (1 + scale) + shift, f"{block}.mlp.0")
            h = h + gate * self.linear(inner * inner.sigmoid(), f"{block}.mlp.2")
        shift, scale = self.linear(y, f"{name}.final_layer.adaLN_modulation.1").chunk(2, dim=-1)
        return self.linear(standard(h) * (1 + scale) + shift, f"{name}.final_layer.linear")


def standard(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
