"""From golden files to results. A new kind of golden is a row in the ``KINDS`` of its family."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from stepvar.conformance import (
    fastervar,
    hart,
    infinity,
    infinity_star,
    scalekv,
    skipvar,
    sparsevar,
    sparvar,
    star,
    switti,
    var,
    varedit,
)
from stepvar.conformance.golden import PACKAGED, Golden, Kind, find_goldens, read_tensors
from stepvar.conformance.results import GoldenResult, Status, compare, limits
from stepvar.errors import StepvarError, UsageError
from stepvar.utils.device import full_precision

KINDS: tuple[Kind, ...] = (
    *fastervar.KINDS,
    *sparsevar.KINDS,
    *skipvar.KINDS,
    *scalekv.KINDS,
    *sparvar.KINDS,
    *infinity.KINDS,
    *varedit.KINDS,
    *var.KINDS,
    *hart.KINDS,
    *infinity_star.KINDS,
    *star.KINDS,
    *switti.KINDS,
)


def verify(
    paths: Sequence[str | Path] = (),
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[GoldenResult]:
    """Runs goldens and compares what comes out with what the original implementations computed.

    Args:
        paths: golden files (either of a pair) and folders of them; empty: those that come with the package.
        device: where to run.
        dtype: float32, or bfloat16 and float16 with looser bounds. In those, bits whose logits are close may
            flip, and everything after a flipped bit differs for good reason, so only what comes before the first
            bit is compared (the notes of a result say what).

    Returns:
        One result per golden, in the order given, folders by name.

    Raises:
        CheckpointError: if a golden is missing, unreadable or truncated.
        UsageError: if a folder holds no golden, or the device or the precision cannot be used.
    """
    _check(device, dtype)
    found = [replace(golden, device=str(device), dtype=dtype) for golden in find_goldens(paths or [PACKAGED])]
    kinds = [next((kind for kind in KINDS if kind.fits(golden)), None) for golden in found]
    # All files are read first, so that a damaged one is known before the work.
    read = [read_tensors(golden) if kind else golden for golden, kind in zip(found, kinds, strict=True)]
    with full_precision(), torch.inference_mode():
        return [_run(golden, kind) for golden, kind in zip(read, kinds, strict=True)]


def _check(device: str | torch.device, dtype: torch.dtype) -> None:
    """Raises a UsageError for a device that does not exist, or a precision that there are no bounds for."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UsageError(f"dtype={dtype}: must be float32, bfloat16 or float16")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device={str(device)!r}: cannot be used ({reason}); try 'cpu'") from None


def _run(golden: Golden, kind: Kind | None) -> GoldenResult:
    if kind is None:
        stated = str(golden.config.get("kind", "unknown"))
        status: Status = "not supported" if golden.named else "skipped"
        return GoldenResult(golden.name, stated, status, notes=("this version cannot run them",))
    try:
        computed = kind.run(golden)
    except StepvarError as error:
        return GoldenResult(golden.name, kind.name, "fail", notes=(str(error),))
    if not golden.exact:
        computed = {name: value for name, value in computed.items() if re.fullmatch(kind.early, name)}
        if not computed.keys() & golden.tensors.keys():
            note = "stores nothing that can be compared in low precision"
            return GoldenResult(golden.name, kind.name, "skipped", notes=(note,))
    result = compare(golden, kind.name, computed, limits(golden))
    if not golden.exact:
        return replace(result, notes=(*result.notes, f"compared in low precision: {kind.reduced}"))
    missing = [name for name in golden.tensors if name not in computed and not re.fullmatch(kind.inputs, name)]
    if missing:
        note = f"stored but not computed: {', '.join(missing)}"
        return replace(result, status="fail", notes=(*result.notes, note))
    return result
