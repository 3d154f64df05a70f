"""The InfinityStar transformer in the loop, on a tiny model; numbers of the original are in the goldens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stepvar.core.guidance import AdaptiveProjectedGuidance
from stepvar.errors import UsageError
from stepvar.methods import HighPass, SkipLast, StepVAR
from stepvar.models.infinity_star.codes import codes_of, enlarge_codes
from stepvar.models.infinity_star.model import InfinityStar, VideoCondition
from stepvar.models.infinity_star.rope import text_coordinates, token_coordinates
from stepvar.models.layers import grouped_attention
from stepvar.text import TextFeatures
from tests.helpers import (
    CLIPS,
    LENGTHS,
    SQUARE,
    TINY_STAR,
    equal_everywhere,
    generate_star,
    make_settings,
    make_star,
    make_text,
)


@pytest.fixture(scope="module")
def star() -> InfinityStar:
    return make_star()


def sees(query: int, key: int) -> bool:
    """Whether pass ``query`` sees pass ``key``; -1 is the text. Written from the specification, not from the code."""
    if query == key or key == -1:
        return True
    last_of_clip = max(index for index in range(len(CLIPS)) if CLIPS.clip(index) == CLIPS.clip(key))
    return query >= 0 and key == last_of_clip and CLIPS.clip(key) == CLIPS.clip(query) - 1


def test_a_whole_video_at_once_under_a_mask_gives_the_same_logits(star: InfinityStar) -> None:
    """Without cache and without grouped heads: all passes in one sequence, each seeing what it may."""
    generated = generate_star(star, make_settings(CLIPS, 1.0))
    text = star.text(star.stage(VideoCondition(make_text((5,))), generated.plan).text, guided=False)
    tokens = torch.cat([text, *generated.passes("tokens_in")], dim=1)
    owner, coordinates = [-1] * 5, [text_coordinates(5, star.device)]
    first = [0, 1, 4]
    for index, grid in enumerate(CLIPS):
        owner += [index] * grid.size
        frames = [first[CLIPS.clip(index)] + frame for frame in range(grid.t)]
        places = torch.arange(grid.size).unsqueeze(0)
        assert CLIPS.frame is not None
        coordinates.append(token_coordinates(places, grid, CLIPS.frame, TINY_STAR.text_maxlen + index, frames))
    mask = torch.tensor([[sees(query, key) for key in owner] for query in owner])

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor, _projection: object) -> Tensor:
        k, v = (x.repeat_interleave(TINY_STAR.heads // TINY_STAR.kv_heads, dim=1) for x in (k, v))
        scores = q @ k.transpose(-1, -2) / TINY_STAR.head_dim**0.5
        return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v

    hidden = star.transformer.run_blocks(tokens, generated.state.rotary.at(torch.cat(coordinates, dim=1)), attend)
    parts = hidden.split([5, *(grid.size for grid in CLIPS)], dim=1)[1:]
    for index, (part, expected) in enumerate(zip(parts, generated.passes("logits"), strict=True)):
        logits = star.transformer.logits(part, CLIPS.scale(index)).flatten(2)
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)


def test_heads_of_queries_share_those_of_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, count, 8, generator=generator) for heads, count in ((6, 5), (2, 7), (2, 7)))
    mask = torch.rand(2, 1, 1, 7, generator=generator) > 0.3
    mask[..., 0] = True
    keys, values = k.repeat_interleave(3, dim=1), v.repeat_interleave(3, dim=1)
    expected = torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    torch.testing.assert_close(grouped_attention(q, k, v, mask), expected)


def test_only_text_and_the_last_pass_of_a_clip_are_kept(star: InfinityStar) -> None:
    generated = generate_star(star, make_settings(CLIPS), text=make_text((5, 3)))
    cache = generated.state.cache
    assert {keys.shape for keys in cache.keys} == {(4, TINY_STAR.kv_heads, 5 + 72, TINY_STAR.head_dim)}
    assert cache.lengths == [5 + 72] * 3
    image = generate_star(
        star, make_settings(replace(CLIPS, grids=CLIPS.grids[:5], clips=(0,) * 5, scales=(0, 0, 1, 1, 2)), 1.0)
    )
    assert image.state.cache.keys[0].shape[2] == 5  # nothing reads an image's keys
    pruned = generate_star(star, make_settings(CLIPS), StepVAR(keep=0.25, last=1, context_clips="pruned"))
    assert pruned.state.cache.lengths == [5 + 18] * 3
    assert SkipLast(1).plan(make_settings(CLIPS), star.info, 1).cache_tokens == (18,) * 3


def test_latent_is_the_sum_of_the_codes_of_each_clip(star: InfinityStar) -> None:
    generated = generate_star(star, make_settings(CLIPS))
    parts = [torch.zeros(1, 16, frames, 4, 6) for frames in (1, 3, 3)]
    for step, bits in zip(generated.steps, generated.passes("bits"), strict=True):
        cells = bits.view(*step.grid.shape, -1).movedim(-1, 0).unsqueeze(0)
        assert cells.shape[1] == (4 if step.scale < 2 else 16)
        parts[step.clip] += enlarge_codes(codes_of(cells), 16, (4, 6))
    torch.testing.assert_close(generated.state.latent, torch.cat(parts, dim=2))
    assert star.decode(generated.state).shape == (1, 3, 13, 32, 48)


def test_a_batch_of_videos_is_its_videos(star: InfinityStar) -> None:
    settings = make_settings(CLIPS, combine=AdaptiveProjectedGuidance(), top_p=0.9)
    generated = generate_star(star, settings, StepVAR(), make_text(LENGTHS))
    for index, length in enumerate(LENGTHS):
        alone = generate_star(star, settings, StepVAR(), make_text((length,), index), first=index)
        torch.testing.assert_close(generated.state.latent[index : index + 1], alone.state.latent)


def test_padding_is_never_read(star: InfinityStar) -> None:
    text = make_text((3, 7))
    junk = torch.full((2, 12, 128), 1e3)
    for row, length in enumerate((3, 7)):
        junk[row, :length] = text.features[row, :length]
    first, second = (generate_star(star, make_settings(CLIPS), text=t) for t in (text, TextFeatures(junk, (3, 7))))
    assert torch.equal(first.state.latent, second.state.latent)
    longer = generate_star(star, make_settings(CLIPS), text=make_text((5,)), negative=make_text((9,), 50))
    assert not torch.equal(
        longer.state.latent, generate_star(star, make_settings(CLIPS), text=make_text((5,))).state.latent
    )


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_forced_clips_cost_one_pass_and_change_nothing(star: InfinityStar, guidance: float) -> None:
    """The bits that were sampled, forced: the same video, though all but one of the passes are skipped."""
    settings = make_settings(CLIPS, guidance)
    generated = generate_star(star, settings)
    bits = {index: generated.passes("bits")[index].view(1, CLIPS[index].size, -1) for index in range(5)}
    again = generate_star(star, settings, forced=bits)
    assert torch.equal(generated.state.latent, again.state.latent)
    assert sorted(name for name in again.record if name.endswith("tokens_in"))[0] == "step004.tokens_in"
    assert equal_everywhere(generated.passes("logits")[5:], again.passes("logits"))
    assert [step.index for step in again.plan.computed] == list(range(4, len(CLIPS)))


def test_adaptive_projected_guidance_is_at_right_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 6, 5, 2, generator=generator)
    conditional, unconditional = values.chunk(2)
    moved = AdaptiveProjectedGuidance(threshold=0)(values, 3.0) - conditional
    assert (moved * conditional).flatten(1).sum(1).abs().max() < 1e-4
    apart = (conditional - unconditional).flatten(1)
    unit = conditional.flatten(1) / conditional.flatten(1).norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved.flatten(1), 2 * (apart - (apart * unit).sum(1, keepdim=True) * unit))
    both = AdaptiveProjectedGuidance(threshold=0, parallel=1.0)(values, 3.0)
    torch.testing.assert_close(both, 3 * conditional - 2 * unconditional)
    short = AdaptiveProjectedGuidance(threshold=0.1, parallel=1.0)(values, 2.0) - conditional
    torch.testing.assert_close(short.flatten(1).square().mean(1).sqrt(), torch.full((2,), 0.1))


def test_schedules_of_other_families_are_refused(star: InfinityStar) -> None:
    with pytest.raises(UsageError, match=r"needs the clips of a schedule of this model"):
        generate_star(star, make_settings(SQUARE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_generates(dtype: torch.dtype) -> None:
    model = make_star().to(dtype)
    generated = generate_star(model, make_settings(CLIPS), HighPass(keep=0.5), make_text(LENGTHS))
    assert generated.state.cache.keys[0].dtype == dtype
    assert generated.state.latent.dtype == generated.passes("logits")[0].dtype == torch.float32
    exact = generate_star(make_star(), make_settings(CLIPS), HighPass(keep=0.5), make_text(LENGTHS)).passes("logits")[0]
    assert (generated.passes("logits")[0] - exact).abs().max() < 0.1 * exact.abs().max()
    assert torch.isfinite(model.decode(generated.state)).all()
