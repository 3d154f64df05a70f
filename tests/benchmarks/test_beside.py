"""The short tables of photographs beside shapes: whose cell it is, and that the pages show what is stored."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.leaderboard import beside
from benchmarks.tables import BESIDE, SNIPPETS, stored
from stepvar.errors import UsageError


def entry(label: str, psnr: float, budget: float | None = None, speedup: float = 1.6) -> dict[str, Any]:
    own = {"label": label, "budget": budget, "speedup": speedup, "operations": 2 * speedup}
    return own | {"psnr": {"mean": psnr}}


def result(entries: list[dict[str, Any]], equal: str = "operations") -> dict[str, Any]:
    return {"settings": {"equal": equal, "budgets": [1.6, 2.0]}, "entries": entries}


def cells(text: str, title: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_a_row_holds_its_best_at_a_budget() -> None:
    both = "StepVAR and guidance dropped at the last scale or two"
    photographs = result(
        [
            entry("stepvar@1.6", 26.0, 1.6),
            entry("stepvar@2", 24.0, 2.0, 2.0),
            entry("drop-guidance last=1", 40.0, speedup=1.3),  # at no budget here
            entry("drop-guidance last=2", 35.0, speedup=1.57),  # costs as little by itself
            entry("stepvar+drop-guidance last=1@1.6", 33.0, 1.6),
            entry("stepvar+drop-guidance last=2@1.6", 34.0, 1.6),
            entry("stepvar:blend+drop-guidance last=2@1.6", 39.0, 1.6),  # of no row
        ]
    )
    shapes = result([entry("stepvar@1.6", 33.0, 1.6), entry("random@1.6", 28.04, 1.6)])
    text = beside.markdown({"photographs": photographs, "shapes": shapes})
    assert text.splitlines()[0] == "| method | photographs: 1.6 times fewer | 2 | shapes: 1.6 times fewer | 2 |"
    assert cells(text, "StepVAR") == ["26.0", "**24.0**", "**33.0**", ""]
    assert cells(text, "guidance dropped at the last scale, the last two") == ["**35.0**", "", "", ""]
    assert cells(text, both) == ["34.0", "", "", ""]
    assert cells(text, "random tokens") == ["", "", "28.0", ""]


def test_equal_time_says_what_it_takes() -> None:
    found = result(
        [
            entry("stepvar+drop-guidance last=1@1.6", 25.0, 1.6),
            entry("stepvar+drop-guidance last=2@1.6", 27.0, 1.6, 1.65),
        ],
        "time",
    )
    text = beside.markdown({"photographs": found})
    assert "| method | photographs: 1.6 times as fast | 2 |" in text
    assert cells(text, "StepVAR and guidance dropped at the last scale or two") == ["**27.0** (3.30)", ""]


def test_what_is_equal_in_different_things_is_not_put_side_by_side() -> None:
    with pytest.raises(UsageError, match="put side by side what is equal in the same"):
        beside.markdown({"a": result([]), "b": result([], "time")})


@pytest.mark.parametrize("name", BESIDE)
def test_pages_show_what_is_stored(name: str) -> None:
    text = beside.markdown({shown: stored(own) for shown, own in BESIDE[name].items()})
    assert (SNIPPETS / f"{name}.md").read_text(encoding="utf-8") == text
    for title in ("StepVAR", "random tokens", "SparseVAR's rule"):
        assert all(cells(text, title))
