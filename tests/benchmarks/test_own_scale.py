"""The study of pruning where a scale attends to itself alone, on a smaller model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import own_scale
from stepvar.methods import Method
from tests.helpers import TINY_SWITTI


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_scale, "WEIGHTS", ("broad",))
    monkeypatch.setattr(own_scale, "KEEPS", (0.5,))


def test_every_way_to_prune_has_a_row() -> None:
    rows = own_scale.measure(2, TINY_SWITTI)
    assert [row["case"] for row in rows] == [case.label for case in own_scale.CASES]
    found = {row["case"]: row for row in rows}
    for row in rows:
        assert (
            0 < row["own scale"]["kept"] < row["own scale"]["all"] and 0 < row["cached"]["kept"] < row["cached"]["all"]
        )
    assert found["queries only"]["products"] > 0.5 == found["every sub-layer"]["products"]
    # What the kept tokens are in the first sub-layer does not depend on how the others are restored.
    whole, sublayer = found["whole stack (the default)"], found["every sub-layer"]
    assert whole["own scale"]["kept"] == pytest.approx(sublayer["own scale"]["kept"], rel=1e-4)
    assert len(own_scale.markdown({"rows": rows}).splitlines()) == 2 + len(rows)


def test_dense_features_are_those_of_the_loop_and_queries_alone_lose_no_key() -> None:
    """With one block, tokens whose keys and values are all made from the map that enters are as in dense generation."""
    model = own_scale.random_model("broad", False, replace(TINY_SWITTI, depth=1))
    dense, _, everything = own_scale.last_features(model, Method(), 1)
    found, _, kept = own_scale.last_features(model, own_scale.QueriesOnly(keep=0.5, **own_scale.SUBLAYER), 1)
    assert everything.shape[1] == 64 and kept.shape[1] == 32
    torch.testing.assert_close(found[0, kept[0]], dense[0, kept[0]], atol=1e-5, rtol=0)
    without, _, _ = own_scale.last_features(model, own_scale.Fixed(keep=0.5, **own_scale.SUBLAYER), 1)
    assert not torch.allclose(without[0, kept[0]], dense[0, kept[0]], atol=1e-2)


def test_narrow_attention_has_keys_like_queries() -> None:
    joint = own_scale.random_model("narrow", True, TINY_SWITTI).transformer.ordered_blocks[0].attn.to_qkv
    queries, keys, values = joint.weight.chunk(3)
    assert torch.equal(queries, keys) and not torch.equal(queries, values)
