"""FastVAR's released rule written down once more, slowly, for the families that have no reference outputs of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Step
from stepvar.core.stack import NO_HOOKS, Hooks
from stepvar.core.tokens import ScaleSchedule, TokenMap
from stepvar.generation import generate
from stepvar.methods import FastVAR, Method, make_method
from stepvar.models.infinity_star.model import VideoCondition
from tests.helpers import (
    CLIPS,
    SQUARE,
    TINY_HART,
    equal_everywhere,
    generate_hart,
    make_context,
    make_hart,
    make_settings,
    make_star,
    make_text,
)
from tests.methods.helpers import plan_of
from tests.methods.test_matrix import Recording
from tests.models.hart_reference import Reference

Shape = tuple[int, ...]

RAMP = (1.0, 1 + 4.5 / 4, 1 + 4.5 / 2, 1 + 4.5 * 3 / 4, 1 + 4.5 * 3 / 4)
"""HART's guidance of 4.5 on five scales."""


def choose(x: Tensor, share: float) -> list[Tensor]:
    """For each row of x (R, N, C) the tokens farthest from the row's mean, all but a share of them."""
    count = x.shape[1] - int(x.shape[1] * share)
    return [((row - row.mean(0)) ** 2).sum(-1).argsort(descending=True)[:count] for row in x]


def fill(update: Tensor, kept: list[Tensor], cached: Tensor, source: tuple[int, ...], target: Shape) -> Tensor:
    """The cached update (R, N, C) of a grid on another one, with those of the kept tokens written in."""
    cells = cached.transpose(1, 2).unflatten(2, source)
    whole = torch.stack([mean_of_windows(row, target).flatten(1).T for row in cells])
    for row, tokens, own in zip(whole, kept, update, strict=True):
        row[tokens] = own
    return whole


def mean_of_windows(cells: Tensor, target: Shape) -> Tensor:
    """(C, t, h, w) on another grid of as many frames: a cell is the mean of all that it overlaps."""
    _, height, width = target
    rows, columns = cells.shape[2:]
    result = torch.zeros(len(cells), *target)
    for y in range(height):
        for x in range(width):
            above, below = y * rows // height, -(-(y + 1) * rows // height)
            left, right = x * columns // width, -(-(x + 1) * columns // width)
            result[:, :, y, x] = cells[:, :, above:below, left:right].mean(dim=(2, 3))
    return result


class FastVARReference(Reference):
    """HART with the last two scales pruned in all blocks, by what the scale before them left."""

    shares = (0.5, 0.75)
    cached: dict[tuple[str, int], Tensor]

    def update(self, sublayer: str, x: Tensor, layer: int, scale: int, tokens: Tensor | None = None) -> Tensor:
        first = len(self.config.patch_nums) - len(self.shares)
        if scale == first - 1:
            self.cached[sublayer, layer] = super().update(sublayer, x, layer, scale)
            return self.cached[sublayer, layer]
        if scale < first:
            return super().update(sublayer, x, layer, scale)
        kept = choose(x, self.shares[scale - first])
        taken = torch.stack([row[own] for row, own in zip(x, kept, strict=True)])
        update = super().update(sublayer, taken, layer, scale, torch.stack(kept))
        source, target = (
            (1, side, side) for side in (self.config.patch_nums[first - 1], self.config.patch_nums[scale])
        )
        return fill(update, kept, self.cached[sublayer, layer], source, target)


def test_hart_is_pruned_as_released() -> None:
    model, text = make_hart(), make_context((3, 5))
    method = make_method("fastvar:hart")
    generated = generate_hart(model, make_settings(SQUARE, RAMP, top_k=1), method, text)
    noise = [SeededNoise((0, 1)).normal(4, index, (2, 64, 6), torch.device("cpu")) for index in range(8)]
    reference = FastVARReference(TINY_HART, model.transformer.state_dict(), model.tokenizer.state_dict())
    reference.cached = {}
    slow = reference.run(text.features, text.mask, text.places, 4.5, noise)
    assert equal_everywhere(generated.indices, slow["indices"])
    torch.testing.assert_close(generated.record["s04.hidden"], slow["hidden"], atol=5e-4, rtol=0)
    torch.testing.assert_close(generated.state.latent, slow["latent"], atol=5e-4, rtol=0)
    dense = generate_hart(model, make_settings(SQUARE, RAMP, top_k=1), text=text)
    assert not torch.equal(dense.indices[-1], generated.indices[-1])


class SlowStar:
    """InfinityStar whose blocks are written down once more, with FastVAR in some of them.

    Args:
        shares: of the tokens that are dropped at each of the last scales.
        first: the first block that is pruned; all behind it are.
    """

    def __init__(self, model: Any, shares: tuple[float, ...], first: int) -> None:
        self.model, self.shares, self.first = model, shares, first
        self.cached: dict[tuple[int, str], tuple[Tensor, Step]] = {}
        self.text: dict[int, tuple[Tensor, Tensor]] = {}
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def blocks(self, state: Any, step: Step, hooks: Hooks = NO_HOOKS) -> Any:
        if not self.text:
            self.text = {layer: state.cache.read(layer, slice(None)) for layer in range(self.model.config.depth)}
        return SlowStarBlocks(self, state, step)


class SlowStarBlocks:
    def __init__(self, owner: SlowStar, state: Any, step: Step) -> None:
        self.owner, self.state, self.step = owner, state, step
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self.depth = owner.model.config.depth

    def enter(self, tokens: TokenMap, first: int = 0) -> TokenMap:
        return tokens

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        x = tokens.features
        for layer in range(self.depth):
            x = x + self.pruned("attn", x, layer)
            x = x + self.pruned("mlp", x, layer)
        if self.step.is_read:
            self.owner.before = self.own
        return tokens.with_features(x)

    def pruned(self, name: str, x: Tensor, layer: int) -> Tensor:
        """The update of a sub-layer: on its own choice of tokens at the last scales, as FastVAR has it."""
        shares, step, place = self.owner.shares, self.step, (layer, name)
        everything = [torch.arange(x.shape[1]) for _ in x]
        if layer < self.owner.first or step.scales_from_end > len(shares):
            update = self.update(name, x, layer, everything)
            self.owner.cached[place] = (update, step)  # those of the last repetition in front stay
            return update
        kept = choose(x, shares[-step.scales_from_end])
        taken = torch.stack([row[own] for row, own in zip(x, kept, strict=True)])
        cached, source = self.owner.cached[place]
        return fill(self.update(name, taken, layer, kept), kept, cached, source.grid.shape, step.grid.shape)

    def update(self, name: str, x: Tensor, layer: int, kept: list[Tensor]) -> Tensor:
        block = self.owner.model.block_list[layer]
        if name == "mlp":
            h = rms(x, block.post_attention_layernorm.weight)
            gate = h @ block.mlp.gate_proj.weight.T
            return (gate * gate.sigmoid() * (h @ block.mlp.up_proj.weight.T)) @ block.mlp.down_proj.weight.T
        h, config, attn = rms(x, block.input_layernorm.weight), self.owner.model.config, block.attn
        q, k, v = (h @ part.weight.T for part in (attn.q_proj, attn.k_proj, attn.v_proj))
        q, k, v = (part.unflatten(2, (-1, config.head_dim)).transpose(1, 2) for part in (q, k, v))
        angles = torch.stack([self.angles(own, config.head_dim) for own in kept])[:, None]
        q, k = turn(rms(q, attn.q_norm.weight), angles), turn(rms(k, attn.k_norm.weight), angles)
        self.own[layer] = (k, v)
        seen = [self.owner.text[layer], *([self.owner.before[layer]] if self.step.clip else []), (k, v)]
        keys, values = (torch.cat(part, dim=2).repeat_interleave(2, dim=1) for part in zip(*seen, strict=True))
        attended = (q @ keys.transpose(2, 3) * config.head_dim**-0.5).softmax(-1) @ values
        return attended.transpose(1, 2).flatten(2) @ attn.o_proj.weight.T

    def angles(self, tokens: Tensor, head_dim: int) -> Tensor:
        """Of each pair of channels of tokens (N,): (N, head_dim / 2)."""
        grid, schedule = self.step.grid, self.step.settings.schedule
        frame, first = schedule.grids[-1], 3 * (self.step.clip - 1) + 1 if self.step.clip else 0
        found = []
        for token in tokens.tolist():
            y, x = token // grid.w % grid.h, token % grid.w
            scale = self.owner.model.config.text_maxlen + self.step.index
            places = [
                scale,
                first + token // (grid.h * grid.w),
                round(y * (frame.h / grid.h)),
                round(x * (frame.w / grid.w)),
            ]
            quarter = head_dim // 8
            found.append([place * 10000 ** (-i / quarter) for place in places for i in range(quarter)])
        return torch.tensor(found)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """Pairs of neighbouring channels, turned."""
    one, other = x[..., ::2], x[..., 1::2]
    pairs = (one * angles.cos() - other * angles.sin(), one * angles.sin() + other * angles.cos())
    return torch.stack(pairs, dim=-1).flatten(-2)


@pytest.mark.parametrize("shares", [(0.3, 0.6), (0.7,)], ids=str)
def test_infinity_star_is_pruned_by_the_same_rule(shares: tuple[float, ...]) -> None:
    model, settings = make_star(), make_settings(CLIPS, 3.0)
    condition = VideoCondition(make_text((5, 5)))
    fast = FastVAR(prune=shares, skip=0, blocks_before=1, blocks_after=0)
    found = []
    for one, method in ((model, fast), (SlowStar(model, shares, 1), Method())):
        recording: Any = Recording(one)
        plan = fast.plan(settings, model.info, 2) if one is model else method.plan(settings, model.info, 2)
        state: Any = generate(recording, condition, plan, method, SeededNoise((0, 1)))
        found.append((recording, state))
    (quick, state), (slow, slow_state) = found
    for logits, wanted in zip(quick.logits, slow.logits, strict=True):
        torch.testing.assert_close(logits, wanted, atol=5e-4, rtol=0)
    assert equal_everywhere(quick.indices, slow.indices)
    torch.testing.assert_close(state.latent, slow_state.latent)


def test_presets_are_those_that_were_published() -> None:
    hart, star = make_method("fastvar:hart"), make_method("fastvar:infinity-star")
    assert hart == FastVAR(prune=(0.5, 0.75), skip=0, blocks_before=0, blocks_after=0)
    assert star == FastVAR(prune=(0.2, 0.3, 0.4, 0.7), skip=0, blocks_before=4, blocks_after=5)
    step = plan_of(Method(), ScaleSchedule.of([(1, 1), (2, 2), (3, 3), (4, 4), (10, 10)])).steps[-1]
    assert [star.tokens_at(step, layer, 36) for layer in (3, 4, 30, 31)] == [100, 30, 30, 100]
