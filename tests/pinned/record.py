"""Rewrites ``pinned.json`` with what the package does now: ``python -m tests.pinned.record``, from the repository.

It is for a change of behaviour that is meant, and for another processor or PyTorch: there, record at the commit to
compare with, then test the changed code.
"""

from __future__ import annotations

import time

import torch

from tests.pinned.results import PATH, works, write


def record() -> None:
    """Runs all cases in one thread and writes the file."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    results = {name: work() for name, work in works().items()}
    write(results)
    print(f"{len(results)} cases in {time.perf_counter() - start:.0f} s, {PATH.stat().st_size / 1000:.0f} kB in {PATH}")


if __name__ == "__main__":
    record()
