"""Trains a tokenizer's decoder alone: stage ``decoder`` of ``python -m training.wardrobe``, behind ``--init``.

The transformer was trained on the codes of this tokenizer, so the encoder stays to the bit what it is. The decoder goes
on learning from those codes, with the discriminator beside the errors from early on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from stepvar.checkpoints import fill_module, read_state, save_weights
from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.models.autoencoder import Decoder
from stepvar.models.infinity.tokenizer import BitTokenizer
from training.draws import flip_chances
from training.loop import mean_module
from training.pyramid import pyramid
from training.wardrobe.coder import Coder
from training.wardrobe.stage import Options, Stage
from training.wardrobe.tokenizer import DECAY, FLIPPED, MOST_FLIPS, TokenizerTrainer

PEAK_LR = 3e-4
FULL_PULL_FROM = 0.1
FLIPPED_SCALES = 2
"""How many scales, from the last one, have flipped bits: errors of coarser ones are mended by the finer ones' bits."""
SQUARES = 30.0
"""Weight of the mean squared error, ten times that of training both parts. With it this error's gradient in the decoder
is as large as that of the early features, and holds the discriminator's pull."""


class DecoderTrainer(TokenizerTrainer):
    """The state of a decoder's training.

    Attributes:
        kept: the given tokenizer's tensors, as its file has them, but the decoder's.
    """

    squares = SQUARES
    sharpening = True
    kept: dict[str, Tensor]

    def __init__(self, options: Options) -> None:
        if options.init is None:
            raise UsageError("stage decoder: without a tokenizer to go on from; give its folder as --init")
        self.given = options.init / "tokenizer.safetensors"
        super().__init__(options)

    def first_coder(self) -> Coder:
        coder, state = Coder(self.preset), read_state(self.given)
        self.kept = {name: state[name] for name in state if not name.startswith("decoder.")}
        fill_module(coder.tokenizer, state, str(self.given))
        coder.requires_grad_(False)
        coder.tokenizer.decoder.requires_grad_()
        return coder

    def new_stage(self) -> Stage:
        return Stage("decoder", self.coder.tokenizer.decoder, self.options, self.options.peak or PEAK_LR, DECAY)

    def encode(self, pictures: Tensor, share: float) -> Tensor:
        """The latent, which the given encoder brings centred and scaled."""
        raw: Tensor = self.functions(pictures)[0](self.coder.tokenizer.encoder, pictures)
        return raw

    def sharp_codes(self, latent: Tensor, schedule: ScaleSchedule) -> Tensor:
        """The true codes; those of some pictures with a few wrong bits, since the transformer's are not all right."""
        count, device = len(latent), latent.device
        share = flip_chances(count, FLIPPED, MOST_FLIPS, device)
        first, wrong = len(schedule) - FLIPPED_SCALES, []
        for index, grid in enumerate(schedule.grids):
            shape = (count, latent.shape[1], grid.h, grid.w)
            chance = share[:, None, None, None] * (index >= first)
            wrong.append(torch.rand(shape, device=device) < chance)
        return pyramid(self.coder.tokenizer, latent, schedule, wrong=wrong).sums[-1]

    def pull_share(self) -> float:
        return self.options.pull * min(1.0, self.stage.fraction / FULL_PULL_FROM)

    def finished(self) -> BitTokenizer:
        """The given encoder and the averaged decoder."""
        tokenizer = BitTokenizer(self.preset.model.tokenizer).to(self.device)
        tokenizer.load_state_dict(self.coder.tokenizer.state_dict())
        tokenizer.decoder.load_state_dict(mean_module(self.stage.mean, Decoder).state_dict())
        return tokenizer.eval()

    def write(self, tokenizer: BitTokenizer, path: Path) -> None:
        """The encoder's tensors as the given file has them, in their own types."""
        save_weights(path, tokenizer.state_dict() | self.kept, torch.float16, exact=self.kept.keys())
