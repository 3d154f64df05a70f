"""A folder of held-out photographs with their captions: ``python -m training.wardrobe.held_out --photographs FOLDER
--out held-out``, for ``stepvar eval --likelihood --images held-out --captions held-out/metadata.csv``.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

from stepvar.errors import StepvarError, UsageError
from stepvar.utils.files import write_text
from training.wardrobe.captioned import Captioned
from training.wardrobe.captions import caption
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
    source = Captioned.held_out_of(arguments.photographs)
    arguments.out.mkdir(parents=True)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["file_name", "text"])
    places = spread_out(source.photographs.where(True), arguments.count).tolist()
    for place in places:
        name = source.photographs.facts[place].name
        shutil.copyfile(arguments.photographs / name, arguments.out / name)
        rows.writerow([name, caption(source.description(place))])
    write_text(arguments.out / "metadata.csv", table.getvalue())
    print(f"{arguments.out}: {len(places)} photographs with captions")


if __name__ == "__main__":
    try:
        main()
    except StepvarError as error:
        raise SystemExit(str(error)) from None
