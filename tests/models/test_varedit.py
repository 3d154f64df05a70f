"""VAREdit: against a plain reference, and what source tokens do under every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Settings, Step
from stepvar.core.stack import SublayerRef
from stepvar.core.tokens import Grid, ScaleSchedule
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods import METHODS, Method, make_method
from stepvar.models.blocks import BlockRun
from stepvar.models.infinity import TextCondition, schedule_for
from stepvar.models.registry import family_of_model
from stepvar.models.varedit import EditCondition, VAREdit
from stepvar.models.varedit.model import averaged
from stepvar.models.varedit.rope import rotary_tables
from stepvar.text import TextFeatures
from tests.helpers import (
    SQUARE,
    TINY,
    WIDE,
    equal_everywhere,
    generate_edit,
    make_edit,
    make_model,
    make_settings,
    make_source,
    make_text,
)
from tests.methods.test_matrix import SMALLER
from tests.models.varedit_reference import Reference, positions


@pytest.fixture(scope="module")
def model() -> VAREdit:
    return make_edit()


def greedy(schedule: ScaleSchedule, guidance: float | Sequence[float], cfg_layers: tuple[int, ...]) -> Settings:
    return make_settings(schedule, guidance, cfg_layers=cfg_layers, top_k=1)


# The numbers


@pytest.mark.parametrize(
    ("config", "schedule", "guidance", "cfg_layers", "negative"),
    [
        (TINY, WIDE, 3.0, (0,), 0),
        (replace(TINY, patchify=True), SQUARE, (3.0, 2.0, 1.0, 3.0, 1.0), (0,), 0),
        (replace(TINY, level_every_chunk=True), WIDE, 3.0, (0, -2), 7),
        (replace(TINY, level_every_chunk=True, block_chunks=4), SQUARE, 3.0, (-3,), 2),
    ],
    ids=("wide", "patchify", "inside", "inside-only"),
)
def test_logits_are_those_of_a_plain_reference(
    config: Any, schedule: ScaleSchedule, guidance: Any, cfg_layers: tuple[int, ...], negative: int
) -> None:
    model, text = make_edit(config, seed=5), make_text((5,))
    other = make_text((negative,), first=9) if negative else None
    null = model.transformer.cfg_uncond[:5] if other is None else other.features[0]
    settings, source = greedy(schedule, guidance, cfg_layers), make_source(schedule, config=config)
    places = positions(schedule, schedule)
    expected = Reference(model, (text.features[0], null), places, cfg_layers).run(source, schedule, settings.guidance)
    found = generate_edit(model, settings, text=text, negative=other, source=source)
    for ours, theirs in zip(found.logits, expected, strict=True):
        torch.testing.assert_close(ours, theirs.flatten(2), atol=2e-4, rtol=0)


def test_a_published_size_takes_its_positions_by_running_number() -> None:
    """0.06M: 256 tokens of the source and 521 of the target all lie in the region of the source at 1M."""
    model, schedule = make_edit(replace(TINY, depth=2)), schedule_for("0.06M", 1.0)
    settings, text, source = greedy(schedule, 3.0, (0,)), make_text((5,)), make_source(schedule)
    places = positions(schedule, schedule_for("1M", 1.0))
    texts = (text.features[0], model.transformer.cfg_uncond[:5])
    expected = Reference(model, texts, places, (0,)).run(source, schedule, settings.guidance)
    found = generate_edit(model, settings, text=text, source=source).logits
    torch.testing.assert_close(found[-1], expected[-1].flatten(2), atol=2e-4, rtol=0)


def at(places: Sequence[tuple[int, int]], head_dim: int = 8) -> Tensor:
    """Cosines of positions (y, x)."""
    count = head_dim // 4
    frequencies = 10000.0 ** (-torch.arange(count) / count)
    grid = torch.tensor(places, dtype=torch.float32)
    return torch.cat([grid[:, :1] * frequencies, grid[:, 1:] * frequencies], dim=1).cos()


def test_positions_of_the_released_sizes() -> None:
    tables = rotary_tables(schedule_for("1M", 1.0), 8, torch.device("cpu"))
    assert len(tables) == 14 and len(tables[0][0]) == 4096
    torch.testing.assert_close(tables[0][0][[0, 65, 4095]], at([(64, 64), (65, 65), (127, 127)]))
    torch.testing.assert_close(tables[1][0], at([(0, 0)]))  # the target at its usual places
    torch.testing.assert_close(tables[13][0][[0, 64, 4095]], at([(0, 0), (1, 0), (63, 63)]))
    small = rotary_tables(schedule_for("0.25M", 1.0), 8, torch.device("cpu"))
    torch.testing.assert_close(small[0][0][[0, 32, 64, 1023]], at([(64, 64), (64, 96), (65, 64), (79, 127)]))
    torch.testing.assert_close(small[1][0], at([(80, 64)]))
    torch.testing.assert_close(small[2][0], at([(80, 65), (80, 66), (80, 67), (80, 68)]))
    torch.testing.assert_close(small[10][0][[0, 1023]], at([(103, 89), (119, 88)]))
    between = schedule_for("0.60M", 0.571)  # its numbers leave the region of the source inside a scale
    numbers = list(accumulate([between[-1].size, *(grid.size for grid in between)]))
    full, beyond = schedule_for("1M", 0.571), 48 * 84
    index = next(index for index, end in enumerate(numbers) if end > beyond)
    table = rotary_tables(between, 8, torch.device("cpu"))[index][0]
    torch.testing.assert_close(table[beyond - numbers[index - 1]], at([(0, 0)])[0])
    torch.testing.assert_close(table[beyond - 1 - numbers[index - 1]], at([(2 * 48 - 1, 2 * 84 - 1)])[0])
    assert full[-1].size == beyond


@pytest.mark.parametrize(
    ("full", "grid"), [((64, 64), (6, 6)), ((64, 64), (48, 48)), ((9, 6), (5, 1)), ((5, 7), (2, 7))]
)
def test_the_reference_is_averaged_by_area(full: tuple[int, int], grid: tuple[int, int]) -> None:
    entries = torch.randn(2, 3, full[0] * full[1], 4, generator=torch.Generator().manual_seed(1))
    maps = entries.transpose(2, 3).unflatten(3, full).flatten(1, 2)
    expected = torch.nn.functional.interpolate(maps, grid, mode="area").unflatten(1, (3, 4)).flatten(3).transpose(2, 3)
    torch.testing.assert_close(averaged(entries, Grid(1, *full), Grid(1, *grid)), expected, atol=1e-6, rtol=0)
    whole = averaged(entries, Grid(1, *full), Grid(1, *full))
    assert whole is entries


# What the source does


def test_source_and_its_rows_decide_the_edit(model: VAREdit) -> None:
    settings = make_settings(SQUARE)
    first = generate_edit(model, settings)
    other = generate_edit(model, settings, source=make_source(SQUARE, first=8))
    assert not torch.allclose(first.logits[0], other.logits[0])
    # Both branches see it: without guidance's second branch the source still matters, and so it does in that branch.
    alone = [generate_edit(model, make_settings(SQUARE, 0.0), source=make_source(SQUARE, first=i)) for i in (0, 8)]
    assert not torch.allclose(alone[0].logits[0], alone[1].logits[0])


@pytest.mark.parametrize("name", [*METHODS, "sublayers"])
def test_every_method_reads_the_whole_source_and_prunes_the_target(model: VAREdit, name: str) -> None:
    """The first block sees the source on the grid of the scale, the others all of its tokens, whatever is pruned."""
    scoped = {"scope": "sublayer", "propagate": "update"}
    method = make_method("stepvar", **scoped) if name == "sublayers" else make_method(name, **SMALLER.get(name, {}))
    generated = generate_edit(model, make_settings(WIDE), method)
    source, seen = WIDE[-1].size, generated.record["keys_seen"]
    assert seen[0].tolist() == [source] * TINY.depth
    own, together = torch.zeros(TINY.depth, dtype=torch.int32), [step for step in generated.steps if step.together]
    for step, row in zip(generated.steps, seen[1:], strict=True):
        if step.dropped and any(step.dropped):  # then the cache holds what a later pass reads, and no more
            return
        own += torch.tensor(step.tokens, dtype=torch.int32)
        if not together or step.index < together[0].index:  # else the keys of several scales are there at once
            assert (row - own).tolist() == [step.grid.size, *[source] * (TINY.depth - 1)]
    assert (seen[-1] - own).tolist()[1:] == [source] * (TINY.depth - 1)
    dense = generate_edit(model, make_settings(WIDE))
    for layer in range(TINY.depth - 1):  # a method changes nothing in the pass over the source
        assert torch.equal(generated.record[f"source_blockout_l{layer}"], dense.record[f"source_blockout_l{layer}"])
    assert f"source_blockout_l{TINY.depth - 1}" not in dense.record  # of which only keys and values are read


@dataclass(frozen=True)
class Newest(Method):
    """Keeps the newest keys of the target, and notes how many a layer may choose from."""

    seen: dict[tuple[int, int], int] = field(default_factory=dict)

    def cached_tokens(self, step: Step, layer: int, depth: int, keys: int) -> int:
        return min(keys, 12)

    def select_cached(self, inputs: Any, count: int, ref: SublayerRef, step: Step, state: Any) -> Tensor:
        total = inputs.keys.shape[2]
        self.seen[(step.index, ref.layer)] = total
        return torch.arange(total - count, total).expand(*inputs.keys.shape[:2], count)


@pytest.mark.parametrize("cache", [None, "int8"])
def test_what_leaves_the_cache_is_never_of_the_source(cache: Any) -> None:
    method, model = Newest(), make_edit().set_cache_dtype(cache)
    generated = generate_edit(model, make_settings(WIDE), method)
    assert set(method.seen.values()) == {11 + 24, 12 + 35}  # nothing reads what the last pass would leave
    assert generated.state.cache.lengths == [WIDE[-1].size + 12] * TINY.depth
    seen = generated.record["keys_seen"]  # behind a pass, when keys have left
    assert seen[-1].tolist() == [WIDE[-1].size + 12] * TINY.depth
    dense = generate_edit(make_edit().set_cache_dtype(cache), make_settings(WIDE))
    assert equal_everywhere(generated.bits[:4], dense.bits[:4])
    assert not torch.allclose(generated.logits[4], dense.logits[4])


@dataclass(frozen=True)
class Listens(Method):
    """Attention of the model's own, and the layers at which it is asked."""

    layers: set[int] = field(default_factory=set)

    def run_attention(self, attend: Any, inputs: Any, ref: SublayerRef, step: Step, state: Any) -> Tensor:
        self.layers.add(ref.layer)
        assert inputs.keys.shape[2] == WIDE[-1].size + sum(grid.size for grid in WIDE.grids[: step.index + 1])
        result: Tensor = attend(inputs)
        return result


def test_no_method_attends_in_the_block_whose_source_changes(model: VAREdit) -> None:
    method = Listens()
    generate_edit(model, make_settings(WIDE), method)
    assert method.layers == set(range(1, TINY.depth))


def test_skipped_scales_leave_the_source_at_its_size(model: VAREdit) -> None:
    short = generate_edit(model, make_settings(WIDE), make_method("skip-last", count=2))
    dense = generate_edit(model, make_settings(WIDE))
    assert torch.equal(short.logits[3], dense.logits[3])
    room = [cache.state.cache.keys[0].shape[2] for cache in (short, dense)]
    assert room == [24 + sum(grid.size for grid in WIDE.grids[:-2]), 54 + WIDE.size]


def test_the_source_is_read_in_the_branches_that_run(model: VAREdit) -> None:
    one = generate_edit(model, make_settings(WIDE, 1.0))
    assert one.record["source_blockout_l0"].shape[0] == one.state.source.rows == 1
    late = generate_edit(model, make_settings(WIDE), make_method("drop-guidance", last=2))
    assert late.record["source_blockout_l0"].shape[0] == 2 and late.steps[-1].rows == 1


def test_an_edit_of_a_batch_is_the_one_that_it_is_alone(model: VAREdit) -> None:
    text, settings = make_text((5, 3)), make_settings(WIDE)
    both = generate_edit(model, settings, text=text)
    alone = generate_edit(model, settings, text=make_text((3,), first=1), first=1)
    torch.testing.assert_close(both.logits[-1][1:], alone.logits[-1], atol=5e-4, rtol=0)


def test_keys_and_values_are_freed_after_the_last_scale(model: VAREdit) -> None:
    plan = Method().plan(make_settings(SQUARE), model.info, 1)
    condition = EditCondition(make_text((5,)), None, make_source(SQUARE))
    state = generate(model, condition, plan, Method(), SeededNoise((0,)))
    assert state.cache.nbytes == state.source.nbytes == 0
    assert model.decode(state).shape == (1, 3, 16, 16)


# Formats


def test_eight_bits_of_the_cache_stay_near(model: VAREdit) -> None:
    settings, exact = make_settings(SQUARE, top_k=1), generate_edit(model, make_settings(SQUARE, top_k=1))
    small = generate_edit(make_edit().set_cache_dtype("int8"), settings)
    torch.testing.assert_close(small.logits[0], exact.logits[0], atol=0.3, rtol=0)
    assert not torch.equal(small.logits[0], exact.logits[0])


def test_half_precision_encodes_in_float32(model: VAREdit) -> None:
    half, source = make_edit().bfloat16(), make_source(SQUARE)
    assert {weight.dtype for weight in half.tokenizer.encoder.parameters()} == {torch.float32}
    assert {weight.dtype for weight in half.tokenizer.decoder.parameters()} == {torch.bfloat16}
    pixels = torch.rand(1, 3, 16, 16)
    assert torch.equal(half.tokenizer.encode_latent(pixels), model.tokenizer.encode_latent(pixels))
    exact = generate_edit(model, make_settings(SQUARE), source=source).logits[0]
    torch.testing.assert_close(
        generate_edit(half, make_settings(SQUARE), source=source).logits[0], exact, atol=0.5, rtol=0
    )


@pytest.mark.parametrize("every_chunk", [False, True])
def test_fused_blocks_read_the_same_source(monkeypatch: pytest.MonkeyPatch, every_chunk: bool) -> None:
    model = make_edit(replace(TINY, level_every_chunk=every_chunk))
    condition, settings = EditCondition(make_text((5,)), None, make_source(WIDE)), make_settings(WIDE, top_k=1)
    latents = []
    for method in (Method(), make_method("stepvar"), make_method("lazyvar")):
        plan = method.plan(settings, model.info, 1)
        for fused in (False, True):
            with monkeypatch.context() as context:
                context.setattr(BlockRun, "can_fuse", lambda self, tokens, fused=fused: fused)
                state = generate(model, condition, plan, method, SeededNoise((0,)))
            latents.append(state.latent)
        torch.testing.assert_close(latents[-1], latents[-2], atol=1e-5, rtol=0)


# What is refused


def test_a_condition_needs_a_source_of_the_right_size(model: VAREdit) -> None:
    plan, text = Method().plan(make_settings(SQUARE), model.info, 1), make_text((5,))
    with pytest.raises(UsageError, match="has no source; this model edits an image"):
        model.start(TextCondition(text), plan)
    with pytest.raises(UsageError, match=r"source of shape \(2, 6, 8, 8\): schedule .* needs \(1, 6, 8, 8\)"):
        model.start(EditCondition(text, None, make_source(SQUARE, 2)), plan)


def test_only_the_square_of_its_own_size_can_be_edited(model: VAREdit) -> None:
    assert model.schedule(1.0, "0.06M") == model.schedule(1.0) and list(model.shapes()) == [
        ("0.06M", 1.0, model.schedule(1.0)[-1])
    ]
    with pytest.raises(UsageError, match=r"resolution '1M': this model knows only 0.06M"):
        model.schedule(1.0, "1M")
    with pytest.raises(UsageError, match=r"aspect ratio 1.5 \(width to height\): this model edits squares"):
        model.schedule(2 / 3)
    with pytest.warns(UserWarning), pytest.raises(UsageError, match="positions for"):
        rotary_tables(schedule_for("2K", 1.0), 8, torch.device("cpu"))


def test_its_family_is_not_that_which_it_is_made_from(model: VAREdit) -> None:
    assert (family_of_model(model).name, family_of_model(make_model()).name) == ("varedit", "infinity")


def test_padding_of_the_text_changes_nothing(model: VAREdit) -> None:
    text, junk = make_text((3,)), torch.full((1, 12, TINY.text_channels), 1e3)
    junk[:, :3] = text.features
    first, second = (generate_edit(model, make_settings(SQUARE), text=one) for one in (text, TextFeatures(junk, (3,))))
    torch.testing.assert_close(first.logits[0], second.logits[0], atol=1e-5, rtol=0)
