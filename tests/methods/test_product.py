"""Every selection goes with every restoration: the paper's ablation as a product."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from stepvar.cli.options import parse_method
from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.methods import (
    METHODS,
    Compose,
    FastVAR,
    LatentDelta,
    Magnitude,
    Method,
    SkipLast,
    SparseVAR,
    StepVAR,
    make_method,
)
from stepvar.methods.pruning import Propagated, Pruning, Scope
from stepvar.methods.restoration import RESTORATIONS, Anchors, Blend
from stepvar.models.infinity import Infinity
from stepvar.models.var import VAR
from tests.helpers import SQUARE, WIDE, equal_everywhere, generate_infinity, generate_var, make_settings, make_text
from tests.methods.helpers import noting_states, plan_of

SELECTIONS = [name for name, method in METHODS.items() if issubclass(method, Pruning)]
AS_FASTVAR: dict[str, Any] = {
    "scope": "sublayer",
    "propagate": "update",
    "restore": "cached",
    "branches": "separate",
    "blocks_before": 1,
    "blocks_after": 1,
}


@pytest.mark.parametrize("guidance", [3.0, 1.0, (3.0, 3.0, 3.0, 3.0, 1.0), (3.0, 3.0, 3.0, 3.0, 0.0)], ids=str)
def test_fastvar_is_one_point_of_the_product(tiny_model: Infinity, tiny_var: VAR, guidance: Any) -> None:
    fast = FastVAR(prune=(0.25, 0.5), skip=0, blocks_before=1, blocks_after=1)
    ours = Magnitude(centred=True, keep=(0.75, 0.5), **AS_FASTVAR)
    plan, text = make_settings(SQUARE, guidance), make_text((5, 3))
    assert equal_everywhere(
        generate_infinity(tiny_model, plan, fast, text).logits, generate_infinity(tiny_model, plan, ours, text).logits
    )
    one, other = generate_var(tiny_var, plan, fast, (3, 7)), generate_var(tiny_var, plan, ours, (3, 7))
    assert equal_everywhere(one.logits, other.logits) and one.state.cache.lengths == other.state.cache.lengths


def test_fastvar_with_skipped_scales_is_too(tiny_model: Infinity) -> None:
    fast = FastVAR(prune=(0.25,), skip=1, blocks_before=1, blocks_after=1)
    ours = Compose(Magnitude(centred=True, keep=(0.75, 1.0), **AS_FASTVAR), SkipLast(1))
    settings = make_settings(SQUARE)
    assert equal_everywhere(
        generate_infinity(tiny_model, settings, fast).logits, generate_infinity(tiny_model, settings, ours).logits
    )


@pytest.mark.parametrize("scope", get_args(Scope))
@pytest.mark.parametrize("what", get_args(Propagated))
@pytest.mark.parametrize("restore", RESTORATIONS)
def test_every_restoration_at_every_depth(tiny_model: Infinity, restore: str, what: str, scope: str) -> None:
    method = make_method("stepvar", keep=(0.75, 0.5), restore=restore, propagate=what, scope=scope)
    plan, text = make_settings(WIDE), make_text((5, 3))
    generated = generate_infinity(tiny_model, plan, method, text)
    assert all(torch.isfinite(logits).all() for logits in generated.logits)
    cache = generated.state.cache
    assert cache.lengths == [keys.shape[2] for keys in cache.keys] == [sum((1, 4, 6, 24, 26, 27))] * 4
    per_scale = {"stack": 1, "block": 4, "sublayer": 12}[scope]
    assert [len(generated.kept(step)) for step in generated.steps] == [0] * 4 + [per_scale] * 2
    assert equal_everywhere(generate_infinity(tiny_model, plan, text=text).logits[:-2], generated.logits[:-2])
    alone = generate_infinity(tiny_model, plan, method, make_text((3,), 1), first=1)
    torch.testing.assert_close(generated.logits[-1][1:], alone.logits[-1], atol=2e-4, rtol=0)
    everything = make_method("stepvar", keep=1.0, restore=restore, propagate=what, scope=scope)
    assert equal_everywhere(
        generate_infinity(tiny_model, plan, everything).logits, generate_infinity(tiny_model, plan).logits
    )


@pytest.mark.parametrize("restore", RESTORATIONS)
@pytest.mark.parametrize("name", SELECTIONS)
def test_every_selection_with_every_restoration(tiny_var: VAR, name: str, restore: str) -> None:
    if (name, restore) == ("coverage", "anchors"):
        with pytest.raises(UsageError, match="anchors cover the map already"):
            make_method(name, restore=restore)
        return
    generated = generate_var(tiny_var, make_settings(SQUARE), make_method(name, restore=restore), (3, 7))
    cache = generated.state.cache
    assert cache.lengths == [keys.shape[2] for keys in cache.keys] and min(cache.lengths) < SQUARE.size
    assert torch.isfinite(generated.state.latent).all()


def test_restorations_differ(tiny_model: Infinity) -> None:
    settings = make_settings(SQUARE)
    generated = {
        name: generate_infinity(tiny_model, settings, make_method("stepvar", restore=name)).logits[-1]
        for name in RESTORATIONS
    }
    blends = generate_infinity(tiny_model, settings, StepVAR(restore=Blend(2))).logits[-1]
    finer = generate_infinity(tiny_model, settings, StepVAR(restore=Anchors(2))).logits[-1]
    different = [*generated.values(), blends, finer]
    assert not any(torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])
    named = generate_infinity(tiny_model, settings, make_method("stepvar:blend")).logits[-1]
    assert torch.equal(named, generated["blend"])


def test_anchors_are_always_kept() -> None:
    method = Magnitude(keep=0.01, restore=Anchors(4))
    plan = plan_of(method, SQUARE)
    assert [method.count_at(step) for step in plan.steps] == [1, 4, 16, 36, 4]
    grid = plan.steps[-1].grid
    scores = torch.arange(64.0).flip(0).unsqueeze(0)
    assert method.choose(scores, 6, grid).tolist() == [[0, 1, 18, 22, 50, 54]]
    assert method.choose(torch.full((1, 64), float("nan")), 4, grid).tolist() == [[18, 22, 50, 54]]


def test_cached_restoration_needs_something_to_cache(tiny_model: Infinity) -> None:
    with pytest.raises(UsageError, match="restore='cached': needs a scale that is not pruned"):
        generate_infinity(tiny_model, make_settings(ScaleSchedule(SQUARE.grids[1:])), StepVAR(last=4, restore="cached"))


def test_the_last_scale_that_is_not_pruned_is_cached(tiny_model: Infinity) -> None:
    """Also where pruned and other scales take turns; what is cached is the state or the update of the span."""
    settings = make_settings(SQUARE)
    kind, states = noting_states(StepVAR)
    method = kind(keep=(0.5, 1.0, 0.5), restore="cached", propagate="update")
    generated = generate_infinity(tiny_model, settings, method)
    assert [len(generated.kept(step)) for step in generated.steps] == [0, 0, 1, 0, 1]
    assert states[0].sources == {1, 3}
    past = states[0].cached[0]
    assert past.grid == SQUARE[3] and past.values.shape == (2, 36, 64)


@pytest.mark.parametrize("method", [LatentDelta(last=4), SparseVAR(last=4)], ids=str)
def test_the_first_scale_has_nothing_before_it(tiny_model: Infinity, method: Method) -> None:
    with pytest.raises(UsageError, match=r"selects by the scale before.*prune at most the last 3 scales"):
        generate_infinity(tiny_model, make_settings(ScaleSchedule(SQUARE.grids[1:])), method)


def test_texts_name_restorations() -> None:
    assert parse_method("stepvar", {}, ["restore=blend", "scope=sublayer"]) == StepVAR(
        restore="blend", scope="sublayer"
    )
    with pytest.raises(UsageError, match="restore='far': must be one of nearest, blend, anchors, cached"):
        parse_method("stepvar", {}, ["restore=far"])
    with pytest.raises(UsageError, match="restore='far': must be one of nearest, blend, anchors, cached"):
        StepVAR(restore="far")  # type: ignore[arg-type]
    assert StepVAR(restore=Blend(2)).settings()["restore"] == "Blend(neighbours=2)"


def test_methods_are_hashable_values() -> None:
    methods: list[Method] = [make_method(name) for name in METHODS]
    assert len(set(methods)) == len(methods)
