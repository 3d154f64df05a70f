"""Comparing what was computed with what a golden recorded, and showing the outcome."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from rich.table import Table
from torch import Tensor

from stepvar.verify.goldens import Golden

Status = Literal["pass", "fail", "skipped", "not supported"]

GROUPS: dict[str, str] = {
    "text": r"cond_BD|ca_kv",
    "tokens": r"tokens_in_\d+|var_input_\d+",
    "blocks": r"blockout_s\d+_l\d+",
    "hidden": r"hidden_\d+|h",
    "logits": r"logits_\d+",
    "latents": r"summed_codes|z",
    "image": r"img_f32(_crop)?|rec",
    "units": r"rope_\w+|lat_\w+|pixel_unshuffle_out",
}
"""Groups of tensors with one tolerance each, by the tensors' names."""

DISCRETE: dict[str, tuple[str, int]] = {
    "bits": (r"bits_\d+|bit_\w+", 0),
    "pixels": (r"img_u8_bgr", 1),
}
"""Groups of whole numbers, by the tensors' names, and how far two may be apart and count as equal."""

LIMITS: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {
        "text": 5e-4,
        "tokens": 1e-5,
        "blocks": 5e-4,
        "hidden": 5e-4,
        "logits": 2e-4,
        "latents": 1e-5,
        "image": 1e-3,
        "units": 1e-5,
    },
}
"""Largest absolute errors. Float32 leaves only the order of additions free; in lower precision the bounds are
about three times what the CPU gives, which tells a wrong result from a rounded one, not more."""


@dataclass(frozen=True)
class GoldenResult:
    """What came of one golden.

    Attributes:
        name, path: which golden.
        kind: what it holds, such as ``"infinity"``.
        status: ``"pass"`` or ``"fail"``; ``"not supported"`` for a kind that cannot be run yet and was named by
            the user, which fails the run, and ``"skipped"`` for one found in a folder, which does not.
        errors: worst absolute error of each group of tensors that the golden stores (see ``GROUPS``).
        differing: number of whole numbers that differ (see ``DISCRETE``).
        notes: why it failed, or what was not compared.
    """

    name: str
    path: Path
    kind: str
    status: Status
    errors: dict[str, float] = field(default_factory=dict)
    differing: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.status == "pass"


def all_passed(results: Sequence[GoldenResult]) -> bool:
    """Whether at least one golden passed, and all did but those skipped."""
    return any(result.passed for result in results) and all(
        result.passed or result.status == "skipped" for result in results
    )


def compare(golden: Golden, kind: str, computed: Mapping[str, Tensor], dtype: torch.dtype) -> GoldenResult:
    """Judges the tensors computed, each by its group; the golden must store every one of them."""
    errors: dict[str, float] = {}
    differing: dict[str, int] = {}
    notes: list[str] = []
    for name, ours in computed.items():
        theirs, ours = golden.tensors[name], ours.cpu()
        if ours.shape != theirs.shape:
            notes.append(f"{name}: shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}")
            continue
        counted = _discrete_group(name)
        if counted is not None:
            group, tolerance = counted
            apart = (ours.int() - theirs.int()).abs() > tolerance
            differing[group] = differing.get(group, 0) + int(apart.sum())
        else:
            group = _group(name)
            # torch.max keeps a NaN, Python's max may lose it.
            worst = torch.stack([(ours.float() - theirs).abs().max(), torch.tensor(errors.get(group, 0.0))])
            errors[group] = float(worst.max())
    limits = LIMITS[dtype]
    # Not "error > limit": a NaN must fail.
    over = [group for group, error in errors.items() if not error <= limits[group]]
    notes += [f"{group}: error {errors[group]:.1e} above {limits[group]:.0e}" for group in over]
    notes += [f"{group}: {count} differ" for group, count in differing.items() if count]
    status: Status = "fail" if notes else "pass"
    return GoldenResult(golden.name, golden.path, kind, status, errors, differing, tuple(notes))


def _group(name: str) -> str:
    return next(group for group, names in GROUPS.items() if re.fullmatch(names, name))


def _discrete_group(name: str) -> tuple[str, int] | None:
    for group, (names, tolerance) in DISCRETE.items():
        if re.fullmatch(names, name):
            return group, tolerance
    return None


def results_table(results: Sequence[GoldenResult]) -> Table:
    """One row per golden: worst absolute errors, differing whole numbers, outcome."""
    groups = [group for group in GROUPS if any(group in result.errors for result in results)]
    counts = [group for group in DISCRETE if any(group in result.differing for result in results)]
    table = Table(title="Goldens: worst absolute error, differing bits and pixels")
    table.add_column("golden")
    table.add_column("kind")
    for group in (*groups, *counts):
        table.add_column(group, justify="right")
    table.add_column("result")
    for result in results:
        table.add_row(
            result.name,
            result.kind,
            *(f"{result.errors[group]:.1e}" if group in result.errors else "" for group in groups),
            *(str(result.differing[group]) if group in result.differing else "" for group in counts),
            result.status,
        )
    notes = [f"{result.name}: {note}" for result in results for note in result.notes]
    table.caption = "\n".join(notes) or None
    table.caption_justify = "left"
    return table
