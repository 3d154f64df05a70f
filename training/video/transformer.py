"""Trains the video transformer and its text encoder: ``python -m training.video.transformer --out runs/video``.

All passes at once with the true bits as input, some of them wrong: each pass sees the text, itself, and the end of the
clip before, as when videos are generated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from stepvar.checkpoints import fill_module, read_state, save_weights
from stepvar.checkpoints.saving import write_config
from stepvar.models.infinity_star.model import as_cells
from stepvar.models.infinity_star.rope import RotaryTable, text_coordinates, token_coordinates
from stepvar.models.infinity_star.tokenizer import VideoTokenizer
from stepvar.models.infinity_star.transformer import Block, InfinityStarTransformer, run_block
from stepvar.models.layers import Attend, Rotary
from stepvar.text import WordEncoder
from stepvar.utils.device import to_device_async
from training.loop import command_line, earlier_runs, write_card
from training.video.convolution import fold_convolutions, folding_is_faster
from training.video.data import ClipSource
from training.video.presets import VideoPreset
from training.video.pyramid import Pyramids, drawn_wrongly, pyramids
from training.video.stage import Options, Stage
from training.video.tokenizer import channels_last, encode, load_tokenizer

PEAK_LR = 1.2e-3
WEIGHT_DECAY = 0.05
DROPPED_TEXT = 0.1
MOST_FLIPS = 0.25
OWN_DRAWS, COOLEST, DRAWS_FROM = 0.5, 0.5, 0.5
"""Share of steps whose wrong bits the model draws itself, the least temperature of that, and from when on.

Flips at random say little of the errors that generation makes: those lie where the model is unsure. Its own draws are
of use once it knows something: behind ``--init`` from the start, else from that part of the time on.
"""
IMAGE = 2
"""Weight of passes of one latent frame, which are those of the image in front of the clip."""
FAMILY = "infinity_star"
DEFAULTS = {"guidance_scale": 5.0, "temperature": 0.6}


@dataclass(frozen=True)
class Sequence:
    """The text and all passes of a video, one behind the other; the text has ``room`` places, filled or not.

    Attributes:
        room: places of the text.
        part: (N,) what each token belongs to: 0 is the text, then come the passes.
        context: (P,) per part the one that it sees beside itself and the text, the end of the last clip; -1: none.
        rotary: positions of all tokens.
        blocks: who sees whom, for the attention that skips what is masked; None where that does not run.
    """

    room: int
    part: Tensor
    context: Tensor
    rotary: Rotary
    blocks: BlockMask | None = None

    @classmethod
    def of(cls, preset: VideoPreset, device: torch.device) -> Sequence:
        schedule, config, room = preset.schedule, preset.model, preset.words
        frame, clips = schedule.frame or schedule.grids[-1], schedule.clip_slices
        sizes, context = [room], [-1]
        coordinates = [text_coordinates(room, device)]
        last: dict[int, int] = {}
        for index, grid in enumerate(schedule):
            clip = schedule.clip(index)
            context.append(last.get(clip - 1, -1))
            last[clip] = len(sizes)
            sizes.append(grid.size)
            positions = torch.arange(grid.size, device=device).unsqueeze(0)
            first = clips[clip].start
            frames = range(first, first + grid.t)
            coordinates.append(token_coordinates(positions, grid, frame, config.text_maxlen + index, frames))
        table = RotaryTable(config.head_dim, config.text_maxlen + len(schedule) + max(frame.h, frame.w), device)
        part = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(device)
        rotary = table.at(torch.cat(coordinates, dim=1))
        sequence = cls(room, part, torch.tensor(context, device=device), rotary)
        if device.type != "cuda":
            return sequence
        blocks = create_block_mask(
            lambda _b, _h, q, k: sequence.sees(q, k), None, None, len(part), len(part), str(device)
        )
        return replace(sequence, blocks=blocks)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the token ``query`` sees the token ``key`` (places in the sequence), unfilled text aside."""
        mine, other = self.part[query], self.part[key]
        return (other == 0) | (other == mine) | (other == self.context[mine])

    def attention(self, lengths: Tensor) -> Attend:
        """Attention in which each part sees itself, the text of ``lengths`` (B,) words and the end of the last clip."""
        places = torch.arange(len(self.part), device=self.part.device)
        sees = self.sees(places[:, None], places[None, :])
        mask = (sees & filled(places, lengths[:, None, None], self.room)).unsqueeze(1)

        def attend(_: int, q: Tensor, k: Tensor, v: Tensor, _projection: object) -> Tensor:
            return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask, enable_gqa=True)

        return attend


def filled(key: Tensor, length: Tensor, room: int) -> Tensor:
    """Whether the place ``key`` holds a word of a text of ``length``, or no text."""
    return (key < length) | (key >= room)


def run_sparse_block(block: Block, x: Tensor, rotary: Rotary, lengths: Tensor, blocks: BlockMask, room: int) -> Tensor:
    """A block with an attention that skips what is masked. Only to be run compiled, on CUDA.

    All blocks are layer 0 here, since each number would be compiled again; the attention does not ask.
    """

    def score(value: Tensor, row: Tensor, _h: Tensor, _q: Tensor, key: Tensor) -> Tensor:
        return torch.where(filled(key, lengths[row], room), value, -torch.inf)

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor, _projection: object) -> Tensor:
        seen = flex_attention(q.to(v.dtype), k.to(v.dtype), v, score, blocks, enable_gqa=True)
        assert isinstance(seen, Tensor)
        return seen

    return run_block(block, x, 0, rotary, attend)


class TextToVideo(nn.Module):
    """Text encoder and transformer, run over all passes at once.

    Attributes:
        compiled: whether blocks and loss are compiled, which on a GPU is more than twice as fast.
    """

    def __init__(self, preset: VideoPreset) -> None:
        super().__init__()
        self.text = WordEncoder(**preset.text)
        self.transformer = InfinityStarTransformer(preset.model)
        self.schedule = preset.schedule
        self.compiled = False
        initialise(self.transformer)

    def forward(
        self, words: Tensor, lengths: Tensor, dropped: Tensor, inputs: list[Tensor], sequence: Sequence
    ) -> Tensor:
        """Tokens behind the last block, all passes one behind the other: (B, N, C).

        Args:
            words: (B, room), padded behind ``lengths`` (B,).
            dropped: (B,) bool: without text.
            inputs: what each pass reads, (B, d, t, h, w).
        """
        transformer = self.transformer
        features = self.text(words, lengths)
        null = transformer.null_text(*words.shape)
        features = torch.where(dropped[:, None, None], null, features)
        cells = torch.cat([as_cells(latent) for latent in inputs], dim=1)
        x = torch.cat([transformer.text_tokens(features), transformer.cell_tokens(cells)], dim=1).float()
        if self.compiled and sequence.blocks is not None:
            for block in transformer.block_list:
                x = _compiled_block(block, x, sequence.rotary, lengths, sequence.blocks, sequence.room)
        else:
            x = transformer.run_blocks(x, sequence.rotary, sequence.attention(lengths))
        return x[:, sequence.room :]

    def logits(self, x: Tensor) -> list[Tensor]:
        """Tokens (B, N, C) of all passes -> the logits (B, n, bits, 2) of each."""
        parts = x.split([grid.size for grid in self.schedule], dim=1)
        return [self.transformer.logits(part, self.schedule.scale(index)) for index, part in enumerate(parts)]

    def loss(self, x: Tensor, targets: list[Tensor]) -> tuple[Tensor, Tensor]:
        """:func:`bit_loss` of tokens behind the last block."""
        return (_compiled_loss if self.compiled else _loss)(self, x, targets)


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
    """Encoded clips in a ring, in which new ones take the place of old ones."""

    def __init__(self, preset: VideoPreset, device: torch.device) -> None:
        grid, config = preset.schedule.grids[-1], preset.model
        shape = (config.token_channels, max(config.latents), grid.h, grid.w)
        self.latents = torch.empty(preset.pool, *shape, dtype=torch.float16, device=device)
        self.words = torch.zeros(preset.pool, preset.words, dtype=torch.int64, device=device)
        self.lengths = torch.zeros(preset.pool, dtype=torch.int64, device=device)
        self.filled, self.cursor = 0, 0

    @torch.no_grad()
    def add(self, source: ClipSource, tokenizer: VideoTokenizer, text: WordEncoder, count: int) -> None:
        clips, _, videos = source.sample(count)
        with torch.autocast(videos.device.type, torch.bfloat16, enabled=videos.device.type == "cuda"):
            latents = torch.cat([encode(tokenizer, part) for part in videos.split(64)])
        device = latents.device
        slots = to_device_async((self.cursor + torch.arange(count)) % len(self.words), device)
        rows = [text.tokens(line) for line in source.captions(clips)]
        words = torch.zeros(count, self.words.shape[1], dtype=torch.int64)
        for place, row in enumerate(rows):
            words[place, : len(row)] = torch.tensor(row)
        self.latents[slots], self.words[slots] = latents.to(torch.float16), to_device_async(words, device)
        self.lengths[slots] = to_device_async(torch.tensor([len(row) for row in rows]), device)
        self.cursor = (self.cursor + count) % len(self.words)
        self.filled = min(len(self.words), self.filled + count)

    def sample(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (count, d, T, H, W), words (count, room) and their lengths (count,), of random clips."""
        chosen = torch.randint(self.filled, (count,), device=self.latents.device)
        return self.latents[chosen], self.words[chosen], self.lengths[chosen]


def bit_loss(logits: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the bits, each pass's mean weighted by the root of its tokens; and that of each pass.

    A pass of one latent frame weighs :data:`IMAGE` times as much: with a right image, most of what follows is right.
    """
    roots = [(IMAGE if target.shape[2] == 1 else 1) * math.sqrt(target[0, 0].numel()) for target in targets]
    losses = [
        F.binary_cross_entropy_with_logits(part[..., 1] - part[..., 0], as_cells(target).to(part.dtype))
        for part, target in zip(logits, targets, strict=True)
    ]
    weighted = torch.stack([root * loss for root, loss in zip(roots, losses, strict=True)])
    return weighted.sum() / sum(roots), torch.stack(losses)


def _loss(model: TextToVideo, x: Tensor, targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    return bit_loss(model.logits(x), targets)


_compiled_block = torch.compile(run_sparse_block, dynamic=False)
_compiled_loss = torch.compile(_loss, dynamic=False)


def load_into(module: nn.Module, path: Path) -> None:
    fill_module(module, read_state(path), str(path))


class Trainer:
    """The data of a training and its steps."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.options, self.preset, self.device = options, options.preset, options.device
        source = options.init or options.out
        self.tokenizer = load_tokenizer(self.preset, source / "tokenizer.safetensors", self.device)
        if folding_is_faster(self.device, self.preset.layers):
            fold_convolutions(self.tokenizer)
        channels_last(self.tokenizer)
        self.model = TextToVideo(self.preset)
        if options.init is not None:
            load_into(self.model.transformer, options.init / "transformer.safetensors")
            load_into(self.model.text, options.init / "text_encoder.safetensors")
        elif (read := options.out / "text.safetensors").exists():
            load_into(self.model.text, read)
        self.model.to(self.device)
        self.model.compiled = self.device.type == "cuda"
        self.stage = Stage("transformer", self.model, options, PEAK_LR, WEIGHT_DECAY)
        seed = options.data_seed(self.stage.progress.step)
        torch.manual_seed(seed)
        self.source = ClipSource(seed, self.device, self.preset.clip_size)
        self.pool = LatentPool(self.preset, self.device)
        self.sequence = Sequence.of(self.preset, self.device)

    def step(self) -> None:
        preset = self.preset
        if self.pool.filled == 0 or self.stage.progress.step % preset.refresh == 0:
            # A pool to begin with; later a few at a time.
            for _ in range(1 if self.pool.filled else min(16, preset.pool // preset.rendered)):
                self.pool.add(self.source, self.tokenizer, self.model.text, preset.rendered)
        latents, words, lengths = self.pool.sample(preset.batch)
        dropped = torch.rand(len(words), device=self.device) < DROPPED_TEXT
        own = self.draws_itself
        built = self.with_own_draws(latents, words, lengths) if own else self.with_flips(latents)
        with self.autocast():
            x = self.model(words, lengths, dropped, built.inputs, self.sequence)
            loss, losses = self.model.loss(x, built.targets)
        self.stage.minimise(loss, len(words))
        self.stage.say(partial(_values, losses, own))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    @property
    def draws_itself(self) -> bool:
        """Whether this step does; the same steps in all processes, since they wait for each other."""
        if self.options.init is None and self.stage.fraction < DRAWS_FROM:
            return False
        return self.stage.progress.step * OWN_DRAWS % 1 < OWN_DRAWS

    @torch.no_grad()
    def with_flips(self, latents: Tensor) -> Pyramids:
        flips = torch.rand(len(latents), device=self.device) * MOST_FLIPS
        return pyramids(latents, self.preset.passes, flips)

    def with_own_draws(self, latents: Tensor, words: Tensor, lengths: Tensor) -> Pyramids:
        """Pyramids with bits that the model draws wrongly where all it reads is true."""
        shares, heat = torch.rand(2, len(latents), device=self.device)
        with torch.no_grad():
            true = pyramids(latents, self.preset.passes)
        # Generation draws with the text in sight, and shows these draws to the branch without text, too.
        kept = torch.zeros_like(lengths, dtype=torch.bool)
        with self.autocast():
            # With gradients on, though none are taken: without them the blocks would be compiled a second time.
            x = self.model(words, lengths, kept, true.inputs, self.sequence).detach()
            with torch.no_grad():
                logits = self.model.logits(x)
        with torch.no_grad():
            wrong = drawn_wrongly(logits, true.targets, shares, COOLEST + (1 - COOLEST) * heat)
            return pyramids(latents, self.preset.passes, wrong=wrong)

    def export(self, name: str = "model") -> None:
        """Writes the averaged weights as a model folder that the library loads."""
        mean = self.stage.averaged()
        assert isinstance(mean, TextToVideo)
        folder = self.options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        # The two large parts are in eight bits.
        save_weights(folder / "transformer.safetensors", mean.transformer.state_dict(), torch.float16, packed=True)
        save_weights(folder / "tokenizer.safetensors", self.tokenizer.state_dict(), torch.float16, packed=True)
        save_weights(folder / "text_encoder.safetensors", mean.text.state_dict(), torch.float16)
        write_config(folder, FAMILY, "scenes-video", self.preset.model.to_dict(), DEFAULTS, self.preset.text)
        run = self.stage.info(self.options) | {"command": command_line("video.transformer")}
        write_card(folder / "training.json", {"runs": [*earlier_runs(self.options.init), run]})

    def run(self) -> bool:
        """Trains until the time is up, and says whether all of it is."""
        every = 60 * self.options.keep_every
        kept = self.stage.progress.seconds // every
        while self.stage.running:
            self.step()
            if self.stage.group.leads and self.stage.progress.seconds // every > kept:
                kept = self.stage.progress.seconds // every
                self.export(f"model-{kept * self.options.keep_every:g}")
        if self.stage.group.leads:
            self.export()
        return self.stage.close()


def _values(losses: Tensor, own: bool) -> dict[str, float]:
    """Losses of each pass; ``own`` tells the two kinds of steps apart, one of which has harder inputs."""
    return {"own": float(own)} | {f"p{index}": value for index, value in enumerate(losses.tolist())}


def train(options: Options) -> bool:
    return Trainer(options).run()


if __name__ == "__main__":
    train(Options.parse(__doc__, 5.5))
