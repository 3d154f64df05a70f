"""Prompts for comparing methods: ``python -m training.wardrobe.prompts --photographs FOLDER --out FILE``.

The captions of held-out photographs, each once, as JSON lines that ``stepvar eval --prompts`` and
``python -m benchmarks.leaderboard --prompts`` read. Their category says whether the caption asks for texture.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from stepvar.utils.files import write_text
from training.wardrobe.captioned import Captioned
from training.wardrobe.captions import Description, caption
from training.wardrobe.evaluate import chosen

COUNT, SEED = 512, 0


def category(item: Description) -> str:
    """``textured`` where the caption says a wooden floor, a patterned ground, stripes or a print; else ``smooth``."""
    ground = bool(item.ground) and item.kind in ("wooden", "patterned")
    return "textured" if ground or item.pattern in ("striped", "printed") else "smooth"


def prompts(items: Iterable[Description]) -> list[dict[str, str]]:
    """The lines of the file: each distinct caption once, where it comes first."""
    found = {caption(item): category(item) for item in items}
    return [{"prompt": text, "category": kind} for text, kind in found.items()]


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.wardrobe.prompts", description=__doc__)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of the photographs and their CSV file")
    parser.add_argument("--out", type=Path, required=True, help="the file, .jsonl")
    parser.add_argument("--count", type=int, default=COUNT, help="prompts at most")
    arguments = parser.parse_args(given)
    source = Captioned.held_out_of(arguments.photographs)
    lines = prompts(item for _, item in chosen(source, len(source.photographs), SEED))[: arguments.count]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, "".join(json.dumps(line) + "\n" for line in lines))
    textured = sum(line["category"] == "textured" for line in lines)
    print(f"{arguments.out}: {len(lines)} prompts, {textured} of them textured")


if __name__ == "__main__":
    main()
