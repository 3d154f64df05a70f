"""Batches of text features, and those that users bring along."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stepvar.errors import UsageError
from stepvar.text import TextFeatures


def test_one_prompt() -> None:
    embeddings = torch.randn(5, 8)
    features = TextFeatures.from_embeddings(embeddings)
    assert features.lengths == (5,)
    torch.testing.assert_close(features.features, embeddings[None])


def test_a_list_of_prompts() -> None:
    rows = [torch.randn(length, 8) for length in (2, 7, 4)]
    features = TextFeatures.from_embeddings(rows, channels=8)
    assert features.lengths == (2, 7, 4)
    assert features.features.shape == (3, 7, 8)
    assert features.features[0, 2:].count_nonzero() == 0
    assert all(torch.equal(own, given) for own, given in zip(features.rows(), rows, strict=True))


def test_the_tensors_given_are_copied() -> None:
    embeddings = torch.ones(1, 4, 8)
    features = TextFeatures.from_embeddings(embeddings)
    embeddings.zero_()
    assert features.features.min() == 1


@pytest.mark.parametrize(
    ("embeddings", "options", "message"),
    [
        (torch.zeros(8), {}, "must be \\(L, C\\) or \\(B, L, C\\)"),
        (torch.zeros(1, 2, 3, 4), {}, "must be \\(L, C\\) or \\(B, L, C\\)"),
        (torch.zeros(0, 4, 8), {}, "hold no prompt"),
        ([], {}, "hold no prompt"),
        (torch.zeros(2, 0, 8), {}, "at least one token"),
        ([torch.zeros(1, 4, 8)], {}, "at least one token"),
        (["a red circle"], {}, "str for a prompt"),
        (torch.zeros(4, 8, dtype=torch.long), {}, "token numbers are not embeddings"),
        (torch.zeros(4, 8), {"channels": 16}, "of 8 channels: this model needs 16"),
        ([torch.zeros(4, 8), torch.zeros(4, 9)], {}, "differ in channels, 8 and 9"),
        ([torch.zeros(4, 8), torch.zeros(4, 8).half()], {}, "differ in dtype"),
        ([torch.zeros(4, 8), torch.zeros(4, 8, device="meta")], {}, "differ in device"),
        (torch.full((4, 8), torch.inf), {}, "NaN or infinity"),
    ],
)
def test_what_cannot_be_used(embeddings: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TextFeatures.from_embeddings(embeddings, **options)
