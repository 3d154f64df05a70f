"""Training and generation of videos must compute the same model."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Step
from stepvar.core.resolve import resolve
from stepvar.core.tokens import TokenMap
from stepvar.generation import generate
from stepvar.methods import Dense
from stepvar.models.infinity_star.codes import bits_of, quantise, shrink
from stepvar.models.infinity_star.model import InfinityStar, StarState, VideoCondition, as_cells
from stepvar.models.infinity_star.transformer import run_block
from stepvar.text import TextFeatures
from tests.helpers import make_settings
from training.video.presets import PRESETS
from training.video.pyramid import drawn_wrongly, pyramids
from training.video.transformer import Sequence, TextToVideo, bit_loss, run_sparse_block

CPU = torch.device("cpu")


class Spy(InfinityStar):
    """Remembers what every pass read and said."""

    inputs: list[Tensor]
    logits: list[Tensor]

    def next_tokens(self, latent: Tensor, step: Step) -> Tensor:
        cells = super().next_tokens(latent, step)
        self.inputs.append(cells.transpose(1, 2).unflatten(2, step.grid.shape).clone())
        return cells

    def predict(self, state: StarState, tokens: TokenMap, step: Step) -> Tensor:
        self.logits.append(super().predict(state, tokens, step))
        return self.logits[-1]


def test_all_passes_at_once_equal_pass_by_pass() -> None:
    torch.manual_seed(0)
    # Two clips behind the image, one pass of which is repeated.
    preset = PRESETS["tiny"]
    preset = replace(preset, model=replace(preset.model, latents=(3, 5)))
    trained = TextToVideo(preset).eval()
    model = Spy(preset.model).eval()
    model.inputs, model.logits = [], []
    model.transformer = trained.transformer
    model.block_list = model.transformer.block_list
    words = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
    padded, lengths = torch.zeros(2, preset.words, dtype=torch.int64), torch.tensor([5, 3])
    padded[:, :5] = words
    schedule = preset.schedule
    assert schedule.scale_counts == (3, 3, 3) and len(schedule) == 12
    plan = resolve(make_settings(schedule, 1.0), 2, preset.model.depth)
    with torch.inference_mode():
        text = TextFeatures(trained.text(words, lengths), (5, 3))
        generate(model, VideoCondition(text), plan, Dense(), SeededNoise([1, 2]))
        kept = torch.zeros(2, dtype=torch.bool)
        together = trained.logits(trained(padded, lengths, kept, model.inputs, Sequence.of(preset, CPU)))
    assert len(together) == len(model.logits) == 12
    for taught, generated in zip(together, model.logits, strict=True):
        torch.testing.assert_close(taught, generated, atol=2e-5, rtol=1e-4)


def test_the_attention_that_skips_what_is_masked_is_the_masked_one() -> None:
    torch.manual_seed(3)
    preset = PRESETS["tiny"]
    sequence, lengths = Sequence.of(preset, CPU), torch.tensor([5, 3])
    size = len(sequence.part)
    blocks = create_block_mask(lambda _b, _h, q, k: sequence.sees(q, k), None, None, size, size, "cpu")
    block = TextToVideo(preset).transformer.block_list[0]
    x = torch.randn(2, size, preset.model.width)
    with torch.inference_mode():
        masked = run_block(block, x, 0, sequence.rotary, sequence.attention(lengths))
        skipping = run_sparse_block(block, x, sequence.rotary, lengths, blocks, preset.words)
        other = run_block(block, x, 0, sequence.rotary, sequence.attention(torch.tensor([5, 4])))
    torch.testing.assert_close(skipping, masked, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other[0], masked[0])
    assert not torch.allclose(other[1], masked[1], atol=1e-4)  # an unfilled word is not seen


def test_pyramids_are_those_of_the_tokenizer_and_what_passes_read_is_what_the_loop_makes() -> None:
    torch.manual_seed(1)
    preset = PRESETS["tiny"]
    latent = 0.4 * torch.randn(2, preset.model.token_channels, 3, 4, 4)
    bits, total = quantise(latent, preset.passes)
    built = pyramids(latent, preset.passes)
    assert all(torch.equal(a, b) for a, b in zip(built.targets, bits, strict=True))
    torch.testing.assert_close(built.total, total)
    assert not built.inputs[0].any() and not built.inputs[4].any()  # each clip begins from nothing
    assert [tuple(i.shape[2:]) for i in built.inputs] == [grid.shape for grid in preset.schedule]


def test_flipped_bits_change_what_later_passes_have_to_mend() -> None:
    torch.manual_seed(2)
    preset = PRESETS["tiny"]
    latent = 0.4 * torch.randn(1, preset.model.token_channels, 3, 4, 4)
    clean, flipped = (pyramids(latent, preset.passes, torch.tensor([share])) for share in (0.0, 0.5))
    assert torch.equal(clean.targets[0], flipped.targets[0])
    assert not torch.equal(clean.inputs[1], flipped.inputs[1])
    assert not torch.equal(clean.targets[3], flipped.targets[3])


def test_wrong_bits_are_those_drawn_and_later_passes_have_to_mend_them() -> None:
    torch.manual_seed(4)
    preset = PRESETS["tiny"]
    latent = 0.4 * torch.randn(2, preset.model.token_channels, 3, 4, 4)
    true = pyramids(latent, preset.passes)
    # Sure of the opposite in single bits of a pass on a 2 x 2 grid, and right about all others.
    index, flipped = 1, torch.zeros_like(true.targets[1])
    flipped[0, 2, 0, 0, 1] = flipped[1, 4, 0, 1, 0] = True
    said = [target ^ flipped if place == index else target for place, target in enumerate(true.targets)]
    logits = [torch.stack((-margin, margin), -1) for margin in (100 * as_cells(bits).float() - 50 for bits in said)]
    ones = torch.ones(2)
    wrong = drawn_wrongly(logits, true.targets, torch.tensor([1.0, 0.0]), ones)
    assert torch.equal(wrong[index][0], flipped[0]) and sum(int(part.sum()) for part in wrong) == 1
    wrong = drawn_wrongly(logits, true.targets, ones, 0.5 * ones)
    assert torch.equal(wrong[index], flipped) and sum(int(part.sum()) for part in wrong) == 2
    mended = pyramids(latent, preset.passes, wrong=wrong)
    assert torch.equal(mended.targets[index], true.targets[index])
    assert torch.equal(mended.inputs[index], true.inputs[index])
    image, (grid, count) = latent[:, :, :1], preset.passes[0][-1]
    before = mended.inputs[len(preset.passes[0]) - 1]
    assert before.shape == image.shape and not torch.equal(before, true.inputs[len(preset.passes[0]) - 1])
    assert torch.equal(shrink(before, grid), before)
    assert torch.equal(mended.targets[len(preset.passes[0]) - 1], bits_of(image - before, grid, count))
    # Another clip begins with nothing.
    for place in range(len(preset.passes[0]), len(true.targets)):
        assert torch.equal(mended.targets[place], true.targets[place])


def test_the_loss_of_certain_and_right_logits_is_nothing_and_of_ignorance_one_bit() -> None:
    preset = PRESETS["tiny"]
    built = pyramids(0.4 * torch.randn(2, preset.model.token_channels, 3, 4, 4), preset.passes)
    by_token = [target.flatten(2).transpose(1, 2).float() for target in built.targets]
    right = [20 * torch.stack((1 - bits, bits), dim=-1) for bits in by_token]
    assert bit_loss(right, built.targets)[0] < 1e-6
    loss, losses = bit_loss([torch.zeros_like(logits) for logits in right], built.targets)
    torch.testing.assert_close(losses, torch.full_like(losses, 0.6931), atol=1e-3, rtol=0)
    torch.testing.assert_close(loss, losses[0])
