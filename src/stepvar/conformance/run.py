"""From golden files to results. A new kind of golden is a function and a row in ``KINDS``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepvar.conformance.fastvar import FASTVAR_INPUTS, is_fastvar_units, run_fastvar_units
from stepvar.conformance.goldens import Golden, default_goldens, find_goldens, read_tensors
from stepvar.conformance.hart import (
    CONTEXT_INPUTS,
    MODULE_INPUTS,
    is_context,
    is_modules,
    is_soft,
    run_context,
    run_modules,
)
from stepvar.conformance.infinity import GENERATION_INPUTS, TOKENIZER_INPUTS, run_generation, run_tokenizer
from stepvar.conformance.infinity_star import STAR_INPUTS, is_star, run_star
from stepvar.conformance.infinity_star_tokenizer import VIDEO_INPUTS, is_video_encode, run_video_encode
from stepvar.conformance.infinity_star_units import STAR_UNIT_INPUTS, is_star_units, run_star_units
from stepvar.conformance.recording import Record
from stepvar.conformance.results import LIMITS, SOFT, GoldenResult, Status, compare
from stepvar.conformance.setup import Setup, make_setup
from stepvar.conformance.units import UNIT_INPUTS, run_units
from stepvar.conformance.var import CLASS_INPUTS, is_classes, is_vq, run_classes, run_vq
from stepvar.errors import StepvarError
from stepvar.utils.determinism import full_precision


@dataclass(frozen=True)
class Kind:
    """A kind of golden.

    Attributes:
        name: for reports.
        fits: whether a golden is of this kind, by what its JSON file says.
        run: computes what the golden stores, by name.
        inputs: pattern of the names of the tensors that are given, not computed.
        reduced: what is compared in low precision.
        soft: whether a golden adds soft codes, by its tensors.
    """

    name: str
    fits: Callable[[dict[str, Any]], bool]
    run: Callable[[Golden, Setup], Record]
    inputs: str
    reduced: str
    soft: Callable[[Mapping[str, Tensor]], bool] = lambda tensors: False


def _is_generation(about: dict[str, Any]) -> bool:
    config = about.get("config", {})
    return {"cfg_insertion_layer", "embed_dim", "Ct5"} <= config.keys()


def _is_tokenizer(about: dict[str, Any]) -> bool:
    return {"vae_d", "schedule", "apply_spatial_patchify"} <= about.keys()


def _is_units(about: dict[str, Any]) -> bool:
    return {"bit_logits", "lat_in"} <= about["tensors"].keys()


KINDS = (
    Kind(
        "infinity",
        _is_generation,
        run_generation,
        GENERATION_INPUTS,
        "the text, the first scale, and the decoder on the golden's codes",
    ),
    Kind(
        "bit tokenizer",
        _is_tokenizer,
        run_tokenizer,
        TOKENIZER_INPUTS,
        "the encoder, the quantiser on the golden's latents, and the decoder on its codes",
    ),
    Kind(
        "infinity star",
        is_star,
        run_star,
        STAR_INPUTS,
        "the text, the first pass, and the decoder on the golden's codes",
    ),
    Kind(
        "infinity star units",
        is_star_units,
        run_star_units,
        STAR_UNIT_INPUTS,
        "the decoder and a block; the rest in float32",
    ),
    Kind(
        "hart",
        is_context,
        run_context,
        CONTEXT_INPUTS,
        "the first scale, and the decoder on the golden's latent",
        is_soft,
    ),
    Kind("hart modules", is_modules, run_modules, MODULE_INPUTS, "rotary positions, the diffusion head, the decoder"),
    Kind("infinity units", _is_units, run_units, UNIT_INPUTS, "all, in float32"),
    Kind("fastvar units", is_fastvar_units, run_fastvar_units, FASTVAR_INPUTS, "all, in float32"),
    Kind("var", is_classes, run_classes, CLASS_INPUTS, "the first scale, and the decoder on the golden's codes"),
    Kind(
        "vq tokenizer",
        is_vq,
        run_vq,
        TOKENIZER_INPUTS,
        "the encoder, the quantiser on the golden's latents, and the decoder on its codes",
    ),
    Kind(
        "video tokenizer",
        is_video_encode,
        run_video_encode,
        VIDEO_INPUTS,
        "the encoder, and the codes of the golden's features",
    ),
)


def verify(
    paths: Sequence[str | Path] = (),
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[GoldenResult]:
    """Runs goldens and compares what comes out with what the original implementations computed.

    Args:
        paths: golden files (either of a pair) and folders of them; empty: those of the project's own tests.
        device: where to run.
        dtype: float32, or bfloat16 and float16 with looser bounds. In those, bits whose logits are close may
            flip, and everything behind a flipped bit differs for good reason, so only what comes before the first
            bit is compared (the notes of a result say what).

    Returns:
        One result per golden, in the order given, folders by name.

    Raises:
        CheckpointError: if a golden is missing, unreadable or truncated.
        UsageError: if a folder holds no golden, or the device or the precision cannot be used.
    """
    setup = make_setup(device, dtype)
    found = [(golden, _kind(golden)) for golden in find_goldens(paths or [default_goldens()])]
    # All files are read first, so that a damaged one is known before the work.
    read = [(read_tensors(golden) if kind else golden, kind) for golden, kind in found]
    with full_precision():
        return [_run(golden, kind, setup) if kind else _unsupported(golden) for golden, kind in read]


def _kind(golden: Golden) -> Kind | None:
    return next((kind for kind in KINDS if kind.fits(golden.about)), None)


def _unsupported(golden: Golden) -> GoldenResult:
    status: Status = "not supported" if golden.named else "skipped"
    return GoldenResult(
        golden.name, golden.path, "unknown", status, notes=("not supported: no runner for this kind of golden",)
    )


def _run(golden: Golden, kind: Kind, setup: Setup) -> GoldenResult:
    try:
        computed = kind.run(golden, setup)
    except StepvarError as error:
        return GoldenResult(golden.name, golden.path, kind.name, "fail", notes=(str(error),))
    limits = LIMITS[setup.dtype]
    if not setup.exact and not computed.keys() & golden.tensors.keys():
        note = "stores nothing that can be compared in low precision"
        return GoldenResult(golden.name, golden.path, kind.name, "skipped", notes=(note,))
    if setup.exact and kind.soft(golden.tensors):
        limits = {**limits, **SOFT}
    result = compare(golden, kind.name, computed, limits)
    if not setup.exact:
        return replace(result, notes=(*result.notes, f"compared in low precision: {kind.reduced}"))
    missing = [name for name in golden.tensors if name not in computed and not re.fullmatch(kind.inputs, name)]
    if missing:
        note = f"stored but not computed: {', '.join(missing)}"
        return replace(result, status="fail", notes=(*result.notes, note))
    return result
