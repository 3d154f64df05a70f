"""A folder of held-out photographs with their captions: ``python -m training.wardrobe.held_out --photographs FOLDER
--out held-out``, for ``stepvar eval --likelihood --images held-out --captions held-out/metadata.csv``.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from stepvar.errors import UsageError
from stepvar.utils.files import write_text
from training.wardrobe.captioned import Captioned
from training.wardrobe.captions import caption
from training.wardrobe.photographs import read_photographs
from training.wardrobe.presets import PRESETS
from training.wardrobe.tokenizer import spread_out

COUNT = 48


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.wardrobe.held_out", description=__doc__)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of the photographs and their CSV file")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--count", type=int, default=COUNT, help="photographs, evenly spread over those held out")
    arguments = parser.parse_args(given)
    if arguments.out.exists():
        raise UsageError(f"out {arguments.out}: is there already; give a new folder")
    photographs = read_photographs([arguments.photographs], torch.device("cpu"), held_out=True)
    source = Captioned(photographs, replace(PRESETS["wardrobe"], hues=(0.0,)))  # as they are, no hue turned
    arguments.out.mkdir(parents=True)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["file_name", "text"])
    places = spread_out(photographs.where(True), arguments.count).tolist()
    for place in places:
        name = photographs.facts[place].name
        shutil.copyfile(arguments.photographs / name, arguments.out / name)
        rows.writerow([name, caption(source.description(place))])
    write_text(arguments.out / "metadata.csv", table.getvalue())
    print(f"{arguments.out}: {len(places)} photographs with captions")


if __name__ == "__main__":
    main()
