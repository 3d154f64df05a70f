"""What the cases give now, and the file of what they gave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from tests.pinned import adapter, cases

PATH = Path(__file__).with_name("pinned.json")

EXACT = ("codes", "logits", "selections", "pixels")
"""Results that are compared only where arithmetic is what it was when they were recorded."""


@cache
def environment() -> dict[str, str]:
    """What decides the last bits of a result: the build of PyTorch, the processor, and what the two make of it."""
    return {
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "arithmetic": _arithmetic(),
    }


def _arithmetic() -> str:
    """A hash of operations that round differently from library to library and from processor to processor."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(37, 64, 64, generator=generator) for _ in range(2))
    kernel = torch.randn(16, 37, 3, 3, generator=generator)
    found = [
        a @ b,
        a[0] @ b[0].T,
        torch.nn.functional.conv2d(a[None], kernel, padding=1),
        torch.nn.functional.scaled_dot_product_attention(a[None], b[None], b[None]),
        a.softmax(dim=-1),
        torch.nn.functional.layer_norm(a, (64,)),
        torch.nn.functional.gelu(a, approximate="tanh"),
        a.sum(dim=0),
        a.square().mean().sqrt(),
        a.abs().log(),
        a.sin(),
        (a.bfloat16() @ b.bfloat16()).float(),
    ]
    digest = hashlib.sha256()
    for value in found:
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


def works() -> dict[str, Callable[[], Any]]:
    """All cases by name, each with the work that gives its result."""
    found: dict[str, Callable[[], Any]] = {}
    for name, arguments in cases.generations().items():
        found[name] = partial(adapter.run, **arguments)
    for name, arguments in cases.CALLS.items():
        found[f"call/{name}"] = partial(adapter.call, **arguments)
    for name, (model, values) in cases.CALL_ERRORS.items():
        found[f"error/{name}"] = partial(adapter.error_of_call, model, values)
    for name, (method, values) in cases.METHOD_ERRORS.items():
        found[f"error/{name}"] = partial(adapter.error_of_method, method, values)
    for name, names in cases.COMPOSITION_ERRORS.items():
        found[f"error/{name}"] = partial(adapter.error_of_composition, names)
    for name, arguments in cases.LOADING_ERRORS.items():
        found[f"error/{name}"] = partial(adapter.error_of_loading, **arguments)
    for name, words in cases.COMMAND_ERRORS.items():
        found[f"error/{name}"] = partial(adapter.error_of_command, words)
    return found


@cache
def recorded() -> dict[str, Any]:
    """The content of the file: ``environment``, and ``cases`` by name."""
    content: dict[str, Any] = json.loads(PATH.read_text())
    return content


def write(results: dict[str, Any]) -> None:
    """Writes the file, one line per case, so that a change shows which cases it changes."""
    lines = [f"{json.dumps(name)}: {json.dumps(result, separators=(',', ':'))}" for name, result in results.items()]
    text = f'{{"environment": {json.dumps(environment())},\n"cases": {{\n' + ",\n".join(lines) + "\n}}\n"
    PATH.write_text(text)
