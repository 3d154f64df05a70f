"""Turns the stored results into the tables of the documentation: ``python -m benchmarks.tables``.

The pages include what this writes to ``docs/snippets``, so no figure is copied by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import engine, memory, precision, quality_video, speed, upstream
from benchmarks.stepvar_plus import summary as stepvar_plus
from benchmarks.study.tables import single, write_tables
from stepvar.utils.files import write_text

ROOT = Path(__file__).parent.parent
RESULTS, SNIPPETS = ROOT / "benchmarks" / "results", ROOT / "docs" / "snippets"
IMAGES = ROOT / "docs" / "images"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def info(result: dict[str, Any]) -> str:
    """Command and machine, below a table."""
    known = result["info"]
    where = ", ".join(str(known[name]) for name in ("device", "machine", "dtype", "torch") if name in known)
    return f"\n`{known['command']}`; {where}.\n"


def quality(result: dict[str, Any]) -> str:
    """One column per attribute, one row per setting."""
    names = list(result["rows"][0]["accuracy"])
    lines = ["| guidance | temperature | " + " | ".join(name.replace("_", " ") for name in names) + " |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for row in result["rows"]:
        shares = [percent(row["accuracy"][name][0]) for name in names]
        lines.append(f"| {row['guidance']} | {row['temperature']} | " + " | ".join(shares) + " |")
    counts = ", ".join(f"{name.replace('_', ' ')} {result['rows'][0]['accuracy'][name][1]}" for name in names)
    return "\n".join(lines) + f"\n\nImages judged: {counts}.\n" + info(result)


WRITERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "quality": quality,
    "clips": lambda result: quality_video.markdown(result["rows"]) + info(result),
    "precision": lambda result: precision.markdown(result) + "\n" + info(result),
    "engine": lambda result: engine.markdown(result) + info(result),
    "memory": lambda result: memory.table(result["rows"]) + "\n" + info(result),
    "quantization": lambda result: precision.quantization_markdown(result) + "\n" + info(result),
    "speed": lambda result: speed.markdown(result) + "\n" + info(result),
    "budget": lambda result: speed.markdown(result) + "\n" + info(result),
    "upstream": lambda result: upstream.markdown(result) + info(result),
    "single": single,
    "stepvar": lambda result: stepvar_plus.page(result) + info(result),
}
"""From the first word of a result's name to what writes its table."""


def main() -> None:
    SNIPPETS.mkdir(parents=True, exist_ok=True)
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        kind = path.stem.partition("-")[0]
        if kind == "study":
            write_tables(result, SNIPPETS, IMAGES)
        elif kind in WRITERS:
            write_text(SNIPPETS / f"{path.stem}.md", WRITERS[kind](result))
        print(f"{path.stem}: {'written' if kind in (*WRITERS, 'study') else 'no table; its page quotes it'}")


if __name__ == "__main__":
    main()
