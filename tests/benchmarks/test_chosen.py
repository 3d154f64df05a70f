"""Entrants of a leaderboard in files: what is counted or measured is what takes part, in every shard."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.leaderboard import __main__ as board
from benchmarks.leaderboard import chosen, tables
from benchmarks.leaderboard.chosen import Choice, from_rows, read_chosen, to_rows
from benchmarks.leaderboard.clock import Clock
from benchmarks.leaderboard.entrants import Entrant, distinct, entrants, labelled
from benchmarks.leaderboard.entrants import rows as entrant_rows
from stepvar.errors import UsageError
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.prompts import Prompt
from stepvar.evaluation.scenes.grammar import held_out_scenes
from stepvar.methods import Dense, make_method
from stepvar.pipeline import Pipeline
from tests.benchmarks.test_leaderboard import SCHEDULE, speedup_of
from tests.cli.conftest import shared_model
from tests.helpers import make_settings

__all__ = ["shared_model"]

SETTINGS = make_settings(SCHEDULE, 3.0)


def test_rows_give_the_entrants_again() -> None:
    found = entrants(speedup_of, SETTINGS, budgets=(1.3, 2.0))
    again = from_rows(json.loads(json.dumps(to_rows(found))), SETTINGS)
    assert again == found and {own.resampled for own in again} == {0, 1, 2}
    assert {own.setting is None for own in again} == {True, False}


def test_shards_are_the_whole() -> None:
    whole = entrants(speedup_of, SETTINGS, budgets=(1.6,))
    parts = [own for number in range(3) for own in entrants(speedup_of, SETTINGS, (1.6,), shard=(number, 3))]
    assert distinct(parts) == whole and len(parts) > len(whole)


def test_what_generates_the_same_takes_part_once() -> None:
    one, floor = Entrant("one", make_method("stepvar")), Entrant("floor-1", Dense(), resampled=1)
    assert distinct([one, replace(one, label="two"), floor, replace(floor, label="floor-2", resampled=2)]) == [
        one,
        floor,
        replace(floor, label="floor-2", resampled=2),
    ]


def test_a_method_that_has_changed_is_refused() -> None:
    (row,) = to_rows([Entrant("stepvar", labelled()["stepvar"])])
    with pytest.raises(UsageError, match=r"entrant stepvar: is StepVAR\(.*choose them again"):
        from_rows([row | {"settings": "StepVAR(other=1)"}], SETTINGS)


def test_files_that_do_not_belong_together_are_refused(shared_model: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(shared_model, engine="eager")
    rows = to_rows([Entrant("stepvar", labelled()["stepvar"])])
    whole = {"equal": "time", "budgets": [1.3], **chosen.about_model(pipe), "batch": 2, "entrants": rows}
    whole |= {"info": {"machine": "a GPU"}, "left": 0}

    def written(name: str, **more: Any) -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(whole | more))
        return path

    one = written("one")
    assert read_chosen([one, one], pipe) == Choice("time", [1.3], from_rows(rows, pipe.settings()), 2, ("a GPU",))
    with pytest.raises(UsageError, match=r"other.json: batch 4 is not 2, that of .*one.json; join one choice"):
        read_chosen([one, written("other", batch=4)], pipe)
    with pytest.raises(UsageError, match=r"one.json: was made for var, .*; the model is"):
        read_chosen([written("one", model="var")], pipe)
    with pytest.raises(UsageError, match=r"one.json: 3 methods are left; run the command that made it again"):
        read_chosen([written("one", left=3)], pipe)
    beyond = [rows[0] | {"setting": [99, 0.5]}]
    broken: dict[str, Any]
    for broken in ({"entrants": [{}]}, {"entrants": beyond}, {"entrants": 3}):
        with pytest.raises(UsageError, match=r"broken.json: is no choice of entrants; make one with"):
            read_chosen([written("one"), written("broken", **broken)], pipe)


def test_a_composition_that_prunes_nothing_is_the_rest_alone() -> None:
    labels = {own.label for own in entrants(speedup_of, SETTINGS, budgets=(1.3, 1.6, 2.0))}
    found = [own for own in entrants(speedup_of, SETTINGS) if own.setting and own.setting[1] == 1.0]
    assert not [own for own in found if "+" in own.label.partition("@")[0]]
    kept = {own.label for own in entrants(speedup_of, SETTINGS, without=("stepvar", "random"))}
    assert kept == {label for label in labels if not label.startswith(("stepvar", "random"))}


def test_a_clock_measures_a_method_once(shared_model: Path) -> None:
    clock = Clock(Pipeline.from_pretrained(shared_model, engine="eager"), ["a red circle"])
    method = make_method("stepvar", keep=0.5, last=1)
    found = clock.times(method)
    assert 0 < found["min"] <= found["median"] == clock(method) <= found["max"]
    assert clock.times(make_method("stepvar", keep=0.5, last=1)) is found
    with pytest.raises(UsageError, match="decides by the image"):
        clock(make_method("sparsevar:threshold"))


def choose(model: Path, out: Path, *more: str) -> dict[str, Any]:
    chosen.main(["--model", str(model), "--out", str(out), "--methods", "high-pass", "random", *more])
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_a_leaderboard_takes_what_was_chosen(shared_model: Path, tmp_path: Path) -> None:
    counted = choose(shared_model, tmp_path / "counted.json", "--budgets", "1.3")
    prompts = tmp_path / "mine.txt"
    prompts.write_text("a red circle\na blue circle\n")
    timed = choose(shared_model, tmp_path / "timed.json", "--of", str(tmp_path / "counted.json"), "--batch", "2")
    assert timed["equal"] == counted["equal"] == "operations" and timed["budgets"] == [1.3]
    assert all(0 < row["cache_share"] <= 1 <= row["operations"] for row in timed["entrants"])
    options = ["--model", str(shared_model), "--prompts", str(prompts), "--results", str(tmp_path), "--name", "tiny"]
    board.main([*options, "--out", str(tmp_path / "board"), "--batch", "2", "--entrants", str(tmp_path / "timed.json")])
    result = json.loads((tmp_path / "leaderboard-tiny.json").read_text())
    assert result["settings"]["equal"] == "operations" and result["timed"] == "chosen"
    measured = {row["label"]: row["measured"]["median"] for row in timed["entrants"]}
    assert {"high-pass@1.3", "random@1.3"} <= set(measured)
    for entry in result["entries"]:
        assert entry["measured"]["median"] == pytest.approx(measured[entry["label"]], rel=1e-4)
        assert 0 < entry["cache"] <= result["settings"]["cache"]
    text = tables.markdown(result)
    assert "### 1.3 times fewer operations" in text and "dense and the method in turn" in text and "| time |" in text
    result["settings"]["equal"] = "time"
    assert "### 1.3 times as fast" in tables.markdown(result)


def test_equal_times_are_searched_by_the_clock(
    shared_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def times(self: Clock, method: Any) -> dict[str, float]:
        left = getattr(method, "keep", 1.0)
        return {"median": 2 - left, "min": 1.0, "max": 2.0}  # a machine of its own

    monkeypatch.setattr(Clock, "times", times)
    found = choose(shared_model, tmp_path / "timed.json", "--equal", "time", "--budgets", "1.5")
    rows = {row["label"]: row for row in found["entrants"]}
    assert found["equal"] == "time" and {"high-pass@1.5", "random@1.5"} <= set(rows)
    for label in ("high-pass@1.5", "random@1.5"):
        assert rows[label]["speedup"] == pytest.approx(1.5, rel=0.012)
        assert "keep=0.5" in rows[label]["settings"] or "keep=0.49" in rows[label]["settings"]


def test_a_choice_that_was_stopped_goes_on(shared_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, searched = tmp_path / "counted.json", list[str]()

    def rows(label: str, *given: Any, **more: Any) -> Any:
        searched.append(label)
        if len(searched) == 2:
            raise KeyboardInterrupt
        return entrant_rows(label, *given, **more)

    monkeypatch.setattr(chosen, "rows", rows)
    with pytest.raises(KeyboardInterrupt):
        choose(shared_model, out, "--budgets", "1.3")
    begun = json.loads(out.read_text())
    assert [row["label"] for row in begun["entrants"]] == [f"{searched[0]}@1.3"]
    pipe = Pipeline.from_pretrained(shared_model, engine="eager")
    with pytest.raises(UsageError, match=f"counted.json: {begun['left']} methods are left"):
        read_chosen([out], pipe)
    found = choose(shared_model, out, "--budgets", "1.3")
    first, second, *others = searched
    assert others[0] == second and first not in others  # the one that was stopped is searched again
    assert {f"{first}@1.3", f"{second}@1.3"} <= {row["label"] for row in found["entrants"]}
    assert len(others) == begun["left"] and found["left"] == 0
    assert choose(shared_model, out, "--budgets", "1.3") == found and len(searched) == 2 + begun["left"]


def test_a_choice_is_not_continued_with_something_else(shared_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "counted.json"
    choose(shared_model, out, "--budgets", "1.3")
    for option, value, name in (
        ("--budgets", "1.6", "budgets"),
        ("--dtype", "bfloat16", "dtype"),
        ("--without", "stepvar", "without"),
        ("--shard", "0/2", "shard"),
        ("--equal", "time", "equal"),
        ("--of", str(out), "of"),
    ):
        more = [option, value] if option == "--budgets" else ["--budgets", "1.3", option, value]
        with pytest.raises(UsageError, match=rf"counted.json: .*({name}|continued).*give another --out"):
            choose(shared_model, out, *more)
    content = json.loads(out.read_text())
    out.write_text(json.dumps(content | {"model": "another"}))
    with pytest.raises(UsageError, match=r"counted.json: model another is not .*; give another --out"):
        choose(shared_model, out, "--budgets", "1.3")
    for broken in ("{}", json.dumps(content | {"searched": 3})):
        out.write_text(broken)
        with pytest.raises(UsageError, match="is no choice of entrants that can be continued"):
            choose(shared_model, out, "--budgets", "1.3")


def test_times_of_two_machines_do_not_stand_in_one_file(
    shared_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clock, "times", lambda self, method: {"median": 1.5, "min": 1.5, "max": 1.5})
    out = tmp_path / "timed.json"
    choose(shared_model, out, "--equal", "time", "--budgets", "1.5", "--batch", "1")
    monkeypatch.setattr(chosen, "provenance", lambda *given: provenance(*given) | {"machine": "another"})
    with pytest.raises(UsageError, match=r"timed.json: timed .*another.*; give another --out"):
        choose(shared_model, out, "--equal", "time", "--budgets", "1.5", "--batch", "1")


def test_a_shard_without_a_method_has_a_file(shared_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "counted.json"
    assert choose(shared_model, out, "--budgets", "1.3", "--shard", "8/9")["entrants"] == []
    with pytest.raises(UsageError, match="methods nosuch: no method's label begins so"):
        chosen.main(["--model", str(shared_model), "--out", str(out), "--methods", "nosuch"])


@pytest.mark.parametrize(("equal", "batch"), [("operations", None), ("time", 32)])
def test_the_settings_that_are_kept_are_those_of_the_methods(equal: str, batch: int | None) -> None:
    """Where a method changes, its settings are to be searched again."""
    kept = Path(chosen.__file__).parent / "settings" / f"wardrobe-{equal}.json"
    found = read_chosen([kept], Pipeline.from_pretrained("wardrobe"))
    assert (found.equal, found.batch) == (equal, batch) and len(found.entrants) > 50
    for entrant in found.entrants:
        if batch is not None and not entrant.resampled and entrant.budget is not None:
            assert entrant.more["measured"]["median"] == pytest.approx(entrant.budget, rel=0.03), entrant.label


def test_a_baseline_stands_there_however_slow() -> None:
    method = labelled()["drop-guidance last=1"]
    (found,) = entrant_rows("drop-guidance last=1", method, lambda method: 0.9, SETTINGS, (1.3,))
    assert found.speedup == 0.9 and found.budget is None
    assert not list(entrant_rows("random", make_method("random"), lambda method: 0.9, SETTINGS, (1.3,)))


def test_scenes_are_told_apart_by_their_ground() -> None:
    scenes = held_out_scenes(40, seed=1)
    kinds = {scene.background: board.by_ground(Prompt("a", "b", scene=scene)).category for scene in scenes}
    assert kinds["sky"] == kinds["night"] == "smooth" and kinds["brick"] == kinds["sand"] == "textured"
    assert board.by_ground(Prompt("a", "b", "other")).category == "other"
