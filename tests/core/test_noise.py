"""Random numbers: many are sampled by several threads, and are the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from stepvar.core import noise as noises
from stepvar.core.noise import SeededNoise

CPU = torch.device("cpu")


@pytest.fixture
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("inference", [False, True])
def test_several_threads_give_the_same_numbers(monkeypatch, inference):
    pools = []

    def pool(workers):
        pools.append(workers)
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(noises, "ThreadPoolExecutor", pool)
    source, shape = SeededNoise([3, 4, 5]), (3, 7, 5, 2)

    def numbers():
        return source.exponential(2, shape, CPU), source.normal(2, 0, shape, CPU)

    with torch.inference_mode(inference):
        few = numbers()
        assert not pools
        monkeypatch.setattr(noises, "WORTH_THREADS", 1)
        many = numbers()
        assert pools == [2, 2]
        assert all(map(torch.equal, few, many))
        many[0].mul_(2)  # as a caller may, in the mode that it is in
    alone = SeededNoise([4]).exponential(2, (1, *shape[1:]), CPU)
    assert torch.equal(few[0][1:2], alone)
