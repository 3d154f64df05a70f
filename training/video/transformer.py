"""Trains the video transformer and its text encoder: ``python -m training.video.transformer --out runs/video``.

All passes at once with the true bits as input: each pass sees the text, itself, and the end of the clip before, as when
videos are drawn.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.checkpoints import fill_module, read_weights, save_weights
from stepvar.checkpoints.folders import write_config
from stepvar.models.infinity_star import transformer as star
from stepvar.models.infinity_star.model import as_cells, clip_slices
from stepvar.models.infinity_star.rope import RotaryTable, text_coordinates, token_coordinates
from stepvar.models.infinity_star.tokenizer import VideoTokenizer
from stepvar.models.infinity_star.transformer import InfinityStarTransformer
from stepvar.models.layers import EPS, RMSNorm, Rotary, grouped_attention, rotate
from stepvar.scenes.noise import send
from stepvar.text import WordEncoder
from stepvar.tokens import ScaleSchedule
from training.loop import command_line, write_card
from training.video.convolution import choose_convolution
from training.video.data import ClipSource
from training.video.presets import VideoPreset
from training.video.pyramid import Pyramids, pyramids
from training.video.stage import Options, Stage
from training.video.tokenizer import channels_last, encode, load_tokenizer

PEAK_LR = 1.2e-3
WEIGHT_DECAY = 0.05
DROPPED_TEXT = 0.1
MOST_FLIPS = 0.25
FAMILY = "infinity_star"
DEFAULTS = {"guidance_scale": 3.0, "temperature": 0.6}


@dataclass(frozen=True)
class Sequence:
    """The text and all passes of a video, one behind the other.

    Attributes:
        segments: (start, end) of each pass, the text first.
        recalled: (start, end) of what each of them sees beside itself and the text; None: nothing.
        rotary: positions of all tokens.
    """

    segments: tuple[tuple[int, int], ...]
    recalled: tuple[tuple[int, int] | None, ...]
    rotary: Rotary

    @classmethod
    def of(cls, schedule: ScaleSchedule, text: int, text_maxlen: int, head_dim: int, device: torch.device) -> Sequence:
        frame, clips = schedule.frame or schedule.grids[-1], clip_slices(schedule)
        segments, recalled = [(0, text)], [None]
        coordinates = [text_coordinates(text, device)]
        last: dict[int, tuple[int, int]] = {}
        for index, grid in enumerate(schedule):
            start, clip = segments[-1][1], schedule.clip(index)
            segments.append((start, start + grid.size))
            recalled.append(last.get(clip - 1))  # type: ignore[arg-type]
            last[clip] = segments[-1]
            positions = torch.arange(grid.size, device=device).unsqueeze(0)
            first = clips[clip].start
            frames = range(first, first + grid.t)
            coordinates.append(token_coordinates(positions, grid, frame, text_maxlen + index, frames))
        table = RotaryTable(head_dim, text_maxlen + len(schedule) + max(frame.h, frame.w), device)
        return cls(tuple(segments), tuple(recalled), table.at(torch.cat(coordinates, dim=1)))

    def attend(self, _: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of each part to itself, to the text, and to what it recalls."""
        text = self.segments[0][1]
        parts = []
        for (start, end), recalled in zip(self.segments, self.recalled, strict=True):
            seen = [(0, text)] * (start > 0) + [recalled] * (recalled is not None) + [(start, end)]
            keys, values = (torch.cat([x[:, :, a:b] for a, b in seen], dim=2) for x in (k, v))  # type: ignore[misc]
            parts.append(grouped_attention(q[:, :, start:end], keys, values))
        return torch.cat(parts, dim=2)


class TextToVideo(nn.Module):
    """Text encoder and transformer, run over all passes at once."""

    def __init__(self, preset: VideoPreset) -> None:
        super().__init__()
        self.text = WordEncoder(**preset.text)
        self.transformer = InfinityStarTransformer(preset.model)
        self.schedule = preset.schedule
        initialise(self.transformer)

    def forward(self, words: Tensor, dropped: Tensor, inputs: list[Tensor], sequence: Sequence) -> list[Tensor]:
        """words (B, L), all of one length; dropped (B,) bool: without text; inputs: what each pass reads.

        Returns:
            Logits (B, N, bits, 2) of each pass.
        """
        transformer, (count, length) = self.transformer, words.shape
        features = self.text(words, [length] * count)
        null = transformer.null_text(count, length)
        features = torch.where(dropped[:, None, None], null, features)
        cells = torch.cat([as_cells(latent) for latent in inputs], dim=1)
        x = torch.cat([transformer.text_tokens(features), transformer.cell_tokens(cells)], dim=1).float()
        x = transformer.run_blocks(x, sequence.rotary, sequence.attend)
        scales = [self.schedule.scale(index) for index in range(len(self.schedule))]
        return [
            transformer.logits(x[:, start:end], scale)
            for (start, end), scale in zip(sequence.segments[1:], scales, strict=True)
        ]


def initialise(transformer: InfinityStarTransformer) -> None:
    """Small random weights; residual outputs smaller with depth."""
    depth = transformer.config.depth
    for name, parameter in transformer.named_parameters():
        if name == "cfg_uncond":
            nn.init.normal_(parameter)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.normal_(parameter, std=0.5 / math.sqrt(parameter.shape[1] * 2 * depth))
        elif name == "word_embed.weight":
            nn.init.normal_(parameter, std=1.0)
        elif name == "word_embed.bias":
            nn.init.normal_(parameter, std=0.5)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.7 / math.sqrt(parameter.shape[1]))


class LatentPool:
    """Encoded clips in a ring, in which new ones take the place of old ones; batches have captions of one length."""

    def __init__(self, preset: VideoPreset, device: torch.device) -> None:
        grid, config = preset.schedule.grids[-1], preset.model
        shape = (config.token_channels, max(config.latents), grid.h, grid.w)
        self.latents = torch.empty(preset.pool, *shape, dtype=torch.float16, device=device)
        self.words = torch.zeros(preset.pool, config.text_maxlen, dtype=torch.int64)
        self.lengths = torch.zeros(preset.pool, dtype=torch.int64)
        self.filled, self.cursor = 0, 0

    @torch.no_grad()
    def add(self, source: ClipSource, tokenizer: VideoTokenizer, text: WordEncoder, count: int) -> None:
        clips, _, videos = source.draw(count)
        with torch.autocast(videos.device.type, torch.bfloat16, enabled=videos.device.type == "cuda"):
            latents = torch.cat([encode(tokenizer, part) for part in videos.split(64)])
        slots = [(self.cursor + i) % len(self.words) for i in range(count)]
        self.latents[torch.tensor(slots, device=latents.device)] = latents.to(torch.float16)
        for slot, words in zip(slots, map(text.tokens, source.captions(clips)), strict=True):
            self.words[slot, : len(words)] = torch.tensor(words)
            self.lengths[slot] = len(words)
        self.cursor = (self.cursor + count) % len(self.words)
        self.filled = min(len(self.words), self.filled + count)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Latents (count, d, T, H, W) and words (count, L) of clips whose captions are as long as that of a random one.

        So nothing has to be padded or masked. The shortest and the longest captions are rare: their batches repeat.
        """
        lengths = self.lengths[: self.filled]
        length = lengths[random.randrange(self.filled)]
        alike = (lengths == length).nonzero()[:, 0]
        chosen = alike[torch.randint(len(alike), (count,))]
        words = self.words[chosen, : int(length)].to(self.latents.device, non_blocking=True)
        return self.latents[chosen.to(self.latents.device, non_blocking=True)], words


def bit_loss(logits: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the bits, each pass's mean weighted by the root of its tokens; and that of each pass."""
    roots = torch.tensor([math.sqrt(target[0, 0].numel()) for target in targets])
    weights = send(roots / roots.sum(), logits[0].device)
    losses = torch.stack(
        [
            F.binary_cross_entropy_with_logits(part[..., 1] - part[..., 0], as_cells(target).to(part.dtype))
            for part, target in zip(logits, targets, strict=True)
        ]
    )
    return (losses * weights).sum(), losses


def load_into(module: nn.Module, path: Path) -> None:
    fill_module(module, read_weights(path), str(path))


class Trainer:
    """The data of a training and its steps."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(options.seed)
        random.seed(options.seed)
        self.options, self.preset, self.device = options, options.preset, options.device
        choose_convolution(self.device, self.preset.layers)
        source = options.init or options.out
        self.tokenizer = load_tokenizer(self.preset, source / "tokenizer.safetensors", self.device)
        channels_last(self.tokenizer)
        self.model = TextToVideo(self.preset)
        if options.init is not None:
            load_into(self.model.transformer, options.init / "transformer.safetensors")
            load_into(self.model.text, options.init / "text_encoder.safetensors")
        elif (read := options.out / "text.safetensors").exists():
            load_into(self.model.text, read)
        self.model.to(self.device)
        self.stage = Stage("transformer", self.model, options, PEAK_LR, WEIGHT_DECAY)
        self.source = ClipSource(options.seed + 2 + self.stage.progress.step, self.device, self.preset.clip_size)
        self.pool = LatentPool(self.preset, self.device)
        self._sequences: dict[int, Sequence] = {}

    def sequence(self, text: int) -> Sequence:
        if text not in self._sequences:
            config = self.preset.model
            self._sequences[text] = Sequence.of(
                self.preset.schedule, text, config.text_maxlen, config.head_dim, self.device
            )
        return self._sequences[text]

    def batch(self) -> tuple[Pyramids, Tensor]:
        """Pyramids with flipped bits, and the words of their captions."""
        preset = self.preset
        if self.pool.filled == 0 or self.stage.progress.step % preset.refresh == 0:
            # A pool to begin with; later a few at a time.
            for _ in range(1 if self.pool.filled else min(16, preset.pool // preset.drawn)):
                self.pool.add(self.source, self.tokenizer, self.model.text, preset.drawn)
        latents, words = self.pool.sample(preset.batch)
        flips = torch.rand(len(latents), device=self.device) * MOST_FLIPS
        with torch.no_grad():
            return pyramids(latents, preset.passes, flips), words

    def step(self) -> None:
        built, words = self.batch()
        dropped = torch.rand(len(words), device=self.device) < DROPPED_TEXT
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.model(words, dropped, built.inputs, self.sequence(words.shape[1]))
        loss, losses = bit_loss(logits, built.targets)
        self.stage.minimise(loss, len(words))
        self.stage.progress.say(partial(_values, losses))

    def export(self) -> None:
        """Writes the averaged weights as a model folder that the library loads."""
        mean = self.stage.averaged()
        assert isinstance(mean, TextToVideo)
        folder = self.options.out / "model"
        folder.mkdir(parents=True, exist_ok=True)
        # The transformer is the largest part: in eight bits.
        save_weights(folder / "transformer.safetensors", mean.transformer.state_dict(), torch.float16, packed=True)
        save_weights(folder / "tokenizer.safetensors", self.tokenizer.state_dict(), torch.float16)
        save_weights(folder / "text_encoder.safetensors", mean.text.state_dict(), torch.float16)
        write_config(folder, FAMILY, "scenes-video", self.preset.model.to_dict(), DEFAULTS, self.preset.text)
        card = self.stage.facts(self.options) | {"command": command_line("video.transformer")}
        write_card(folder / "training.json", card)

    def run(self) -> bool:
        """Trains until the time is up, and says whether all of it is."""
        while self.stage.running:
            self.step()
        self.export()
        return self.stage.finished


def _values(losses: Tensor) -> dict[str, float]:
    return {f"p{index}": value for index, value in enumerate(losses.tolist())}


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * weight).to(torch.bfloat16)


def fuse_elementwise(device: torch.device) -> None:
    """Compiles norms and rotary turns, which on a GPU cost more than the matrix products between them.

    The norms then give bfloat16, the format of these products; the residual stream stays in float32.
    """
    if device.type != "cuda":
        return
    torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
    norm = torch.compile(_norm, dynamic=True)
    setattr(RMSNorm, "forward", lambda self, x: norm(x, self.weight))  # noqa: B010
    setattr(star, "rotate", torch.compile(rotate, dynamic=True))  # noqa: B010


def train(options: Options) -> bool:
    fuse_elementwise(options.device)
    return Trainer(options).run()


if __name__ == "__main__":
    raise SystemExit(0 if train(Options.parse(__doc__, 5.5)) else 3)
