"""Trains the transformer and its text encoder: ``python -m training.transformer --out runs/scenes --minutes 14``."""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.checkpoints import fill_module, read_state, save_model
from stepvar.core.stack import run_dense
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.models.infinity import Infinity, schedule_for
from stepvar.models.infinity.rope import rotary_table
from stepvar.models.infinity.tokenizer import BitTokenizer
from stepvar.models.infinity.transformer import Block, BlockContext, InfinityTransformer, TextMemory
from stepvar.text import WordEncoder, length_mask
from training.data import SceneSource
from training.loop import (
    Progress,
    averaged,
    command_line,
    device_name,
    earlier_runs,
    learning_rate,
    load_checkpoint,
    mean_module,
    parameter_groups,
    save_checkpoint,
    write_card,
)
from training.parallel import Group
from training.presets import PRESETS, RATIOS, Preset
from training.pyramid import inputs, pyramid

PEAK_LR = 1e-3
WEIGHT_DECAY = 0.05
DROPPED_TEXT = 0.1
MOST_FLIPS = 0.25
SMALL_SCALE = 200
"""Scales of fewer tokens share one masked attention; larger ones attend one by one, without a mask."""


def run_block(block: Block, x: Tensor, modulation: Tensor, text: TextMemory, positions: SequencePositions) -> Tensor:
    """A block on the tokens (B, N, C) of all scales; a function of its own, so that it is compiled once for all blocks.

    All blocks are layer 0 here, since each number would be compiled again; the attention does not ask.
    """
    context = BlockContext(modulation, text, positions.rotary, positions.attend, run_dense)
    # The positions are only handed to `rotary`, which here knows the whole sequence.
    return block(TokenMap(x, x, Grid(1, 1, 1)), 0, context).features


_compiled_block = torch.compile(run_block, dynamic=True)


class TextToBits(nn.Module):
    """Text encoder and transformer, run over all scales at once with the true bits as input.

    Attributes:
        compiled: whether the blocks are compiled, attention aside. On a GPU their elementwise parts cost as much as
            their matrix products, if they are not.
    """

    def __init__(self, preset: Preset, compiled: bool = False) -> None:
        super().__init__()
        self.text = WordEncoder(**preset.text)
        self.transformer = InfinityTransformer(preset.model)
        self.compiled = compiled
        initialise(self.transformer)

    def forward(
        self, words: Tensor, lengths: list[int], dropped: Tensor, tokens: Tensor, positions: SequencePositions
    ) -> Tensor:
        """words (B, L), dropped (B,) bool: without text, tokens (B, N - 1, d) -> logits (B, N, d, 2)."""
        transformer = self.transformer
        features = self.text(words, lengths)
        batch, size = words.shape
        null = transformer.null_text(batch, size)
        mask = None if min(lengths) == size else length_mask(lengths, size).to(words.device)
        features = torch.where(dropped[:, None, None], null, features)
        condition = transformer.condition(features, mask)
        x = torch.cat([transformer.first_tokens(condition), transformer.word_embed(tokens)], dim=1)
        x = x.float() + transformer.lvl_embed.weight[positions.levels]
        run = _compiled_block if self.compiled else run_block
        for layer, block in enumerate(transformer.blocks):
            x = run(block, x, condition.modulation[layer], condition.memory[layer], positions)
        return transformer.logits(x, condition.pooled)


def initialise(transformer: InfinityTransformer) -> None:
    """Small random weights; residual outputs smaller with depth; gates open, modulations neutral."""
    depth = transformer.config.depth
    for name, parameter in transformer.named_parameters():
        if name.endswith(("cfg_uncond", ".mat_q")):
            nn.init.normal_(parameter)
        elif name.endswith("ada_gss"):
            nn.init.zeros_(parameter)
            with torch.no_grad():
                parameter[:, :, :2] = 1.0
        elif name.startswith(("lvl_embed", "pos_start")):
            nn.init.normal_(parameter, std=0.1)
        elif name.endswith((".proj.weight", "fc2.weight")) and "block" in name:
            nn.init.normal_(parameter, std=0.5 / math.sqrt(parameter.shape[1] * 3 * depth))
        elif "ada_lin" in name and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.01)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.7 / math.sqrt(parameter.shape[1]))


@dataclass
class SequencePositions:
    """Where each token of a concatenated pyramid lies, and whom it may attend to.

    Attributes:
        levels: (N,) scale index of each token.
        ends: end of each scale in the sequence.
        cos, sin: (1, 1, N, head_dim / 2).
        merged: number of leading scales that share one attention, and its mask.
    """

    levels: Tensor
    ends: list[int]
    cos: Tensor
    sin: Tensor
    merged: int
    mask: Tensor

    @classmethod
    def of(cls, schedule: ScaleSchedule, scales: int, head_dim: int, device: torch.device) -> SequencePositions:
        grids = schedule.grids[:scales]
        frame = schedule.frame or schedule.grids[-1]
        tables = [rotary_table(grid, frame, head_dim) for grid in grids]
        cos = torch.cat([c for c, _ in tables])[None, None].to(device)
        sin = torch.cat([s for _, s in tables])[None, None].to(device)
        levels = torch.cat([torch.full((grid.size,), i) for i, grid in enumerate(grids)]).to(device)
        ends = torch.tensor([grid.size for grid in grids]).cumsum(0).tolist()
        merged = max(1, sum(grid.size < SMALL_SCALE for grid in grids))
        early = levels[: ends[merged - 1]]
        return cls(levels, ends, cos, sin, merged, early[:, None] >= early[None, :])

    def rotary(self, _: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin

    @torch.compiler.disable
    def attend(self, _: int, q: Tensor, k: Tensor, v: Tensor, _projection: object) -> Tensor:
        """Every scale sees itself and the coarser ones.

        Never compiled: it differs from one aspect ratio and number of scales to the next, the rest of a block does not.
        """
        end = self.ends[self.merged - 1]
        parts = [attention(q[:, :, :end], k[:, :, :end], v[:, :, :end], self.mask)]
        for scale in range(self.merged, len(self.ends)):
            start, end = self.ends[scale - 1], self.ends[scale]
            parts.append(attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end], None))
        return torch.cat(parts, dim=2)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention with scale 1; on the CPU spelled out, since its fused backward pass is slow there."""
    if q.device.type == "cuda":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    scores = q @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


class LatentPool:
    """Encoded scenes of one aspect ratio in a ring; each step some old ones make room for new ones."""

    def __init__(self, preset: Preset, schedule: ScaleSchedule, share: float, device: torch.device) -> None:
        last, bits = schedule.grids[-1], preset.model.tokenizer.code_bits
        self.capacity = max(preset.rendered, int(preset.pool * share))
        self.latents = torch.empty(self.capacity, bits, last.h, last.w, dtype=torch.float16, device=device)
        self.words = torch.zeros(self.capacity, preset.model.text_maxlen, dtype=torch.int64)
        self.lengths = torch.zeros(self.capacity, dtype=torch.int64)
        self.schedule, self.filled, self.cursor = schedule, 0, 0

    @torch.no_grad()
    def add(self, source: SceneSource, tokenizer: BitTokenizer, text: WordEncoder, count: int) -> None:
        captions, images = source.sample(count, self.schedule)
        with torch.autocast(images.device.type, torch.bfloat16):
            latents = tokenizer.encoder(images)
        slots = [(self.cursor + i) % self.capacity for i in range(count)]
        self.latents[torch.tensor(slots, device=latents.device)] = latents.to(torch.float16)
        for slot, words in zip(slots, map(text.tokens, captions), strict=True):
            self.words[slot, : len(words)] = torch.tensor(words)
            self.lengths[slot] = len(words)
        self.cursor = (self.cursor + count) % self.capacity
        self.filled = min(self.capacity, self.filled + count)

    def sample(self, count: int) -> tuple[Tensor, Tensor, list[int]]:
        """Latents, words (padded to the longest) and lengths of ``count`` scenes."""
        chosen = torch.randint(self.filled, (count,))
        lengths: list[int] = self.lengths[chosen].tolist()
        words = self.words[chosen, : max(lengths)].to(self.latents.device, non_blocking=True)
        return self.latents[chosen.to(self.latents.device)], words, lengths


def bit_loss(logits: Tensor, targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the bits, each scale's mean weighted by the root of its tokens; and per scale."""
    weights = torch.tensor([math.sqrt(t.shape[-1] * t.shape[-2]) for t in targets], device=logits.device)
    sizes = [t.shape[-1] * t.shape[-2] for t in targets]
    margins = logits[..., 1] - logits[..., 0]
    losses = torch.stack(
        [
            F.binary_cross_entropy_with_logits(part, target.flatten(2).transpose(1, 2).float())
            for part, target in zip(margins.split(sizes, dim=1), targets, strict=True)
        ]
    )
    return (losses * weights).sum() / weights.sum(), losses


def load_into(module: nn.Module, path: Path) -> None:
    fill_module(module, read_state(path), str(path))


class Trainer:
    """The state of a training; everything in it that changes is in the checkpoint."""

    def __init__(
        self,
        preset: Preset,
        out: Path,
        minutes: float,
        device: torch.device,
        seed: int,
        init: Path | None = None,
        group: Group | None = None,
        compiled: bool = False,
    ) -> None:
        self.group = group or Group()
        torch.manual_seed(seed)
        self.preset, self.out, self.device = preset, out, device
        self.tokenizer = BitTokenizer(preset.model.tokenizer)
        load_into(self.tokenizer, (init or out) / "tokenizer.safetensors")
        self.tokenizer.to(device).eval().requires_grad_(False)
        self.model = TextToBits(preset, compiled)
        load_into(self.model.text, out / "text.safetensors")
        if init is not None:
            load_into(self.model.transformer, init / "transformer.safetensors")
        self.model.to(device)
        self.group.same_start(self.model)
        self.mean = averaged(self.model, 0.999)
        self.optimiser = torch.optim.AdamW(
            parameter_groups([self.model], WEIGHT_DECAY),
            lr=PEAK_LR,
            betas=(0.9, 0.95),
            fused=device.type == "cuda",
        )
        self.earlier = earlier_runs(init)
        self.progress = Progress(minutes)
        self.path = out / "transformer.ckpt"
        if state := load_checkpoint(self.path, device):
            self.model.load_state_dict(state["model"])
            self.mean.load_state_dict(state["mean"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.progress.restore(state["progress"])
        seed += self.progress.step
        self.rng = random.Random(seed)  # of the shapes of steps: the same in all processes, which work in step
        seed = 1000 * seed + self.group.rank
        torch.manual_seed(seed)
        self.source = SceneSource(seed, device, preset.model.tokenizer.stride)
        self.pools = {
            ratio: LatentPool(preset, schedule_for(preset.model.resolution, ratio), share, device)
            for ratio, share in RATIOS.items()
        }
        self._positions: dict[tuple[str, int], SequencePositions] = {}

    def positions(self, schedule: ScaleSchedule, scales: int) -> SequencePositions:
        key = (schedule.name, scales)
        if key not in self._positions:
            head_dim = self.preset.model.head_dim
            self._positions[key] = SequencePositions.of(schedule, scales, head_dim, self.device)
        return self._positions[key]

    def plan_step(self, schedule: ScaleSchedule, fraction: float) -> tuple[int, int]:
        """Scales and batch size: mostly prefixes at first, mostly whole pyramids at the end."""
        if self.rng.random() < 0.25 + 0.5 * fraction:
            return len(schedule), self.preset.whole_batch
        return self.rng.choice(self.preset.prefixes)

    def step(self, fraction: float) -> None:
        """One step, ``fraction`` of the way through the training."""
        pool = self.pools[self.rng.choices(list(RATIOS), list(RATIOS.values()))[0]]
        if not pool.filled or self.progress.step % self.preset.refresh == 0:
            for _ in range(1 if pool.filled else 3):
                pool.add(self.source, self.tokenizer, self.model.text, self.preset.rendered)
        scales, count = self.plan_step(pool.schedule, fraction)
        latents, words, lengths = pool.sample(count)
        flips = torch.rand(count, device=self.device) * MOST_FLIPS
        built = pyramid(self.tokenizer, latents, pool.schedule, scales, flips)
        tokens = inputs(built.sums, pool.schedule, scales)
        dropped = torch.rand(count, device=self.device) < DROPPED_TEXT
        positions = self.positions(pool.schedule, scales)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model(words, lengths, dropped, tokens, positions)
        loss, losses = bit_loss(logits, built.targets)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(fraction, PEAK_LR)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.group.average_gradients(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.mean.update_parameters(self.model)
        self.progress.step += 1
        self.progress.seen += count * self.group.size
        if scales == len(pool.schedule) and self.group.leads:
            self.progress.say(lambda: {f"s{i}": v for i, v in enumerate(losses.tolist())})

    def save(self) -> None:
        save_checkpoint(
            self.path,
            {
                "model": self.model.state_dict(),
                "mean": self.mean.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "progress": self.progress.state(),
            },
        )
        self.export()

    def export(self) -> None:
        """Writes the averaged weights as a model folder that the library loads."""
        model = Infinity(self.preset.model)
        mean = mean_module(self.mean, TextToBits)
        model.transformer.load_state_dict(mean.transformer.state_dict())
        model.tokenizer.load_state_dict(self.tokenizer.state_dict())
        defaults: dict[str, Any] = {"guidance_scale": 3.0, "temperature": 0.6}
        save_model(self.out / "model", "scenes", model, mean.text, self.preset.text, defaults)
        progress = self.progress
        run: dict[str, Any] = {"steps": progress.step, "samples": progress.seen, "minutes": progress.seconds / 60}
        run |= {"device": f"{self.group.size} x {device_name(self.device)}", "torch": str(torch.__version__)}
        run |= {"command": command_line("transformer")}
        write_card(self.out / "model" / "training.json", {"runs": [*self.earlier, run]})

    def run(self) -> None:
        while (fraction := self.group.from_leader(self.progress.fraction)) < 1:
            self.step(fraction)
            if self.group.leads and self.progress.due(150):
                self.save()
        if self.group.leads:
            self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=14)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", choices=PRESETS, default="scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="model folder to go on from: its transformer and tokenizer")
    parser.add_argument("--compile", action="store_true", help="compile the blocks (CUDA)")
    arguments = parser.parse_args()
    group = Group.join()
    Trainer(
        PRESETS[arguments.preset],
        arguments.out,
        arguments.minutes,
        group.device(torch.device(arguments.device)),
        arguments.seed,
        arguments.init,
        group,
        arguments.compile,
    ).run()
    group.leave()


if __name__ == "__main__":
    main()
