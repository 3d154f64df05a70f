"""Training and generation must compute the same model."""

import torch

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan
from stepvar.generation import generate
from stepvar.methods import Dense
from stepvar.models.infinity import Infinity, TextCondition
from stepvar.text import TextFeatures
from training.presets import PRESETS
from training.pyramid import inputs
from training.transformer import SequencePositions, TextToBits


def test_all_scales_at_once_equal_scale_by_scale() -> None:
    torch.manual_seed(0)
    preset = PRESETS["tiny"]
    trained = TextToBits(preset).eval()
    model = Infinity(preset.model).eval()
    model.transformer = trained.transformer
    model.block_list = model.transformer.blocks
    words = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
    lengths = [5, 3]
    schedule = model.schedule(1.5)
    plan = Plan(schedule, (1.0,) * len(schedule), (1.0,) * len(schedule))

    logits, sums = [], []

    class Spy(Infinity):
        def predict(self, state, tokens, step):
            logits.append(super().predict(state, tokens, step))
            return logits[-1]

        def accumulate(self, state, symbols, step, weights=None):
            super().accumulate(state, symbols, step, weights)
            sums.append(state.latent.clone())

    model.__class__ = Spy
    with torch.inference_mode():
        text = TextFeatures(trained.text(words, lengths), (5, 3))
        generate(model, TextCondition(text), 2, plan, Dense(), SeededNoise([1, 2]))
        positions = SequencePositions.of(schedule, len(schedule), preset.model.head_dim, torch.device("cpu"))
        together = trained(
            words, lengths, torch.zeros(2, dtype=torch.bool), inputs(sums, schedule, len(schedule)), positions
        )
    torch.testing.assert_close(together, torch.cat(logits, dim=1), atol=2e-4, rtol=1e-3)
