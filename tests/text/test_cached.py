"""Repeated prompts cost nothing and give the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from stepvar.errors import UsageError
from stepvar.text import CachedEncoder, T5Encoder, TextEncoder, TextFeatures, WordEncoder


class CountingEncoder:
    """Notes what it is asked."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.asked: list[list[str]] = []

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        self.asked.append(list(prompts))
        return self.encoder.encode(prompts)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> CountingEncoder:
        self.encoder.to(device, dtype)
        return self


def word_encoder() -> WordEncoder:
    torch.manual_seed(0)
    return WordEncoder(["red", "circle", "blue", "sand"], {}, width=32, heads=2, hidden=64).eval()


@pytest.fixture
def counting() -> CountingEncoder:
    return CountingEncoder(word_encoder())


def test_each_prompt_is_encoded_once(counting: CountingEncoder) -> None:
    cached = CachedEncoder(counting)
    first = cached.encode(["red circle", "blue", "red circle"])
    again = cached.encode(["blue", "red circle", "sand"])
    assert counting.asked == [["red circle", "blue"], ["sand"]]
    assert first.lengths == (3, 2, 3)
    assert again.lengths == (2, 3, 2)
    assert torch.equal(again.rows()[0], first.rows()[1])
    assert torch.equal(again.rows()[1], first.rows()[0])
    assert len(cached) == 3


def test_same_as_without(counting: CountingEncoder) -> None:
    prompts = ["red circle sand", "blue"]
    plain, cached = counting.encode(prompts), CachedEncoder(counting)
    for _ in range(2):
        features = cached.encode(prompts)
        assert features.lengths == plain.lengths
        assert all(torch.equal(own, other) for own, other in zip(features.rows(), plain.rows(), strict=True))


def test_works_with_t5(t5: T5Encoder) -> None:
    counting = CountingEncoder(t5)
    cached = CachedEncoder(counting)
    plain = t5.encode(["a red circle"])
    for _ in range(2):
        assert torch.equal(cached.encode(["a red circle"]).features, plain.features)
        assert cached.encode([""]).lengths == (1,)
    assert counting.asked == [["a red circle"], [""]]


def test_features_given_out_are_copies(counting: CountingEncoder) -> None:
    cached = CachedEncoder(counting)
    first = cached.encode(["red"]).features
    kept = first.clone()
    first.zero_()
    assert torch.equal(cached.encode(["red"]).features, kept)


def test_the_longest_unused_prompt_goes_first(counting: CountingEncoder) -> None:
    cached = CachedEncoder(counting, size=2)
    for prompt in ("red", "blue", "red", "sand", "red", "blue"):
        cached.encode([prompt])
    assert counting.asked == [["red"], ["blue"], ["sand"], ["blue"]]


def test_a_batch_larger_than_the_cache(counting: CountingEncoder) -> None:
    cached = CachedEncoder(counting, size=1)
    assert cached.encode(["red", "blue circle", "sand"]).lengths == (2, 3, 2)
    assert len(cached) == 1


def test_only_another_precision_empties_it(counting: CountingEncoder) -> None:
    cached = CachedEncoder(counting)
    cached.encode(["red"])
    assert cached.to("cpu") is cached
    assert len(cached) == 1
    cached.to(dtype=torch.float64)
    assert cached.encode(["red"]).features.dtype == torch.float64
    assert counting.asked == [["red"], ["red"]]


def test_an_error_keeps_what_was_there(counting: CountingEncoder) -> None:
    cached = CachedEncoder(counting)
    cached.encode(["red"])
    with pytest.raises(UsageError, match="knows none"):
        cached.encode(["red", "unknown"])
    assert len(cached) == 1


def test_outlives_the_weights(t5_folder: object) -> None:
    encoder = T5Encoder(str(t5_folder))
    cached = CachedEncoder(encoder)
    cached.encode(["a red circle", ""])
    encoder.free()
    assert cached.encode(["", "a red circle"]).lengths == (1, 4)


@pytest.mark.parametrize("size", [0, -1])
def test_size_is_checked(counting: CountingEncoder, size: int) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        CachedEncoder(counting, size)


def test_no_prompts(counting: CountingEncoder) -> None:
    with pytest.raises(UsageError, match="none given"):
        CachedEncoder(counting).encode([])
