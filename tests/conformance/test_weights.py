"""The rules that weights of goldens are made by."""

from __future__ import annotations

import pytest
import torch

from stepvar.conformance.weights import HART_RULE, INFINITY_RULE, STAR_RULE


def test_weights_are_those_of_the_rule() -> None:
    """Values that the original rule gives for seed 0."""
    probes = {
        ("block_chunks.0.module.0.sa.mat_qkv.weight", (384, 128)): (0.025926485657691956, -0.0979088768362999),
        ("block_chunks.0.module.0.sa.scale_mul_1H11", (1, 2, 1, 1)): (2.263582706451416, 4.3610968589782715),
        ("text_norm.weight", (256,)): (1.0072811841964722, 1.0576149225234985),
        ("decoder.conv_in.conv.weight", (128, 16, 3, 3)): (0.06158256158232689, 0.055167533457279205),
        ("cfg_uncond", (32, 256)): (0.22110047936439514, 1.198512077331543),
        ("blocks.0.attn.q_bias", (128,)): (-0.012571947649121284, 0.021658778190612793),
    }
    for (name, shape), (first, last) in probes.items():
        weight = INFINITY_RULE(name, shape, 0)
        assert weight.dtype == torch.float32 and weight.shape == shape
        assert (weight.flatten()[0].item(), weight.flatten()[-1].item()) == (first, last), name


def test_weights_of_infinity_star_have_a_rule_of_their_own() -> None:
    for name, mean, spread in (
        ("blocks.0.attn.q_norm.weight", 1.0, 0.05),
        ("decoder.norm_out.conv_y.conv.bias", 1.0, 0.05),
        ("decoder.conv_in.conv.bias", 0.0, 0.05),
        ("head.bias", 0.0, 0.1),
        ("cfg_uncond", 0.0, 0.5),
    ):
        weight = STAR_RULE(name, (4096,), 3)
        assert abs(float(weight.mean()) - mean) < spread / 10 and abs(float(weight.std()) / spread - 1) < 0.05, name
    assert abs(float(STAR_RULE("word_embed.weight", (256, 64), 0).std()) / 0.5 - 1) < 0.02


@pytest.mark.parametrize(
    ("name", "shape", "mean", "deviation"),
    [
        ("block_chunks.0.module.1.ada_gss", (1, 1, 6, 999), 0.0, 0.3),
        ("lvl_embed.weight", (15, 400), 0.0, 0.5),
        ("text_proj_for_sos.ca.mat_q", (1, 2, 3000), 0.0, 1.0),
        ("head_nm.norm.weight", (5000,), 1.0, 0.05),
        ("head.bias", (5000,), 0.0, 0.05),
        ("head.weight", (100, 400), 0.0, 0.05),
        ("decoder.conv_in.conv.weight", (60, 25, 4, 4), 0.0, 0.05),
    ],
)
def test_ranges_of_weights(name: str, shape: tuple[int, ...], mean: float, deviation: float) -> None:
    weight = INFINITY_RULE(name, shape, 3)
    assert weight.mean().item() == pytest.approx(mean, abs=4 * deviation / weight.numel() ** 0.5)
    assert weight.std().item() == pytest.approx(deviation, rel=0.05)


def test_weights_depend_on_name_and_seed_only() -> None:
    weight = INFINITY_RULE("head.bias", (8,), 1)
    assert torch.equal(weight, INFINITY_RULE("head.bias", (8,), 1))
    assert not torch.equal(weight, INFINITY_RULE("head.bias", (8,), 2))
    assert not torch.equal(weight, INFINITY_RULE("heads.bias", (8,), 1))
    assert (INFINITY_RULE("sa.zero_k_bias", (8,), 1) == 0).all()


def test_weights_of_hart_have_a_rule_of_their_own() -> None:
    for name, mean, deviation in (
        ("block_chunks.0.module.0.ln_wo_grad.weight", 1.0, 0.05),
        ("block_chunks.0.module.0.sa.scale_mul_1H11", 1.0, 0.1),
        ("head.bias", 0.0, 0.1),
        ("pos_start", 0.0, 0.3),
    ):
        weight = HART_RULE(name, (4096,), 3)
        assert abs(float(weight.mean()) - mean) < deviation / 10, name
        assert abs(float(weight.std()) / deviation - 1) < 0.05, name
    assert abs(float(HART_RULE("head.weight", (64, 256), 0).std()) / 0.125 - 1) < 0.02
