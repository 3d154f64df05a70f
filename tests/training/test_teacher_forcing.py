"""Training and generation must compute the same model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from stepvar.core.noise import SeededNoise
from stepvar.core.resolve import resolve
from stepvar.generation import generate
from stepvar.methods import Dense
from stepvar.models.infinity import Infinity, TextCondition, schedule_for
from stepvar.text import TextFeatures
from tests.helpers import make_settings
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
    plan = resolve(make_settings(schedule, 1.0), 2, preset.model.depth)

    logits, sums = [], []

    class Spy(Infinity):
        def predict(self, state, tokens, step):
            logits.append(super().predict(state, tokens, step))
            return logits[-1]

        def accumulate(self, state, indices, step, weights=None, mask=None):
            super().accumulate(state, indices, step, weights, mask)
            sums.append(state.latent.clone())

    model.__class__ = Spy
    with torch.inference_mode():
        text = TextFeatures(trained.text(words, lengths), (5, 3))
        generate(model, TextCondition(text), plan, Dense(), SeededNoise([1, 2]))
        positions = SequencePositions.of(schedule, len(schedule), preset.model.head_dim, torch.device("cpu"))
        together = trained(
            words, lengths, torch.zeros(2, dtype=torch.bool), inputs(sums, schedule, len(schedule)), positions
        )
    torch.testing.assert_close(together, torch.cat(logits, dim=1), atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_and_are_compiled_once_for_all_shapes() -> None:
    torch.manual_seed(0)
    preset = PRESETS["tiny"]
    own, compiled = TextToBits(preset), TextToBits(preset, compiled=True)
    compiled.load_state_dict(own.state_dict())

    def gradients(model: TextToBits, ratio: float, scales: int) -> list[Tensor]:
        torch.manual_seed(1)
        schedule = schedule_for(preset.model.resolution, ratio)
        size = sum(grid.size for grid in schedule.grids[:scales])
        positions = SequencePositions.of(schedule, scales, preset.model.head_dim, torch.device("cpu"))
        words, tokens = torch.randint(1, 20, (3, 6)), torch.randn(3, size - 1, preset.model.token_bits)
        logits = model(words, [6, 4, 5], torch.tensor([False, True, False]), tokens, positions)
        return [logits, *torch.autograd.grad(logits.square().mean(), list(model.parameters()), allow_unused=True)]

    for ratio, scales in ((1.0, 7), (1.5, 7), (0.666, 5), (1.0, 6)):
        before = counters["stats"]["unique_graphs"]
        pairs = zip(gradients(own, ratio, scales), gradients(compiled, ratio, scales), strict=True)
        for eager, fused in pairs:
            if eager is not None:
                torch.testing.assert_close(fused, eager, atol=1e-4, rtol=1e-3)
        assert (counters["stats"]["unique_graphs"] > before) == ((ratio, scales) == (1.0, 7))
