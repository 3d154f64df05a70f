"""Memory that loading a checkpoint takes: ``python -m tests.measure_loading --megabytes 200``.

Writes a random checkpoint of about that size, loads it in a fresh process and prints, as JSON, the bytes of the
weights loaded and by how much the process grew at its peak. Everything counts: memory of its own and the pages of
mapped files (VmHWM of ``/proc/self/status``, so on Linux only). What the libraries take is excluded by loading a
tiny model first.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from stepvar.checkpoints import load_model
from stepvar.models.infinity import InfinityConfig, TokenizerConfig
from tests.checkpoint_writer import INFINITY_LAYOUTS, Layout, write_infinity

STATUS = Path("/proc/self/status")

EXACT_HEAP = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Makes glibc give back a freed tensor at once.

By itself it raises this threshold to the size of what was freed, and keeps holes of some tens of megabytes in its heap,
more in one run than in the next, whatever the size of the model.
"""


def config_of(megabytes: float, dtype: torch.dtype) -> InfinityConfig:
    """A model of about this size, with the proportions of the released ones: many blocks, no tensor stands out."""
    width = 768 if megabytes > 100 else 256
    depth = max(2, round(megabytes * 1e6 / dtype.itemsize / (16 * width**2)))
    tokenizer = TokenizerConfig(code_bits=8, base_channels=32, multipliers=(1, 2))
    return InfinityConfig(depth, width, 8, depth, tokenizer, text_channels=256, text_maxlen=64)


def measure(
    folder: Path, megabytes: float, layout: Layout, stored: torch.dtype, dtype: torch.dtype
) -> dict[str, float]:
    """Writes a checkpoint whose weights in ``dtype`` take about ``megabytes``, and loads it in a process of its own."""
    for name, config in (("warm", config_of(0, dtype)), ("main", config_of(megabytes, dtype))):
        sharded = layout in ("shards", "bin shards")
        write_infinity(folder / name, config, "8b" if sharded else "2b", layout, dtype=stored)
    command = [sys.executable, "-m", "tests.measure_loading", "--child", str(folder), "--dtype", _name(dtype)]
    root, environment = Path(__file__).parents[1], os.environ | EXACT_HEAP
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=environment)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _resident(key: str) -> int:
    """Bytes of an entry of the process's status."""
    found = re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return 1024 * int(found[1])


def _load(folder: Path, dtype: torch.dtype) -> Any:
    transformer = next(path for path in folder.iterdir() if path.name.startswith(("infinity_2b", "infinity_8b")))
    return load_model(transformer, dtype=dtype, tokenizer=next(folder.glob("infinity_vae*"))).model


def child(folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Loads and measures, in this process."""
    warm = _load(folder / "warm", dtype)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    model = _load(folder / "main", dtype)
    peak = _resident("VmHWM") - before
    del warm
    target = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {"target": target, "peak": peak, "ratio": round(peak / target, 3), "after": _resident("VmRSS") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--layout", default="flat", choices=INFINITY_LAYOUTS)
    parser.add_argument("--stored", default="bfloat16", help="type in the file")
    parser.add_argument("--dtype", default="bfloat16", help="type to load")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    dtype = getattr(torch, given.dtype)
    if given.child is not None:
        print(json.dumps(child(given.child, dtype)))
        return
    with tempfile.TemporaryDirectory() as folder:
        stored = getattr(torch, given.stored)
        print(json.dumps(measure(Path(folder), given.megabytes, given.layout, stored, dtype)))


if __name__ == "__main__":
    main()
