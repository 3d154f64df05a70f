from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.resolve import resolve
from stepvar.methods import HighPass, Method
from stepvar.models.infinity import Infinity, TextCondition
from stepvar.models.infinity.tokenizer import BitTokenizer, resize
from stepvar.models.infinity.transformer import TextMemory, with_bias
from stepvar.text import TextFeatures, length_mask
from tests.helpers import (
    LENGTHS,
    SQUARE,
    TINY,
    WIDE,
    Watch,
    equal_everywhere,
    generate_infinity,
    make_model,
    make_settings,
    make_text,
)

# Guidance


def test_no_unconditional_branch_where_nothing_later_needs_it(tiny_model: Infinity) -> None:
    watch = Watch()
    generated = generate_infinity(
        tiny_model, make_settings(SQUARE, (1.0, 3.0, 2.0, 1.0, 1.0)), watch, make_text(LENGTHS)
    )
    rows = [{len(tokens.features) for (scale, _, _), tokens in watch.seen.items() if scale == i} for i in range(5)]
    assert rows == [{6}, {6}, {6}, {3}, {3}]  # scale 0 is not guided, but later scales attend to it
    assert generated.state.cache.keys[0].shape[0] == 6
    assert [step.branches for step in generated.steps] == [2, 2, 2, 1, 1]


def test_cache_has_one_row_per_branch_and_sample(tiny_model: Infinity) -> None:
    for guidance, rows in ((3.0, 6), (1.0, 3)):
        cache = generate_infinity(tiny_model, make_settings(SQUARE, guidance), text=make_text(LENGTHS)).state.cache
        assert {keys.shape[0] for keys in (*cache.keys, *cache.values)} == {rows}
        assert cache.lengths == [SQUARE.size] * TINY.depth


def test_dropping_a_branch_that_nothing_needs_changes_nothing(tiny_model: Infinity) -> None:
    """Guidance of 1 at the last scale drops a branch; a scale so close to 1 that it rounds away keeps it."""
    dropped = generate_infinity(tiny_model, make_settings(SQUARE, (3.0, 3.0, 3.0, 3.0, 1.0)))
    nearly = generate_infinity(tiny_model, make_settings(SQUARE, (3.0, 3.0, 3.0, 3.0, 1.0 + 1e-12)))
    assert [d.steps[-1].branches for d in (dropped, nearly)] == [1, 2]
    torch.testing.assert_close(dropped.logits[-1], nearly.logits[-1], atol=1e-4, rtol=0)
    assert equal_everywhere(dropped.bits, nearly.bits)


def test_guidance_on_the_logits(tiny_model: Infinity) -> None:
    """The first scale's logits are linear in the guidance scale."""
    one, two, five = (generate_infinity(tiny_model, make_settings(SQUARE, g)).logits[0] for g in (1.0, 2.0, 5.0))
    torch.testing.assert_close(five, one + 4 * (two - one), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one, two)


def behind(model: Infinity, watch: Watch, scale: int, layer: int) -> Tensor:
    """Features behind a block, from what its last sub-layer was given."""
    tokens = watch.seen[(scale, layer, "ffn")]
    plan = Method().plan(make_settings(SQUARE), model.info, 1)
    condition = model.condition(model.stage(TextCondition(make_text((5,))), plan), guided=True)
    _, gate, _, scale2, _, shift2 = condition.modulation[layer].unsqueeze(2).unbind(1)
    x = torch.nn.functional.layer_norm(tokens.features, (TINY.width,), eps=1e-6) * (1 + scale2) + shift2
    return tokens.features + gate * model.block_list[layer].ffn(x)


def test_guidance_inside_the_stack_is_applied_behind_its_block(tiny_model: Infinity) -> None:
    watch = Watch()
    generated = generate_infinity(tiny_model, make_settings(SQUARE, 3.0, cfg_layers=(-2,)), watch)
    for scale in range(5):
        conditional, unconditional = behind(tiny_model, watch, scale, layer=2)  # depth - 2
        after = watch.seen[(scale, 3, "self")].features
        guided = 3 * conditional - 2 * unconditional
        torch.testing.assert_close(after, torch.stack([guided, guided]), atol=1e-3, rtol=1e-4)
        assert not torch.allclose(conditional, unconditional)
    assert generated.logits[0].shape == (1, 1, 2 * TINY.token_bits)


def test_cfg_layers_differ_and_combine(tiny_model: Infinity) -> None:
    results = [
        generate_infinity(tiny_model, make_settings(SQUARE, 3.0, cfg_layers=layers)).logits[0]
        for layers in ((0,), (-1,), (-3,), (0, -3), ())
    ]
    assert all(not torch.allclose(a, b) for i, a in enumerate(results) for b in results[:i])
    plain = generate_infinity(tiny_model, make_settings(SQUARE, 1.0)).logits[0]
    torch.testing.assert_close(results[-1], plain, atol=1e-4, rtol=0)  # combined nowhere: the conditional branch alone


def test_negative_prompt_replaces_the_null_text(tiny_model: Infinity) -> None:
    settings, text = make_settings(SQUARE), make_text((5,))
    null = TextFeatures(tiny_model.transformer.cfg_uncond[None, :5], (5,))
    without = generate_infinity(tiny_model, settings, text=text)
    assert equal_everywhere(without.logits, generate_infinity(tiny_model, settings, text=text, negative=null).logits)
    other = generate_infinity(tiny_model, settings, text=text, negative=make_text((9,), first=50))
    assert not torch.allclose(without.logits[0], other.logits[0])
    # The same prompt on both sides: guidance leads nowhere.
    same = generate_infinity(tiny_model, settings, text=text, negative=text)
    plain = generate_infinity(tiny_model, make_settings(SQUARE, 1.0), text=text)
    torch.testing.assert_close(same.logits[0], plain.logits[0], atol=1e-4, rtol=0)


def test_null_text_is_as_long_as_each_prompt(tiny_model: Infinity) -> None:
    text = make_text((3, 7))
    null = tiny_model.transformer.cfg_uncond
    explicit = TextFeatures(torch.stack([null[:7], null[:7]]), (3, 7))
    first, second = (
        generate_infinity(tiny_model, make_settings(SQUARE), text=text, negative=n) for n in (None, explicit)
    )
    torch.testing.assert_close(first.logits[0], second.logits[0], atol=1e-5, rtol=0)


# Text


@pytest.mark.parametrize("lengths", [(5,), (4, 4), (3, 7)])
def test_padding_is_never_read(tiny_model: Infinity, lengths: Sequence[int]) -> None:
    text = make_text(lengths)
    junk = torch.full((len(lengths), 20, TINY.text_channels), 1e3)
    for row, length in enumerate(lengths):
        junk[row, :length] = text.features[row, :length]
    first, second = (
        generate_infinity(tiny_model, make_settings(SQUARE), text=t) for t in (text, TextFeatures(junk, tuple(lengths)))
    )
    torch.testing.assert_close(first.logits[0], second.logits[0], atol=1e-5, rtol=0)
    assert equal_everywhere(first.bits, second.bits)


def test_prompts_matter(tiny_model: Infinity) -> None:
    first, second = (
        generate_infinity(tiny_model, make_settings(SQUARE), text=make_text((5,), first=i)) for i in (0, 1)
    )
    assert not torch.allclose(first.logits[0], second.logits[0])


# Layout of tokens and scales


@pytest.mark.parametrize("every_chunk", [False, True])
def test_where_the_level_embedding_is_added(every_chunk: bool) -> None:
    model, watch = make_model(replace(TINY, level_every_chunk=every_chunk)), Watch()
    generated = generate_infinity(model, make_settings(SQUARE), watch)
    for scale, level in enumerate(model.transformer.lvl_embed.weight[:5]):
        embedded = model.transformer.first_tokens(generated.state.condition)
        if scale:
            embedded = model.transformer.word_embed(generated.record[f"tokens_in_{scale}"])
        first = watch.seen[(scale, 0, "self")].features
        torch.testing.assert_close(first, (embedded + level).expand_as(first), atol=1e-5, rtol=0)
        inside_chunk = watch.seen[(scale, 1, "self")].features
        torch.testing.assert_close(inside_chunk, behind(model, watch, scale, layer=0), atol=1e-4, rtol=0)
        second_chunk = watch.seen[(scale, 2, "self")].features
        expected = behind(model, watch, scale, layer=1) + (level if every_chunk else 0)
        torch.testing.assert_close(second_chunk, expected, atol=1e-4, rtol=0)


def test_patchified_bits_and_tokens_are_inverse() -> None:
    model = make_model(replace(TINY, patchify=True))
    step = resolve(make_settings(WIDE), 2, TINY.depth).steps[-1]
    indices = torch.randint(2, (2, 54, TINY.tokenizer.code_bits * 4), generator=torch.Generator().manual_seed(0))
    bits = model.latent_bits(indices, step)
    assert bits.shape == (2, TINY.tokenizer.code_bits, 12, 18)
    # Channel c * 4 + i * 2 + j of token (y, x) is channel c of cell (2 y + i, 2 x + j).
    assert bits[1, 3, 2 * 4 + 1, 2 * 7] == indices[1, 4 * 9 + 7, 3 * 4 + 2]
    assert torch.equal(model.next_tokens(bits.float(), step), indices.float())


def test_patchified_model_generates() -> None:
    model = make_model(replace(TINY, patchify=True))
    generated = generate_infinity(model, make_settings(WIDE), HighPass(keep=0.5))
    assert generated.state.latent.shape == (1, TINY.tokenizer.code_bits, 12, 18)
    assert model.decode(generated.state).shape == (1, 3, 24, 36)


def test_latent_is_the_sum_of_resampled_codes(tiny_model: Infinity) -> None:
    generated = generate_infinity(tiny_model, make_settings(WIDE))
    scale = TINY.tokenizer.code_bits**-0.5
    codes = [(2 * bits[:, 0].movedim(-1, 1).float() - 1) * scale for bits in generated.bits]
    total = sum((resize(code, (6, 9)) for code in codes), torch.zeros(1))
    torch.testing.assert_close(generated.state.latent, total)


def test_quantiser_takes_signs_of_what_is_left() -> None:
    tokenizer = BitTokenizer(TINY.tokenizer)
    latent = torch.randn(2, TINY.tokenizer.code_bits, 6, 9, generator=torch.Generator().manual_seed(0))
    bits, total = tokenizer.quantise(latent, WIDE)
    assert [tuple(bit.shape[-2:]) for bit in bits] == [(grid.h, grid.w) for grid in WIDE]
    assert torch.equal(bits[0].flatten(1), latent.mean(dim=(2, 3)) > 0)
    before_last = total - tokenizer.codes(bits[-1])
    assert torch.equal(bits[-1], latent - before_last > 0)
    assert (latent - total).square().mean() < latent.square().mean()


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_generates(dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    generated = generate_infinity(model, make_settings(WIDE), HighPass(keep=0.5), make_text(LENGTHS))
    assert generated.state.cache.keys[0].dtype == dtype
    assert generated.state.latent.dtype == generated.logits[0].dtype == torch.float32
    exact = generate_infinity(make_model(), make_settings(WIDE), HighPass(keep=0.5), make_text(LENGTHS))
    assert (generated.logits[0] - exact.logits[0]).abs().max() < 0.1 * exact.logits[0].abs().max()
    assert torch.isfinite(model.decode(generated.state).float()).all()


def test_the_bias_of_padded_texts_is_their_mask_to_the_bit() -> None:
    """Made once, it stands for a mask of bools in every block; where nothing is padded, nothing is added."""
    torch.manual_seed(0)
    keys, values, query = (torch.randn(2, 4, n, 16, dtype=torch.bfloat16) for n in (7, 7, 5))
    mask = length_mask([7, 3], 7)
    first, second = with_bias([TextMemory(keys, values, mask), TextMemory(values, keys, mask)])
    assert first.mask is not None and first.mask is second.mask and first.mask.dtype == torch.bfloat16
    for plain, own in ((mask, first), (mask, second)):
        wanted = F.scaled_dot_product_attention(query, own.keys, own.values, attn_mask=plain)
        assert torch.equal(F.scaled_dot_product_attention(query, own.keys, own.values, attn_mask=own.mask), wanted)
    assert with_bias([TextMemory(keys, values, None)])[0].mask is None
