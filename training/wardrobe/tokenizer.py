"""Trains the bit tokenizer of "wardrobe" on photographs: stage ``tokenizer`` of ``python -m training.wardrobe``.

For three quarters of the time encoder and decoder together, on errors of pixels, edges, coarse hue and early features,
with bits kept in balance. Then the encoder is what it is, and the decoder alone goes on with a discriminator beside the
errors, whose pull never exceeds a share of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from stepvar.checkpoints import fill_module, read_state, save_weights
from stepvar.core.tokens import ScaleSchedule
from stepvar.models.infinity.tokenizer import BitTokenizer
from training.draws import flip_chances
from training.loop import command_line, mean_module, write_card
from training.pyramid import pyramid
from training.wardrobe.coder import (
    SLOWEST,
    Coder,
    balance_error,
    correlation_error,
    in_bfloat16,
    statistics,
)
from training.wardrobe.lite0 import EARLY, load_lite0
from training.wardrobe.looks import fine_detail, hue_error, psnr, sheet
from training.wardrobe.losses import SQUARES, Discriminator, picture_error
from training.wardrobe.photographs import Photographs, middle_boxes, read_photographs, roam, shift_tones
from training.wardrobe.stage import SAVE_EVERY, Options, Stage, choose
from training.wardrobe.widening import widened_tokenizer

PEAK_LR = 1e-3
CRITIC_LR = 1e-4
DECAY = 0.01
COMMITMENT, BALANCE, CORRELATION = 0.25, 0.3, 0.05
FLIPPED, MOST_FLIPS = 0.2, 0.1
FEWER_SCALES = 0.1
"""Share of steps that decode what the last scales have not refined: what is skipped in a generation looks like that."""
SHARPENED_FROM = 0.75
FULL_PULL_FROM = 0.85
CALIBRATION = 24
TURNED = 0.5
SMALLEST = 0.7


class TokenizerTrainer:
    """The state of a tokenizer's training.

    Attributes:
        squares: weight of the mean squared error.
        sharpening: whether the decoder goes on alone.
    """

    squares = SQUARES
    sharpening = False

    def __init__(self, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.options, self.preset, self.device = options, options.preset, options.device
        self.squares = self.squares if options.squares is None else options.squares
        self.coder = self.first_coder().to(self.device)
        self.stage = self.new_stage()
        self.network = load_lite0(EARLY, options.lite0).to(self.device)
        self.critic = Discriminator(self.preset.judged).to(self.device)
        self.critic_optimiser = torch.optim.AdamW(self.critic.parameters(), CRITIC_LR, (0.5, 0.9), weight_decay=0.01)
        if (state := self.stage.restore()) is not None:
            self.critic.load_state_dict(state["critic"])
            self.critic_optimiser.load_state_dict(state["critic_optimiser"])
            self.sharpening = state["sharpening"]
        self.stage.group.same_start(self.critic)
        self.rng = options.seeds(self.stage.progress.step)
        self._compiled: tuple[Callable[..., Any], Callable[..., Any]] | None = None
        if options.compiled:
            self._compiled = torch.compile(in_bfloat16, dynamic=False), torch.compile(picture_error, dynamic=False)
            self.warm_up()
        folders = [options.photographs, *options.more]
        self.photographs = read_photographs(folders, self.device, options.most, options.wait_for)
        self.suitable = {r: self.photographs.where(False, r, labelled=False) for r, _ in self.preset.tokenizer_ratios}
        self.stage.start()

    def first_coder(self) -> Coder:
        """What the training starts from."""
        coder = Coder(self.preset)
        if self.options.init is not None:
            path = self.options.init / "tokenizer.safetensors"
            fill_module(coder.tokenizer, widened_tokenizer(read_state(path), coder.tokenizer), str(path))
            coder.unfold()
        return coder

    def new_stage(self) -> Stage:
        return Stage("tokenizer", self.coder, self.options, self.options.peak or PEAK_LR, DECAY)

    def functions(self, pictures: Tensor) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """What runs a network and what says its errors: compiled for the most frequent shape, since others take a
        minute each to compile and are seldom."""
        usual = self.preset.size(self.preset.tokenizer_ratios[0][0])
        if self._compiled is None or tuple(pictures.shape[2:]) != usual:
            return in_bfloat16, picture_error
        return self._compiled

    def warm_up(self) -> None:
        """Compiles, on noise."""
        size = self.preset.size(self.preset.tokenizer_ratios[0][0])
        pictures = torch.rand(self.preset.tokenizer_batch, 3, *size, device=self.device) * 2 - 1
        run, errors = self.functions(pictures)
        latent = self.coder.latent(run(self.coder.tokenizer.encoder, pictures))
        if not latent.requires_grad:  # a frozen encoder's; the decoder is compiled as its steps call it
            latent.requires_grad_()
        errors(self.network, run(self.coder.tokenizer.decoder, latent), pictures, self.squares)[0].backward()
        self.stage.optimiser.zero_grad(set_to_none=True)

    @torch.no_grad()
    def draw(self, ratio: float) -> Tensor:
        """A batch of training pictures (B, 3, H, W) in [-1, 1]."""
        count, size = self.preset.tokenizer_batch, self.preset.size(ratio)
        known = self.suitable[ratio]
        index = known[torch.randint(len(known), (count,), device=self.device)]
        mirrored = torch.rand(count, device=self.device) < 0.5
        pieces = self.photographs.crop(index, roam(self.photographs, index, size, SMALLEST), mirrored, size)
        hue = 360 * torch.rand(count, device=self.device) * (torch.rand(count, device=self.device) < TURNED)
        return shift_tones(pieces, hue) * 2 - 1

    def encode(self, pictures: Tensor, share: float) -> Tensor:
        """The latent; ``share`` of the batch's statistics goes into the running ones, before they are used."""
        raw = self.functions(pictures)[0](self.coder.tokenizer.encoder, pictures)
        found = statistics(raw.detach())
        if self.stage.group.size > 1:
            dist.all_reduce(found)
            found /= self.stage.group.size
        self.coder.follow(found, share)
        return self.coder.latent(raw)

    def code_step(self, pictures: Tensor, schedule: ScaleSchedule) -> Tensor:
        """Gradients of encoder and decoder; the mean squared error."""
        count = len(pictures)
        latent = self.encode(pictures, max(SLOWEST, 1 / (self.stage.progress.step + 1)))
        flips = flip_chances(count, FLIPPED, MOST_FLIPS, self.device)
        scales = len(schedule)
        if self.rng.random() < FEWER_SCALES:
            scales = self.rng.randrange(max(1, scales - 3), scales)
        built = pyramid(self.coder.tokenizer, latent, schedule, scales, flips)
        codes = built.sums[-1]
        run, errors = self.functions(pictures)
        decoded = run(self.coder.tokenizer.decoder, latent + (codes - latent).detach())
        error, squared = errors(self.network, decoded, pictures, self.squares)
        loss = error + COMMITMENT * F.mse_loss(latent, codes)
        loss = loss + BALANCE * balance_error(latent, built, schedule) + CORRELATION * correlation_error(latent)
        loss.backward()
        return squared.detach()

    def freeze(self) -> None:
        """Goes over to sharpening: the averaged weights become the weights, their latent is centred anew."""
        mean = mean_module(self.stage.mean, Coder)
        self.coder.load_state_dict(mean.state_dict())
        for step in range(CALIBRATION):
            ratio = choose(self.preset.tokenizer_ratios, self.rng)
            self.encode(self.draw(ratio), 1 / (step + 1))
        self.sharpening = True

    def sharp_codes(self, latent: Tensor, schedule: ScaleSchedule) -> Tensor:
        """What the decoder goes on with when it goes on alone."""
        return pyramid(self.coder.tokenizer, latent, schedule).sums[-1]

    def pull_share(self) -> float:
        """The discriminator's pull now, as a share of that of the errors."""
        ramp = (self.stage.fraction - SHARPENED_FROM) / (FULL_PULL_FROM - SHARPENED_FROM)
        return self.options.pull * min(1.0, max(0.0, ramp))

    def sharp_step(self, pictures: Tensor, schedule: ScaleSchedule) -> Tensor:
        """Gradients of the decoder, of the errors and within bounds of the discriminator; then a step of the latter."""
        latent = self.encode(pictures, 0.0).detach()
        codes = self.sharp_codes(latent, schedule)
        # Asks for a gradient that nobody needs, since then the decoder is compiled only once.
        run, errors = self.functions(pictures)
        decoded = run(self.coder.tokenizer.decoder, codes.clone().requires_grad_())
        given = decoded.detach().requires_grad_()
        error, squared = errors(self.network, given, pictures, self.squares)
        (own,) = torch.autograd.grad(error, given)
        if self.options.pull > 0:
            decoded.backward(own + self.pull(given, own))
            self.train_critic(pictures, given.detach())
        else:
            decoded.backward(own)
        return squared.detach()

    def pull(self, given: Tensor, own: Tensor) -> Tensor:
        """The discriminator's gradient of decoded pictures, bounded by ``own``, that of the errors."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            (pull,) = torch.autograd.grad(-self.critic(given).float().mean(), given)
        return pull * (self.pull_share() * own.norm() / pull.norm().clamp(min=1e-12))

    def train_critic(self, real: Tensor, made: Tensor) -> None:
        self.critic_optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.critic.loss(real, made)
        loss.backward()
        self.stage.group.average_gradients(self.critic.parameters())
        self.critic_optimiser.step()

    def step(self) -> Tensor:
        ratio = choose(self.preset.tokenizer_ratios, self.rng)
        schedule, pictures = self.preset.schedule(ratio), self.draw(ratio)
        if self.stage.fraction >= SHARPENED_FROM and not self.sharpening:
            self.freeze()
        squared = (self.sharp_step if self.sharpening else self.code_step)(pictures, schedule)
        self.stage.minimise(len(pictures))
        return squared

    def finished(self) -> BitTokenizer:
        """The averaged tokenizer, its latent centred by itself."""
        return mean_module(self.stage.mean, Coder).folded().eval()

    def run(self) -> None:
        while self.stage.running():
            squared = self.step()
            leads = self.stage.group.leads
            if leads:
                self.stage.progress.say(lambda error=squared: {"psnr": 10 * float(torch.log10(4 / error))})  # type: ignore[misc]
            if self.stage.check_due():
                print(f"held out: {self.check()}", flush=True)
            if leads and self.stage.progress.due(SAVE_EVERY):
                self.save()
        if self.stage.group.leads:
            self.save()
            self.export()

    def save(self) -> None:
        more = {"critic": self.critic.state_dict(), "critic_optimiser": self.critic_optimiser.state_dict()}
        self.stage.save(more | {"sharpening": self.sharpening})

    def check(self) -> dict[str, Any]:
        return check_tokenizer(self.finished(), self.photographs, self.options)

    def write(self, tokenizer: BitTokenizer, path: Path) -> None:
        save_weights(path, tokenizer.state_dict(), torch.float16)

    def export(self) -> None:
        """Writes the averaged weights, their figures and a sheet of held-out photographs beside their copies."""
        tokenizer, out = self.finished(), self.options.out
        self.write(tokenizer, out / "tokenizer.safetensors")
        found = check_tokenizer(tokenizer, self.photographs, self.options)
        write_card(out / "tokenizer.json", found | self.stage.facts() | {"command": command_line("wardrobe")})
        draw_copies(tokenizer, self.photographs, self.options)
        print(f"tokenizer: {found}", flush=True)


def spread_out(index: Tensor, count: int) -> Tensor:
    """At most ``count`` of some indices, evenly spread: neighbours in the data set are often by one photographer."""
    return index[:: max(1, len(index) // max(1, count))][:count]


@torch.no_grad()
def copies(
    tokenizer: BitTokenizer, photographs: Photographs, options: Options, ratio: float, count: int
) -> tuple[Tensor, Tensor, list[float]]:
    """Held-out photographs and their copies, (N, 3, H, W) in [0, 1]; and how bits lean, by scale."""
    index = spread_out(photographs.where(True, ratio), count)
    size, schedule = options.preset.size(ratio), options.preset.schedule(ratio)
    straight = torch.zeros(len(index), dtype=torch.bool, device=index.device)
    pictures = photographs.crop(index, middle_boxes(photographs, index, size), straight, size)
    parts, bits = [], []
    for part in pictures.split(16):
        found, codes = tokenizer.encode(part * 2 - 1, schedule)
        bits.append([scale.float().mean((0, 2, 3)) for scale in found])
        parts.append((tokenizer.decode(codes) + 1) / 2)
    leaning = [float((torch.stack(shares).mean(0) - 0.5).abs().mean()) for shares in zip(*bits, strict=True)]
    return pictures, torch.cat(parts), leaning


def check_tokenizer(tokenizer: BitTokenizer, photographs: Photographs, options: Options) -> dict[str, Any]:
    """Figures on held-out photographs: PSNR, fine detail kept, error of hue, leaning of bits by scale."""
    found: dict[str, Any] = {}
    for ratio, _ in options.preset.tokenizer_ratios:
        pictures, decoded, leaning = copies(tokenizer, photographs, options, ratio, options.preset.checked)
        found[f"{ratio:g}"] = {
            "psnr_db": round(float(psnr(decoded, pictures).mean()), 3),
            "detail_kept": round(float(fine_detail(decoded).sum() / fine_detail(pictures).sum()), 3),
            "hue_error": round(float(hue_error(decoded, pictures).mean()), 2),
            "leaning": [round(value, 3) for value in leaning],
        }
    return found


def draw_copies(tokenizer: BitTokenizer, photographs: Photographs, options: Options) -> None:
    rows: list[list[Tensor]] = []
    for ratio, _ in options.preset.tokenizer_ratios:
        pictures, decoded, _ = copies(tokenizer, photographs, options, ratio, 12)
        rows += [list(pictures[:6]), list(decoded[:6]), list(pictures[6:12]), list(decoded[6:12])]
    sheet(options.out / "copies.jpg", rows, side=256)


def load_tokenizer(options: Options) -> BitTokenizer:
    """The finished tokenizer of this run, or of the one it goes on from; frozen."""
    own = options.out / "tokenizer.safetensors"
    return read_tokenizer(options, own if own.exists() or options.init is None else options.init / own.name)


def read_tokenizer(options: Options, path: Path) -> BitTokenizer:
    """A tokenizer with the weights of a file; frozen."""
    tokenizer = BitTokenizer(options.preset.model.tokenizer)
    fill_module(tokenizer, read_state(path), str(path))
    return tokenizer.to(options.device).eval().requires_grad_(False)
