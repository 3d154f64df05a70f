"""The table that ``--method auto`` reads: comparisons of methods, model by model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepvar.utils.files import write_text

AUTO = Path(__file__).parents[1] / "src" / "stepvar" / "cost" / "auto.json"

Ranking = Mapping[str, list[dict[str, Any]]]
"""By cost, methods with their settings and PSNR, the nearest to dense first."""


def update_auto(model: str, ranking: Ranking, info: Mapping[str, Any], path: Path = AUTO) -> None:
    """Writes the comparison of one model into the table; other models and costs stay."""
    known = json.loads(path.read_text("utf-8")) if path.exists() else {"info": {}, "models": {}}
    own, infos = known["models"].get(model, {}) | ranking, known["info"].get(model, {})
    known["models"][model] = dict(sorted(own.items(), key=lambda entry: float(entry[0])))
    known["info"][model] = infos | {cost: dict(info) for cost in ranking}
    write_text(path, json.dumps(known, indent=1, allow_nan=False) + "\n")
