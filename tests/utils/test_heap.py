"""Freed memory goes back to the system."""

import os
import platform
import sys
from pathlib import Path

import pytest

from stepvar.utils.heap import return_free_memory


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_holes_between_living_objects_are_given_back() -> None:
    size = 64 * 1024  # below the size from which glibc takes pages from the system for each
    blocks = [bytearray(size) for _ in range(2000)]
    kept = blocks[::20]
    del blocks
    before = resident()
    assert return_free_memory()
    assert before - resident() > 1000 * size
    assert all(len(block) == size for block in kept)


@pytest.mark.skipif(sys.platform != "darwin", reason="macOS has another C library")
def test_other_libraries_are_left_alone() -> None:
    assert not return_free_memory()
