"""From the figures of a leaderboard to its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.leaderboard import judged
from benchmarks.leaderboard.figures import Entry, at_budget
from benchmarks.study.tables import STEADY

Column = tuple[str, Callable[[Entry], str]]

SECTION, SECTION_END = "<!-- --8<-- [start:judged] -->", "<!-- --8<-- [end:judged] -->"
"""Around the part that a page may include by itself."""

OPTIONAL = ("time", "better than random by", "GMSD", "HaarPSI", "patch spectrum, dB", "accuracy")
"""Columns that a table has only where there is something in them."""

WIDE = 2.0
"""How many times the least of one and the same ratio its greatest may be for times to be given."""


def markdown(result: Mapping[str, Any]) -> str:
    """A table per budget, the best first, and one by kind of image; then what costs less or more than all budgets."""
    parts, shown = [], set()
    for budget in result["settings"]["budgets"]:
        taking_part = [entry for entry in result["entries"] if at_budget(entry, budget) and "psnr" in entry]
        if not taking_part:
            continue
        taking_part.sort(key=lambda entry: -entry["psnr"]["mean"])
        shown |= {entry["label"] for entry in taking_part}
        cost = "as fast" if _equal(result) == "time" else "fewer operations"
        parts.append(f"### {budget:g} times {cost}\n\n{_table(taking_part, _columns(result, str(budget)))}")
        if result.get("categories"):
            parts.append(f"By kind of image, PSNR in dB:\n\n{_by_category(taking_part, result['categories'])}")
    rest = [entry for entry in result["entries"] if entry["label"] not in shown and "psnr" in entry]
    rest.sort(key=lambda entry: entry["speedup"])
    if rest:
        parts.append(f"### At a cost of their own\n\n{_table(rest, _columns(result, ''))}")
    if result.get("judged"):
        labels = [entry["label"] for entry in sorted(result["entries"], key=_by_cost)]
        section = f"{SECTION}\n{judged.markdown(result['judged'], labels)}\n{SECTION_END}"
        parts.append(f"### What the images show\n\n{section}")
    known = f"{result['images']} images of each method, {result['settings']['dtype']}."
    if result["dense_accuracy"] is not None:
        known += f" Dense answers {100 * result['dense_accuracy']:.1f} % of the questions right."
    return "\n\n".join([*parts, known + _clock(result)]) + "\n"


def _by_cost(entry: Entry) -> tuple[float, float]:
    """Noise floors, then budget by budget, the nearest to dense first; what has no budget of its own by its cost."""
    return entry["budget"] or entry["speedup"], -entry.get("psnr", {"mean": 0.0})["mean"]


def _equal(result: Mapping[str, Any]) -> str:
    return str(result["settings"].get("equal", "operations"))


def clock_is_good(result: Mapping[str, Any]) -> bool:
    """Whether dense took about as long each second time, or times were measured apart; else they are left out."""
    if result.get("timed") == "chosen":
        return True
    again = result.get("dense_again")
    if again is None:
        return False
    return bool(abs(again["median"] - 1) <= STEADY and again["max"] <= WIDE * again["min"])


def _clock(result: Mapping[str, Any]) -> str:
    again, settings = result.get("dense_again"), result["settings"]
    if result.get("timed") == "chosen":
        where = f"on {' and '.join(settings['timed_on'])}, " if settings.get("timed_on") else ""
        return (
            f" Times: how many times as fast as dense the loop over scales was, batches of {settings['timed_batch']}, "
            f"{where}CUDA graphs, dense and the method in turn; median (least to most)."
        )
    if not again:
        return ""
    known = f" Dense took {_spread(again, '')} times as long the second time"
    if not clock_is_good(result):
        return f"{known}: too coarse a clock, so no times are given."
    way = f"batches of {settings['batch']}, engine `{settings['engine']}`"
    return f"{known}. Times: how many times as fast as dense the loop over scales was, {way}; median (least to most)."


def _columns(result: Mapping[str, Any], budget: str) -> list[Column]:
    """Title and cell of every column there may be."""
    leads = result["leaders"].get(budget, {}).get("leads", {})
    over = result.get("over_random", {}).get(budget, {})
    dense_cache, timed = result["settings"]["cache"], clock_is_good(result)
    return [
        ("method", _name),
        ("FLOPs", lambda entry: f"{entry.get('operations', entry['speedup']):.2f}x"),
        ("time", lambda entry: _spread(entry["measured"], "x") if timed and "measured" in entry else ""),
        ("cache", lambda entry: f"{100 * entry['cache'] / dense_cache:.0f} %"),
        ("PSNR, dB", lambda entry: _mean(entry, "psnr", 1)),
        ("behind the first", lambda entry: _behind(leads.get(entry["label"]))),
        ("better than random by", lambda entry: _over(over.get(entry["label"]))),
        ("SSIM", lambda entry: _mean(entry, "ssim", 3)),
        ("detail left", lambda entry: _mean(entry, "high_frequency", 2)),
        ("GMSD", lambda entry: _mean(entry, "gmsd", 3)),
        ("HaarPSI", lambda entry: _mean(entry, "haarpsi", 3)),
        ("patch spectrum, dB", lambda entry: _mean(entry, "spectrum", 2)),
        ("accuracy", lambda entry: _accuracy(entry.get("accuracy"))),
    ]


def _table(entries: Sequence[Entry], columns: Sequence[Column]) -> str:
    filled = {title for title, cell in columns if any(cell(entry) for entry in entries)}
    own = [(title, cell) for title, cell in columns if title not in OPTIONAL or title in filled]
    lines = ["| " + " | ".join(title for title, _ in own) + " |", "|---" * len(own) + "|"]
    lines += ["| " + " | ".join(cell(entry) for _, cell in own) + " |" for entry in entries]
    return "\n".join(lines)


def _by_category(entries: Sequence[Entry], categories: Mapping[str, int]) -> str:
    """PSNR with its interval, one column per category."""

    def column(name: str, count: int) -> Column:
        return f"{name}, {count} images", lambda entry: _interval(entry.get("by_category", {}).get(name, {}))

    return _table(entries, [("method", _name), *(column(name, count) for name, count in categories.items())])


def _name(entry: Entry) -> str:
    return f"`{entry['label'].partition('@')[0]}`"


def _mean(entry: Entry, name: str, digits: int) -> str:
    return f"{entry[name]['mean']:.{digits}f}" if name in entry else ""


def _interval(measures: Mapping[str, Any]) -> str:
    if "psnr" not in measures:
        return ""
    mean, low, high = (f"{measures['psnr'][name]:.1f}" for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _spread(values: Mapping[str, float], unit: str) -> str:
    return f"{values['median']:.2f}{unit} ({values['min']:.2f} to {values['max']:.2f})"


def _behind(lead: Mapping[str, Any] | None) -> str:
    if lead is None:
        return ""
    if lead["mean"] == 0:
        return "first"
    text = f"{lead['mean']:.2f} ({lead['low']:.2f} to {lead['high']:.2f})"
    return f"**{text}**" if lead["low"] > 0 else text


def _over(lead: Mapping[str, Any] | None) -> str:
    """In bold where the interval is above 0; what is worse than random has a minus."""
    if lead is None:
        return ""
    text = f"{lead['mean']:+.2f} ({lead['low']:+.2f} to {lead['high']:+.2f})"
    return f"**{text}**" if lead["low"] > 0 else text


def _accuracy(accuracy: Mapping[str, Any] | None) -> str:
    if not accuracy:
        return ""
    against = accuracy["against_dense"]
    mark = "" if against["low"] <= 0 <= against["high"] else f" ({100 * against['mean']:+.1f})"
    return f"{100 * accuracy['mean']:.1f} %{mark}"
