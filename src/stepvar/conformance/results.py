"""Comparing what was computed with what a golden recorded, and showing the outcome."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from rich.table import Column, Table
from torch import Tensor

from stepvar.conformance.golden import Golden

Status = Literal["pass", "fail", "skipped", "not supported"]


class Group(NamedTuple):
    """Tensors with one tolerance.

    Attributes:
        names: pattern of their names.
        float32, bfloat16, float16: the largest absolute error in each precision.
        soft: likewise in float32 where soft codes are added; None: no other.
    """

    names: str
    float32: float
    bfloat16: float
    float16: float
    soft: float | None = None


GROUPS: dict[str, Group] = {
    "text": Group(r"cond_BD|crop_cond|ca_kv|prefix_tokens", 5e-4, 5e-4, 5e-4),
    "text keys": Group(r"ca_[kv]_l\d+", 1e-4, 0.06, 0.01),
    "tokens": Group(
        r"tokens_in_\d+|var_input(_\d+)?|step\d+\.tokens_in|cond_\w+_tokens|s\d+\.tokens_in", 1e-5, 1e-5, 1e-5, 2e-3
    ),
    "source": Group(r"source_(latent|tokens)|ref_[kv]_\d+", 5e-5, 5e-5, 5e-5),
    "blocks": Group(r"blockout_s\d+_l\d+|rp_out_s\d+_c\d+|source_blockout_(head_)?l\d+", 5e-4, 0.25, 0.03),
    "hidden": Group(r"hidden_\d+|h|f|enc_moments|raw_features|(step|s)\d+\.hidden|diff\.z", 5e-4, 0.25, 0.03, 2e-3),
    "logits": Group(r"logits_\d+|(sampler_)?logits_\d+_\d+|(step|s)\d+\.logits", 2e-4, 0.5, 0.06, 2e-3),
    "latents": Group(
        r"summed_codes|codes_\d+|z|f_hat(_last)?|s\d+\.f_hat|probe_latent_\w+|soft_\d+", 1e-5, 1e-5, 1e-5, 2e-3
    ),
    "image": Group(r"img_f32(_crop)?|rec|decoded|recon_from_raw|image|probe_image_\w+", 1e-3, 0.4, 0.05),
    "residual": Group(r"f_hat_final|diff\.(out|step\d+\.\w+)", 2e-4, 2e-4, 2e-4, 2e-3),
    "selection": Group(r"(error|share)_\d+|similarity_s\d+|features", 1e-5, 1e-5, 1e-5),
    "scores": Group(r"(skip|branch)_scores", 1e-3, 1e-3, 1e-3),
    "rest": Group(r"rest_l\d+", 1e-4, 0.25, 0.03),
    "draws": Group(r"diff\.cfg|s\d+\.gumbel_\w+|rp_prob_s\d+_c\d+", 1e-5, 1e-5, 1e-5),
}
"""Groups of numbers.

In float32 only the order of additions is free. A diffusion head multiplies the differences that this makes by its
guidance and by the noise of its first steps; soft codes multiply differences of logits a hundredfold at late scales.
In lower precision the bounds are about three times the worst error seen on a CPU: they tell a wrong result from a
rounded one, and no more. What is computed in float32 there, too, keeps its bound.
"""

DISCRETE: dict[str, tuple[str, int]] = {
    "bits": (r"bits_\d+|step\d+\.bits|gt_bits\d+", 0),
    "indices": (r"idx_\d+(_\d+)?|s\d+\.idx", 0),
    "pixels": (r"img_u8_bgr|frames_u8_bgr(_last4)?", 1),
    "source pixels": (r"source_square_u8", 0),
    "edited pixels": (r"picture_out_u8", 2),
    "kept": (r"kept_\w+|(excluded|recoverable|anchor|zeroed)_s\d+", 0),
    "decision": (r"(skip|branch)_class", 0),
    "cache": (r"cache_len", 0),
    "keys": (r"keys_s\d+_l\d+|blocks_s\d+|keys_seen", 0),
}
"""Groups of whole numbers, by the tensors' names, and how far two may be apart and count as equal."""

Limits = Mapping[str, float]


def limits(golden: Golden) -> Limits:
    """The largest absolute error of each group."""
    column = {torch.bfloat16: "bfloat16", torch.float16: "float16"}.get(golden.dtype, "float32")
    found: dict[str, float] = {name: getattr(group, column) for name, group in GROUPS.items()}
    if golden.exact and golden.soft:
        found |= {name: group.soft for name, group in GROUPS.items() if group.soft is not None}
    return found


@dataclass(frozen=True)
class GoldenResult:
    """What came of one golden.

    Attributes:
        name: of the golden.
        kind: what it holds, such as ``"infinity"``.
        status: ``"pass"`` or ``"fail"``; ``"not supported"`` for a kind that cannot be run and was named by the user,
            which fails the run, and ``"skipped"`` for one found in a folder, which does not.
        errors: worst absolute error of each group of tensors that the golden stores (see ``GROUPS``).
        differing: number of whole numbers that differ (see ``DISCRETE``).
        notes: why it failed, or what was not compared.
    """

    name: str
    kind: str
    status: Status
    errors: dict[str, float] = field(default_factory=dict)
    differing: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong: it agrees, or was skipped."""
        return self.status in ("pass", "skipped")


def compare(golden: Golden, kind: str, computed: Mapping[str, Tensor], limits: Limits) -> GoldenResult:
    """Judges the tensors computed, each by the limit of its group, against those that the golden stores."""
    errors: dict[str, float] = {}
    differing: dict[str, int] = {}
    notes: list[str] = []
    for name in sorted(computed.keys() & golden.tensors.keys()):
        group, tolerance = _group(name, golden.tensors[name])
        ours, theirs = _branches_in_common(group, computed[name].cpu(), golden.tensors[name])
        if ours.shape != theirs.shape:
            notes.append(f"{name}: shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}")
        elif tolerance is not None:
            apart = (ours.int() - theirs.int()).abs() > tolerance
            differing[group] = differing.get(group, 0) + int(apart.sum())
        else:
            worst = float((ours.float() - theirs.float()).abs().max())
            errors[group] = worst if math.isnan(worst) else max(errors.get(group, 0.0), worst)
    # Not "error > limit": a NaN must fail.
    over = [group for group, error in errors.items() if not error <= limits[group]]
    notes += [f"{group}: error {errors[group]:.1e} above {limits[group]:.0e}" for group in over]
    notes += [f"{group}: {count} differ" for group, count in differing.items() if count]
    if not errors and not differing:
        notes.append("nothing could be compared")
    status: Status = "fail" if notes else "pass"
    return GoldenResult(golden.name, kind, status, errors, differing, tuple(notes))


def _group(name: str, values: Tensor) -> tuple[str, int | None]:
    """The group of a tensor, and its tolerance if it holds whole numbers that are counted."""
    if not values.is_floating_point():
        for group, (names, tolerance) in DISCRETE.items():
            if re.fullmatch(names, name):
                return group, tolerance
    for group, about in GROUPS.items():
        if re.fullmatch(about.names, name):
            return group, None
    raise KeyError(f"tensor {name!r} belongs to no group")


def _branches_in_common(group: str, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Without the unconditional rows that only one side has.

    The originals run that branch at every scale and store it or not; we drop it where nothing later needs it.
    """
    if group not in ("blocks", "hidden", "residual", "source"):
        return ours, theirs
    rows = min(len(ours), len(theirs))
    return (ours[:rows], theirs[:rows]) if max(len(ours), len(theirs)) == 2 * rows else (ours, theirs)


def all_passed(results: Sequence[GoldenResult]) -> bool:
    """Whether nothing is wrong and something was compared: a run of skipped goldens proves nothing."""
    return all(result.passed for result in results) and any(result.status == "pass" for result in results)


def verdict(results: Sequence[GoldenResult], where: str) -> str:
    """Whether this build computes what the original implementations computed: one line that begins with yes or no.

    Args:
        where: the device and the precision that were asked for.
    """
    run = [result for result in results if result.status != "skipped"]
    wrong = [result.name for result in run if not result.passed]
    if wrong:
        return f"no: {len(wrong)} of {len(run)} goldens do not agree or cannot be run ({where}): {', '.join(wrong)}"
    skipped = len(results) - len(run)
    if not run:
        return f"no: nothing was compared ({where}), {skipped} goldens were skipped"
    more = f"; {skipped} more were skipped" if skipped else ""
    return f"yes: this build reproduces the reference implementations on all {len(run)} goldens ({where}){more}"


def skipped_lines(results: Sequence[GoldenResult]) -> list[str]:
    """One line per kind of golden that was skipped: which ones, and why."""
    names: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.status == "skipped":
            names.setdefault((result.kind, "; ".join(result.notes)), []).append(result.name)
    return [f"skipped goldens of kind {kind!r} ({', '.join(own)}): {why}" for (kind, why), own in names.items()]


def results_table(results: Sequence[GoldenResult]) -> Table:
    """One row per golden: worst absolute errors, numbers of differing whole numbers, outcome."""
    groups = [group for group in GROUPS if any(group in result.errors for result in results)]
    counts = [group for group in DISCRETE if any(group in result.differing for result in results)]
    counted = [Column(group, justify="right") for group in (*groups, *counts)]
    notes = [f"{result.name}: {note}" for result in results if result.status != "skipped" for note in result.notes]
    table = Table(
        "golden",
        "kind",
        *counted,
        "result",
        title="Goldens: worst absolute error, differing bits, indices and pixels",
        caption="\n".join(notes) or None,
        caption_justify="left",
    )
    for result in results:
        table.add_row(
            result.name,
            result.kind,
            *(f"{result.errors[group]:.1e}" if group in result.errors else "" for group in groups),
            *(str(result.differing[group]) if group in result.differing else "" for group in counts),
            result.status,
        )
    return table
