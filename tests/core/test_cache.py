import pytest
import torch
from torch import Tensor

from stepvar.core.cache import KVCache, NoCache


def make_cache(capacities: tuple[int, ...] = (5, 3), rows: int = 4) -> KVCache:
    return KVCache(capacities, rows, 2, 3, torch.float32, torch.device("cpu"))


def entries(rows: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, 2, count, 3, generator=generator)
    return keys, values


def test_returns_all_entries_in_order() -> None:
    cache = make_cache()
    first, second = entries(4, 2, 0), entries(4, 3, 1)
    keys, values = cache.append(0, *first)
    assert torch.equal(keys, first[0]) and torch.equal(values, first[1])
    keys, values = cache.append(0, *second)
    assert torch.equal(keys, torch.cat([first[0], second[0]], dim=2))
    assert torch.equal(values, torch.cat([first[1], second[1]], dim=2))


def test_layers_are_apart() -> None:
    cache = make_cache()
    cache.append(0, *entries(4, 2, 0))
    keys, _ = cache.append(1, *entries(4, 1, 1))
    assert keys.shape[2] == 1
    assert cache.lengths == [2, 1]


def test_nothing_grows() -> None:
    cache = make_cache()
    buffers = [buffer.data_ptr() for buffer in (*cache.keys, *cache.values)]
    size = cache.nbytes
    assert size == 2 * 4 * 2 * (5 + 3) * 3 * 4
    keys, _ = cache.append(0, *entries(4, 5, 0))
    assert keys.data_ptr() == buffers[0]
    assert [buffer.data_ptr() for buffer in (*cache.keys, *cache.values)] == buffers and cache.nbytes == size


def test_overflow_names_the_layer_and_the_plan() -> None:
    cache = make_cache()
    cache.append(1, *entries(4, 3, 0))
    with pytest.raises(ValueError, match=r"layer 1: 4 tokens exceed the 3 planned"):
        cache.append(1, *entries(4, 1, 1))
    assert cache.lengths == [0, 3]


def test_later_scales_may_use_fewer_rows() -> None:
    cache = make_cache()
    first, second = entries(4, 2, 0), entries(2, 2, 1)
    cache.append(0, *first)
    keys, values = cache.append(0, *second)
    assert torch.equal(keys, torch.cat([first[0][:2], second[0]], dim=2))
    assert torch.equal(values, torch.cat([first[1][:2], second[1]], dim=2))


def test_first_entries_of_rows_that_do_not_compute_them() -> None:
    cache = make_cache()
    cache.place(0, slice(2, 4), 3, *entries(1, 1, 2))
    keys, _ = cache.append(0, *entries(2, 3, 0))
    assert keys.shape[:3] == (2, 2, 3) and cache.lengths[0] == 3
    later = entries(4, 1, 1)
    keys, values = cache.append(0, *later)
    placed = entries(1, 1, 2)
    assert torch.equal(keys[2:, :, :3], placed[0].expand(2, -1, 3, -1))
    assert torch.equal(values[2:, :, :3], placed[1].expand(2, -1, 3, -1))
    assert torch.equal(keys[:, :, 3:], later[0])


@pytest.mark.parametrize("quantized", [False, True])
def test_tokens_that_leave_stand_beside_the_cache_while_a_pass_runs(quantized: bool) -> None:
    """The second of two layers keeps three of seven tokens, each row and head its own, in a buffer of three."""
    cache = KVCache((9, 3), 4, 2, 3, torch.float32, torch.device("cpu"), quantized)
    first, second, third = entries(4, 2, 0), entries(2, 5, 1), entries(2, 1, 2)
    cache.append(1, *first)
    stored = cache.read(1, slice(0, 4))
    cache.start_pass((0, 4))
    assert cache.append(0, *second)[0].shape[2] == 5 == cache.lengths[0]
    keys, values = cache.append(1, *second)
    assert torch.equal(keys, torch.cat([stored[0][:2], second[0]], dim=2)) and cache.lengths[1] == 2
    index = torch.tensor([[[0, 1, 6], [1, 2, 5]], [[2, 3, 4], [0, 5, 6]]])
    cache.select(1, slice(0, 2), index, keys, values)
    picked = index.unsqueeze(-1).expand(-1, -1, -1, 3)
    for found, whole in zip(cache.read(1, slice(0, 2)), (keys, values), strict=True):
        expected = whole.gather(2, picked)
        torch.testing.assert_close(found, expected, atol=0.02 * quantized, rtol=0)
        old = picked < 2
        assert torch.equal(found[old], expected[old])  # rounded once
    cache.start_pass((0, 1))
    assert cache.append(1, *third)[0].shape[2] == 4 and cache.lengths[1] == 3
    cache.start_pass(())
    with pytest.raises(ValueError, match=r"layer 1: 4 tokens exceed the 3 planned"):
        cache.append(1, *third)


def test_eight_bits_are_near_and_a_pass_sees_its_own_entries_unrounded() -> None:
    plain, small = make_cache((9, 9)), KVCache((9, 9), 4, 2, 3, torch.float32, torch.device("cpu"), quantized=True)
    entered = [entries(4, 2, 0), entries(4, 3, 1), entries(2, 4, 2)]
    for new in entered:
        expected, found = plain.append(0, *new), small.append(0, *new)
        count = new[0].shape[2]
        for exact, near, own in zip(expected, found, new, strict=True):
            assert torch.equal(near[:, :, -count:], own)
            largest = exact.abs().amax(dim=-1, keepdim=True)
            assert ((near - exact).abs() <= largest / 254 * 1.001).all()
    assert small.lengths == plain.lengths == [9, 0]
    assert not torch.equal(small.read(0, slice(0, 2))[0], plain.read(0, slice(0, 2))[0])
    assert small.keys[0].dtype == torch.int8 and small.nbytes == 2 * 4 * 2 * 18 * (3 + 4) < plain.nbytes


def test_eight_bits_of_zeros_and_of_repeated_entries() -> None:
    cache = KVCache((4,), 4, 2, 3, torch.bfloat16, torch.device("cpu"), quantized=True)
    cache.place(0, slice(2, 4), 3, torch.zeros(1, 2, 1, 3), torch.ones(1, 2, 1, 3))
    cache.append(0, torch.zeros(2, 2, 3, 3), torch.zeros(2, 2, 3, 3))
    keys, values = cache.read(0, slice(0, 4))
    assert keys.dtype == torch.bfloat16 and not keys.any()
    assert torch.equal(values[2:].float(), torch.ones(2, 2, 3, 3)) and not values[:2].any()


def test_a_freed_cache_holds_nothing() -> None:
    for quantized in (False, True):
        cache = KVCache((5, 3), 4, 2, 3, torch.float32, torch.device("cpu"), quantized)
        cache.append(0, *entries(4, 2, 0))
        cache.free()
        assert cache.nbytes == 0 and not cache.keys and not cache.values
        assert cache.lengths == [2, 0] and cache.rows == 4


@pytest.mark.parametrize("quantized", [False, True])
def test_entries_in_front_are_replaced_and_never_dropped(quantized: bool) -> None:
    cache = KVCache((9,), 2, 2, 3, torch.float32, torch.device("cpu"), quantized)
    cache.leave_room(0, 4)
    own, small, large = entries(2, 3, 0), entries(2, 1, 1), entries(2, 4, 2)
    cache.put_in_front(0, slice(0, 2), *small)
    keys, values = cache.append(0, *own)
    close = {"atol": 0.03, "rtol": 0} if quantized else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(keys, torch.cat([small[0], own[0]], dim=2), **close)
    torch.testing.assert_close(values, torch.cat([small[1], own[1]], dim=2), **close)
    cache.put_in_front(0, slice(0, 2), *large)
    assert cache.front(0) == 4 and cache.lengths == [7]
    cache.select(0, slice(0, 2), torch.tensor([0, 2]).expand(2, 2, 2), *cache.read(0, slice(0, 2)))
    keys, _ = cache.read(0, slice(0, 2))
    torch.testing.assert_close(keys, torch.cat([large[0], own[0][:, :, [0, 2]]], dim=2), **close)
    with pytest.raises(ValueError, match="layer 0: 10 tokens exceed the 9 planned"):
        cache.append(0, *entries(2, 4, 3))


def test_what_is_held_stays_in_front() -> None:
    cache = make_cache()
    first, second = entries(4, 2, 0), entries(4, 3, 1)
    cache.append(0, *first)
    cache.hold(0)
    cache.append(0, *second)
    assert cache.front(0) == 2 and cache.front(1) == 0
    cache.select(0, slice(0, 4), torch.tensor([1]).expand(4, 2, 1), *cache.read(0, slice(0, 4)))
    keys, _ = cache.read(0, slice(0, 4))
    assert torch.equal(keys, torch.cat([first[0], second[0][:, :, [1]]], dim=2))


def test_without_a_cache_a_pass_gets_its_own_entries_back() -> None:
    cache = NoCache(2, 3, torch.bfloat16, torch.device("cpu"))
    for seed in (0, 1):
        keys, values = entries(4, 2, seed)
        assert [part.dtype for part in cache.append(0, keys, values)] == [torch.bfloat16] * 2
        assert torch.equal(cache.append(1, keys, values)[0], keys.bfloat16())
    new_keys, new_values, all_keys, all_values = cache.reserve(0, 5, slice(2, 4))
    assert new_keys is all_keys and new_values is all_values and new_keys.shape == (2, 2, 5, 3)
    assert new_keys.data_ptr() != new_values.data_ptr()
    cache.keep(0, slice(2, 4), new_keys, new_values)
    cache.free()
    assert cache.nbytes == 0


@pytest.mark.parametrize("quantized", [False, True])
def test_one_that_holds_the_later_rows_has_what_a_whole_one_has_of_them(quantized: bool) -> None:
    own, index = slice(2, 4), torch.tensor([0, 3]).expand(2, 2, -1)
    given = [entries(2, count, seed) for seed, count in enumerate((2, 4, 1))]
    found = []
    for rows, first in ((4, 0), (2, 2)):
        cache = KVCache((9,), rows, 2, 3, torch.float32, torch.device("cpu"), quantized, first)
        cache.leave_room(0, 3)
        cache.put_in_front(0, own, *given[0])
        cache.start_pass([3])
        *_, keys, values = cache.reserve(0, 4, own)
        keys[:, :, -4:], values[:, :, -4:] = given[1]
        cache.select(0, own, index, keys, values)
        cache.start_pass([])
        found.append((*cache.append(0, *given[2], own), cache.nbytes))
    (keys, values, size), (own_keys, own_values, own_size) = found
    assert torch.equal(keys, own_keys) and torch.equal(values, own_values) and size == 2 * own_size
    with pytest.raises(AssertionError):
        cache.read(0, slice(0, 2))
