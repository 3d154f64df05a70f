"""Trains the transformer of "wardrobe" and its text encoder: stage ``transformer`` of ``python -m training.wardrobe``.

Never with pruned tokens: every scale that a step looks at is whole. The first quarter of the time mostly looks at
the coarse scales, which are cheap and hold the layout; then at whole pyramids; a run behind ``--init`` does both. What
is shipped is the running average at its best on held-out photographs.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepvar.checkpoints import fill_module, read_state, save_model, save_weights
from stepvar.core.tokens import ScaleSchedule
from stepvar.models.infinity import Infinity
from stepvar.models.infinity.tokenizer import BitTokenizer
from stepvar.text import WordEncoder
from training.loop import command_line, mean_module, write_card
from training.pyramid import Pyramid, inputs, pyramid
from training.wardrobe.captioned import Captioned
from training.wardrobe.coder import in_bfloat16
from training.wardrobe.looks import sheet
from training.wardrobe.photographs import read_photographs
from training.wardrobe.presets import WardrobePreset
from training.wardrobe.sequence import Places, TextToBits, bit_losses, drawn_wrongly, pad_words, weighted
from training.wardrobe.stage import SAVE_EVERY, Options, Stage, choose
from training.wardrobe.tokenizer import load_tokenizer
from training.wardrobe.widening import widened_transformer

PEAK_LR = 1e-3
DECAY = 0.05
DROPPED_TEXT = 0.1
MOST_FLIPS = 0.25
OWN_DRAWS, COOLEST = 0.5, 0.6
"""Share of steps, behind ``--init``, whose wrong bits the model draws itself, and the least temperature of that.

Flips at random say little of the errors that generation makes: those lie where the model is unsure.
"""
PREFIX_UNTIL = 0.25
WHOLE_BEFORE, WHOLE_AFTER, WHOLE_AGAIN = 0.3, 0.9, 0.5
"""Share of steps that look at all scales, before and after that part of the time, and in a run that goes on.

The finest scales are learned first. What is still wrong then comes from the middle ones, of which a short step sees
four times as many pictures.
"""
STARTING_DRAWS = 24
DEFAULTS: dict[str, Any] = {"guidance_scale": 4.0, "temperature": 0.7}
SHOWN = (
    "a red t-shirt on a white ground",
    "a blue and white striped t-shirt on a wooden floor",
    "a black dress on a grey ground",
    "blue pants on a beige ground",
    "a green hoodie on a wooden floor",
    "white shoes on a grey ground",
    "a pink printed dress on a white ground",
    "a grey jacket on a beige ground",
    "a yellow skirt on a grey ground",
    "a navy blazer on a white ground",
    "a purple longsleeve on a wooden floor",
    "brown shorts on a white ground",
)


class LatentPool:
    """Encoded pictures of one aspect ratio in a ring; new ones take the place of old ones."""

    def __init__(
        self, preset: WardrobePreset, ratio: float, share: float, text: WordEncoder, device: torch.device
    ) -> None:
        self.schedule, self.ratio, self.preset, self.text = preset.schedule(ratio), ratio, preset, text
        last, self.capacity = self.schedule.grids[-1], max(preset.drawn, int(preset.pool * share))
        shape = (self.capacity, preset.model.tokenizer.code_bits, last.h, last.w)
        self.latents = torch.empty(shape, dtype=torch.float16, device=device)
        self.words = pad_words(text, ["a"])[0].repeat(self.capacity, 1)
        self.lengths = torch.zeros(self.capacity, dtype=torch.int64)
        self.filled, self.cursor = 0, 0

    @torch.no_grad()
    def add(self, source: Captioned, tokenizer: BitTokenizer, rng: random.Random) -> None:
        count = self.preset.drawn
        captions, pictures = source.draw(count, self.ratio, rng)
        latents = in_bfloat16(tokenizer.encoder, pictures)
        slots = (self.cursor + torch.arange(count)) % self.capacity
        self.latents[slots.to(latents.device)] = latents.to(torch.float16)
        words, lengths = pad_words(self.text, captions)
        self.words[slots], self.lengths[slots] = words, torch.tensor(lengths)
        self.cursor = (self.cursor + count) % self.capacity
        self.filled = min(self.capacity, self.filled + count)

    def sample(self, count: int) -> tuple[Tensor, Tensor, list[int]]:
        """Latents, words (count, ROOM) and lengths of random pictures."""
        chosen = torch.randint(self.filled, (count,))
        lengths: list[int] = self.lengths[chosen].tolist()
        device = self.latents.device
        return self.latents[chosen.to(device)], self.words[chosen].to(device), lengths


class TransformerTrainer:
    """The state of a transformer's training."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.options, self.preset, self.device = options, options.preset, options.device
        self.tokenizer = load_tokenizer(options)
        self.model = TextToBits(self.preset)
        if options.init is not None and (options.init / "transformer.safetensors").exists():
            path = options.init / "transformer.safetensors"
            weights = widened_transformer(read_state(path), self.model.transformer)
            fill_module(self.model.transformer, weights, str(path))
            path = options.init / "text_encoder.safetensors"
            fill_module(self.model.text, read_state(path), str(path))
        self.model.to(self.device)
        self.model.compiled = options.compiled
        self.stage = Stage("transformer", self.model, options, options.peak or PEAK_LR, DECAY)
        self.best: dict[str, Tensor] = {}
        self.best_bits, self.history = float("inf"), list[dict[str, Any]]()
        if (state := self.stage.restore()) is not None:
            self.best, self.best_bits, self.history = state["best"], state["best_bits"], state["history"]
        self._places: dict[tuple[str, int], Places] = {}
        if options.compiled:
            self.warm_up()
        photographs = read_photographs([options.photographs], self.device, options.most, options.wait_for)
        self.source = Captioned(photographs, self.preset)
        self.rng = options.seeds(self.stage.progress.step)
        self.own = random.Random(torch.initial_seed())
        self.pools = {
            ratio: LatentPool(self.preset, ratio, share, self.model.text, self.device)
            for ratio, share in self.preset.ratios
        }
        self.stage.start()

    def places(self, schedule: ScaleSchedule, scales: int) -> Places:
        key = (schedule.name, scales)
        if key not in self._places:
            self._places[key] = Places.of(schedule, scales, self.preset.model.head_dim, self.device)
        return self._places[key]

    def warm_up(self) -> None:
        """Compiles the blocks for every shape of a step, on noise."""
        for ratio, _ in self.preset.ratios:
            schedule, config = self.preset.schedule(ratio), self.preset.model
            for scales, count in ((len(schedule), self.preset.whole_batch), *self.preset.prefixes):
                last = schedule.grids[-1]
                latents = torch.randn(count, config.tokenizer.code_bits, last.h, last.w, device=self.device)
                words, lengths = pad_words(self.model.text, ["a"] * count)
                losses, _ = self.losses(self.model, (words.to(self.device), lengths), latents, (schedule, scales))
                losses.sum().backward()
                self.stage.optimiser.zero_grad(set_to_none=True)

    def plan_step(self, schedule: ScaleSchedule) -> tuple[int, int]:
        """Scales and batch of the next step."""
        whole = WHOLE_BEFORE if self.stage.fraction < PREFIX_UNTIL else WHOLE_AFTER
        if self.options.init is not None:
            whole = WHOLE_AGAIN
        if self.rng.random() < whole:
            return len(schedule), self.preset.whole_batch
        return self.rng.choice(self.preset.prefixes)

    def losses(
        self,
        model: TextToBits,
        text: tuple[Tensor, list[int]],
        latents: Tensor,
        shape: tuple[ScaleSchedule, int],
        own: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Losses by scale and the bits; in training with wrong bits and dropped captions.

        Args:
            own: the wrong bits are those that the model draws, at a random temperature, behind the true ones.
        """
        (words, lengths), (schedule, scales), count = text, shape, len(latents)
        draws = torch.rand(3, count, device=self.device)
        dropped = draws[0] < (DROPPED_TEXT if model.training else 0.0)
        flips = draws[1] * MOST_FLIPS if model.training and not own else None

        def logits_of(built: Pyramid) -> Tensor:
            tokens = inputs(built.sums, schedule, scales)
            with torch.autocast(self.device.type, torch.bfloat16):
                return model(words, lengths, dropped, tokens, self.places(schedule, scales))

        built = pyramid(self.tokenizer, latents, schedule, scales, flips)
        if own:
            # With gradients on, though none are taken: without them the blocks would be compiled a second time.
            logits = logits_of(built).detach()
            wrong = drawn_wrongly(logits, built.targets, draws[1], COOLEST + (1 - COOLEST) * draws[2])
            built = pyramid(self.tokenizer, latents, schedule, scales, wrong=wrong)
        return bit_losses(logits_of(built), built.targets), built.targets

    def step(self) -> None:
        pool = self.pools[choose(self.preset.ratios, self.rng)]
        if not pool.filled or self.stage.progress.step % self.preset.refresh == 0:
            for _ in range(1 if pool.filled else min(STARTING_DRAWS, pool.capacity // self.preset.drawn)):
                pool.add(self.source, self.tokenizer, self.own)
        scales, count = self.plan_step(pool.schedule)
        latents, words, lengths = pool.sample(count)
        own = self.options.init is not None and self.rng.random() < OWN_DRAWS
        losses, targets = self.losses(self.model, (words, lengths), latents, (pool.schedule, scales), own)
        weighted(losses, targets).backward()
        self.stage.minimise(count)
        if scales == len(pool.schedule) and self.stage.group.leads:
            self.stage.progress.say(lambda: {f"s{i}": v for i, v in enumerate(losses.tolist())})

    @torch.no_grad()
    def check(self) -> dict[str, Any]:
        """Held-out bits: per picture, and nats per bit by scale, of the averaged weights; the best are kept."""
        model = mean_module(self.stage.mean, TextToBits).eval()
        found: dict[str, Any] = {}
        total = 0.0
        for ratio, share in self.preset.ratios:
            captions, pictures = self.source.held_out(ratio, self.preset.checked)
            if not captions:
                continue
            schedule = self.preset.schedule(ratio)
            words, lengths = pad_words(model.text, captions)
            parts = []
            for start in range(0, len(captions), 32):
                part = slice(start, start + 32)
                latents = self.tokenizer.encode_latent(pictures[part])
                text = (words[part].to(self.device), lengths[part])
                losses, _ = self.losses(model, text, latents, (schedule, len(schedule)))
                parts.append(losses * len(latents))
            mean = torch.stack(parts).sum(0) / len(captions)
            cells = mean.new_tensor([grid.size for grid in schedule]) * self.preset.model.token_bits
            bits = float((mean * cells).sum()) / 0.6931472
            total += share * bits
            found[f"{ratio:g}"] = {"bits": round(bits), "nats": [round(v, 4) for v in mean.tolist()]}
        model.train()
        if total < self.best_bits:
            self.best_bits = total
            self.best = {name: value.detach().to("cpu", torch.float16) for name, value in model.state_dict().items()}
        self.history.append({"seconds": round(self.stage.progress.seconds), **found})
        return found

    def run(self) -> None:
        while self.stage.running():
            self.step()
            if self.stage.check_due():
                print(f"held out: {self.check()}", flush=True)
            if self.stage.group.leads and self.stage.progress.due(SAVE_EVERY):
                self.save()
        if self.stage.group.leads:
            print(f"held out: {self.check()}", flush=True)
            self.save()
            self.export()

    def save(self) -> None:
        self.stage.save({"best": self.best, "best_bits": self.best_bits, "history": self.history})

    def export(self) -> None:
        """Writes the best averaged weights in float16 and as a model folder in eight bits, and a sheet of pictures."""
        out, model = self.options.out, TextToBits(self.preset)
        model.load_state_dict(self.best)
        save_weights(out / "transformer.safetensors", model.transformer.state_dict(), torch.float16)
        save_weights(out / "text_encoder.safetensors", model.text.state_dict(), torch.float16)
        write_packed(out / "packed", self.preset, model, self.tokenizer)
        card = self.stage.facts() | {"held_out_bits": self.best_bits, "history": self.history}
        write_card(out / "transformer.json", card | {"command": command_line("wardrobe")})
        draw_shown(out, str(self.device))


def write_packed(folder: Path, preset: WardrobePreset, model: TextToBits, tokenizer: BitTokenizer) -> None:
    """Writes the model folder that the library loads: transformer and tokenizer in eight bits."""
    whole = Infinity(preset.model)
    whole.transformer.load_state_dict(model.transformer.state_dict())
    whole.tokenizer.load_state_dict(tokenizer.state_dict())
    save_model(folder, "wardrobe", whole, model.text, preset.text, DEFAULTS)
    for part in ("transformer", "tokenizer"):
        path = folder / f"{part}.safetensors"
        save_weights(path, read_state(path), torch.float16, packed=True)


def draw_shown(out: Path, device: str, seed: int = 0) -> None:
    """A sheet of pictures of fixed captions, 3:4 and square."""
    from stepvar import Pipeline

    pipeline = Pipeline.from_pretrained(out / "packed", device=device)
    rows: list[list[Tensor]] = []
    titles: list[list[str]] = []
    for shape in ("3:4", "1:1"):
        for start in range(0, len(SHOWN), 6):
            captions = list(SHOWN[start : start + 6])
            drawn = pipeline(captions, seed=seed, aspect_ratio=shape, output_type="pt").images
            rows.append(list(drawn))
            titles.append(captions)
    sheet(out / "shown.jpg", rows, titles, side=256)
