"""Turns the stored results into the tables of the documentation: ``python -m benchmarks.tables``.

The pages include what this writes to ``docs/snippets``, so no figure is copied by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import engine, memory, own_scale, parallel, precision, quality_video, rules, speed, upstream
from benchmarks.leaderboard import beside, costs
from benchmarks.leaderboard import tables as leaderboard
from benchmarks.stepvar_plus import summary as stepvar_plus
from benchmarks.study.tables import single, write_tables
from stepvar.evaluation.likelihood.summary import overview, title
from stepvar.evaluation.report.tables import to_markdown
from stepvar.utils.files import write_text

ROOT = Path(__file__).parent.parent
RESULTS, SNIPPETS = ROOT / "benchmarks" / "results", ROOT / "docs" / "snippets"
IMAGES = ROOT / "docs" / "images"
WEIGHTS = ROOT / "src" / "stepvar" / "weights"
CARD_MARKS = ("<!-- quality -->\n", "<!-- /quality -->\n")
"""Around the measured table of a model card."""


def stored(name: str) -> dict[str, Any]:
    """The results of that name."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


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
    "rules": lambda result: rules.markdown(result) + info(result),
    "precision": lambda result: precision.markdown(result) + "\n" + info(result),
    "engine": lambda result: engine.markdown(result) + info(result),
    "memory": lambda result: memory.table(result["rows"]) + "\n" + info(result),
    "quantization": lambda result: precision.quantization_markdown(result) + "\n" + info(result),
    "speed": lambda result: speed.markdown(result) + "\n" + info(result),
    "budget": lambda result: speed.markdown(result) + "\n" + info(result),
    "upstream": lambda result: upstream.markdown(result) + info(result),
    "throughput": lambda result: parallel.throughput_table(result["throughput"], 1) + "\n" + info(result),
    "leaderboard": lambda result: leaderboard.markdown(result) + info(result),
    "costs": lambda result: costs.markdown(result) + info(result),
    "single": single,
    "own": lambda result: own_scale.markdown(result) + info(result),
    "likelihood": lambda result: f"{title(result)}.\n\n{to_markdown(overview(result))}{info(result)}",
    "stepvar": lambda result: stepvar_plus.page(result) + info(result),
}
"""From the first word of a result's name to what writes its table."""


BESIDE = {
    "leaderboard-beside": {"photographs": "leaderboard-wardrobe", "shapes": "leaderboard-scenes"},
    "leaderboard-beside-time": {"photographs": "leaderboard-wardrobe-time", "shapes": "leaderboard-scenes-time"},
}
"""Short tables of several models: what each one's images show, and its results."""


def attributes(accuracy: dict[str, tuple[float, int]]) -> str:
    """The table of a model card: what is asked, how often it is right, and of how many."""
    lines = ["| asked | right | of |", "|---|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {percent(share)} | {count} |" for name, (share, count) in accuracy.items()]
    return "\n".join(lines) + "\n"


def of_photographs(result: dict[str, Any]) -> str:
    """The table of the model card of "wardrobe", without a judge: what captions ask for, and what a probe reads."""
    count = result["captions"]
    rows = [
        ("first colour of the garment is the caption's", result["colour_first"], count),
        ("it is the first or second one", result["colour_shown"], count),
        ("garment, read by the probe", result["garment_right"], count),
        ("the same probe on all held-out photographs", result["garment_right_on_photographs"], ""),
    ]
    lines = ["| asked | right | of |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {percent(share)} | {of} |" for name, share, of in rows)]) + "\n"


def card_tables() -> dict[str, str]:
    """The measured table of each model card, by the folder of its weights."""
    scenes, clips = stored("quality"), stored("clips")
    dense = next(row for row in clips["rows"] if row["label"] == "dense")
    own = next(row for row in scenes["rows"] if (row["guidance"], row["temperature"]) == (3.0, 0.6))
    found = {"scenes": attributes(own["accuracy"]), "scenes-video": attributes(dense["accuracy"])}
    return found | {"wardrobe": of_photographs(stored("wardrobe"))}


def with_table(card: str, table: str) -> str:
    """A model card with another measured table."""
    first, last = CARD_MARKS
    before, _, rest = card.partition(first)
    return f"{before}{first}{table}{last}{rest.partition(last)[2]}"


def main() -> None:
    for name, table in card_tables().items():
        card = WEIGHTS / name / "README.md"
        write_text(card, with_table(card.read_text(encoding="utf-8"), table))
    SNIPPETS.mkdir(parents=True, exist_ok=True)
    for name, models in BESIDE.items():
        write_text(SNIPPETS / f"{name}.md", beside.markdown({shown: stored(own) for shown, own in models.items()}))
    for path in sorted(RESULTS.glob("*.json")):
        result = stored(path.stem)
        kind = path.stem.partition("-")[0]
        if kind == "study":
            write_tables(result, SNIPPETS, IMAGES)
        elif kind in WRITERS:
            write_text(SNIPPETS / f"{path.stem}.md", WRITERS[kind](result))
        print(f"{path.stem}: {'written' if kind in (*WRITERS, 'study') else 'no table; its page quotes it'}")


if __name__ == "__main__":
    main()
