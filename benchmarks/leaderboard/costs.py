"""What methods save at released sizes, by a dry run: ``python -m benchmarks.leaderboard.costs``; no weights, no device.

Each method as it was published for the model where it has a preset for it, else by default.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.leaderboard.figures import RESULTS
from stepvar.checkpoints import LoadedModel
from stepvar.errors import UsageError
from stepvar.evaluation.machine import provenance
from stepvar.methods import Dense, Method, make_method
from stepvar.models.meta import build_on_meta
from stepvar.models.registry import releases_named
from stepvar.pipeline import Pipeline
from stepvar.utils.files import write_text

MODELS: dict[str, dict[str, Any]] = {
    "2b": {"resolution": "1M"},
    "8b": {"resolution": "1M"},
    "0.7b": {},
    "480p": {"seconds": 5},
}
"""Released sizes, and the settings of what they generate."""

METHODS: dict[str, dict[str, str]] = {
    "stepvar": {},
    "stepvar-plus": {},
    "stepvar+drop-guidance": {},
    "fastvar": {"0.7b": "fastvar:hart", "480p": "fastvar:infinity-star"},
    "fastervar": {"0.7b": "fastervar:hart", "480p": "fastervar:infinity-star"},
    "faststar": {},
    "sparsevar": {},
    "skipvar": {},
    "lazyvar": {},
    "scalekv": {"2b": "scalekv:2b", "8b": "scalekv:8b"},
    "sparvar": {"2b": "sparvar:infinity", "8b": "sparvar:infinity"},
    "drop-guidance": {},
    "skip-last": {},
}
"""Methods, and by model the preset that was published for it."""


def measure(model: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per method: operations and bytes of a generation with guidance, without a text encoder."""
    family, variant = releases_named(model)[0]
    outline = build_on_meta(family.build, family.variants[variant].config).set_precision(torch.bfloat16)
    defaults = {**family.variants[variant].defaults, "guidance_scale": 3.0}
    pipe = Pipeline(LoadedModel(model, family.name, outline.eval(), None, defaults), None)
    plain = pipe.settings(**settings)

    def row(name: str, method: Method) -> dict[str, Any]:
        found: dict[str, Any] = {"model": model, "method": name}
        try:
            plan = method.plan(plain, pipe.model.info, 1)
        except UsageError as error:
            return found | {"refused": str(error)}
        taken = pipe.dry_run(plan, method)
        passes = sum(1 for step in plan.steps if step.computed) - sum(len(step.together[1:]) for step in plan.steps)
        return found | {"flops": sum(taken.flops.values()), "cache": taken.cache, "peak": taken.peak, "passes": passes}

    rows = [row("dense", Dense())]
    for name, presets in METHODS.items():
        own = presets.get(model, name)
        rows.append(row(own, make_method(own)))
    return rows


def markdown(result: Mapping[str, Any]) -> str:
    """One table: a row per method, operations and cache of each model over dense."""
    rows, models = result["rows"], list(dict.fromkeys(row["model"] for row in result["rows"]))
    names = list(dict.fromkeys(row["method"].partition(":")[0] for row in rows))
    lines = ["| method | " + " | ".join(f"{model}: FLOPs, cache GiB, passes" for model in models) + " |"]
    lines.append("|---" * (len(models) + 1) + "|")
    for name in names:
        cells = [f"`{name}`"]
        for model in models:
            own = {row["method"].partition(":")[0]: row for row in rows if row["model"] == model}
            found, dense = own.get(name), own["dense"]
            if found is None or "refused" in found:
                cells.append("refused" if found else "")
                continue
            ratio = dense["flops"] / found["flops"]
            cells.append(f"{ratio:.2f}x, {found['cache'] / 2**30:.2f}, {found['passes']}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaderboard.costs", description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path, default=RESULTS / "costs.json")
    arguments = parser.parse_args(given)
    rows = [row for model in arguments.models for row in measure(model, MODELS[model])]
    result = {"info": provenance(torch.device("cpu"), command_line(__spec__)), "rows": rows}
    write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
