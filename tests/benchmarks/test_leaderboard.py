"""The leaderboard: who takes part, what its tables say, and runs of a tiny model, whole and in shards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.auto import update_auto
from benchmarks.leaderboard import __main__ as board
from benchmarks.leaderboard import costs, figures, tables
from benchmarks.leaderboard.entrants import NEAR, Entrant, at_budget, entrants
from benchmarks.tables import SNIPPETS
from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.methods import METHODS, Dense, Method, SkipLast, StepVAR
from stepvar.pipeline import Pipeline
from tests.cli.conftest import shared_model
from tests.helpers import make_settings
from tests.methods.helpers import plan_of, work

__all__ = ["shared_model"]

SCHEDULE = ScaleSchedule.of([(side, side) for side in (1, 2, 3, 4, 6, 8, 12, 16)])


def speedup_of(method: Method) -> float:
    """By tokens and pairs of them, in place of counted operations."""
    return work(plan_of(Dense(), SCHEDULE)) / work(plan_of(method, SCHEDULE))


@pytest.fixture(scope="module")
def taking_part() -> list[Entrant]:
    return entrants(speedup_of, make_settings(SCHEDULE, 3.0), budgets=(1.6,))


def test_every_method_takes_part(taking_part: list[Entrant]) -> None:
    names = {part.partition(":")[0] for entrant in taking_part for part in str(entrant.method).split("+")}
    assert set(METHODS) <= names | {"dense"}
    assert len({entrant.label for entrant in taking_part}) == len(taking_part)


def test_those_with_a_budget_meet_it(taking_part: list[Entrant]) -> None:
    tuned = [entrant for entrant in taking_part if entrant.budget is not None]
    assert {"stepvar@1.6", "stepvar-plus@1.6"} <= {entrant.label for entrant in tuned}
    assert all(abs(speedup_of(entrant.method) / 1.6 - 1) <= NEAR for entrant in tuned)


def test_what_cannot_reach_a_budget_is_left_out() -> None:
    settings = make_settings(SCHEDULE, 3.0)
    assert at_budget("far", StepVAR(), 1000.0, speedup_of, settings) is None
    assert at_budget("between two steps", SkipLast(), 1.3, speedup_of, settings) is None


def test_what_does_not_serve_the_model_is_left_out() -> None:
    def refusing(method: Method) -> float:
        if "drop-guidance" in str(method):
            raise UsageError("no guidance")
        return speedup_of(method)

    labels = {entrant.label for entrant in entrants(refusing, make_settings(SCHEDULE, 3.0), budgets=(1.6,))}
    assert "skip-last count=1" in labels and not any("drop-guidance" in label for label in labels)


def test_the_first_leads_by_pairs() -> None:
    def entry(label: str, psnr: float, budget: float | None, speedup: float) -> dict:
        mean = {"mean": psnr, "low": psnr - 1, "high": psnr + 1, "count": 3}
        own = {"label": label, "budget": budget, "speedup": speedup, "psnr": mean, "ssim": mean}
        return own | {"accuracy": {}, "cache": 50}

    entries = [entry("b@1.6", 30.0, 1.6, 1.6), entry("a@1.6", 33.0, 1.6, 1.6), entry("skip", 31.0, None, 1.65)]
    entries.append(entry("far", 20.0, None, 4.0))
    rows: dict[str, Any] = {
        "a@1.6": {("x", 0): {"psnr": 34.0}, ("y", 0): {"psnr": 32.0}},
        "b@1.6": {("x", 0): {"psnr": 31.0}, ("y", 0): {"psnr": 29.0}},
        "skip": {("x", 0): {"psnr": 36.0}, ("y", 0): {"psnr": 26.0}},
    }
    leader = figures.leader_of(entries, rows, 1.6)
    assert leader["label"] == "a@1.6" and leader["leads"]["b@1.6"]["mean"] == 3.0
    assert leader["leads"]["skip"]["low"] < 0 < leader["leads"]["skip"]["high"]
    result = {"settings": {"budgets": [1.6], "cache": 200, "dtype": "float32"}, "leaders": {"1.6": leader}}
    text = tables.markdown(result | {"entries": entries, "images": 3, "dense_accuracy": 0.914})
    table, rest = text.split("### At a cost of their own")
    assert table.index("`a`") < table.index("`skip`") < table.index("`b`") and "| first |" in table
    assert "**3.00 (3.00 to 3.00)**" in table and "`far`" in rest
    assert "| `b` | 1.60x | 25 % | 30.0 |" in table
    assert "3 images of each method, float32. Dense answers 91.4 % of the questions right." in rest


def test_costs_are_over_those_of_dense() -> None:
    rows = [
        {"model": "2b", "method": "dense", "flops": 10, "cache": 2**30, "peak": 0, "passes": 13},
        {"model": "2b", "method": "fastvar:hart", "flops": 5, "cache": 2**29, "peak": 0, "passes": 11},
        {"model": "2b", "method": "lazyvar", "refused": "videos"},
    ]
    text = costs.markdown({"rows": rows})
    assert "| `fastvar` | 2.00x, 0.50, 11 |" in text and "| `lazyvar` | refused |" in text


def counted(label: str, psnr: float, **more: Any) -> dict[str, Any]:
    """An entry at the budget of 1.6, as figures have it."""
    mean = {"mean": psnr, "low": psnr - 1, "high": psnr + 1, "count": 8}
    return {"label": label, "budget": 1.6, "speedup": 1.6, "cache": 50, "psnr": mean, "accuracy": {}, **more}


def result_of(entries: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    settings = {"budgets": [1.6], "cache": 200, "dtype": "float32", "batch": 8, "engine": "eager"}
    found = {"settings": settings, "leaders": {}, "entries": entries, "images": 8, "dense_accuracy": None}
    return found | more


def spread(median: float) -> dict[str, float]:
    return {"median": median, "min": median - 0.1, "max": median + 0.1}


def test_how_far_a_method_is_above_random_is_said_pair_by_pair() -> None:
    entries = [counted("a@1.6", 33.0), counted("b@1.6", 29.0), counted("random@1.6", 30.0)]
    rows: dict[str, Any] = {
        "a@1.6": {("x", 0): {"psnr": 34.0}, ("y", 0): {"psnr": 32.0}},
        "b@1.6": {("x", 0): {"psnr": 26.0}, ("y", 0): {"psnr": 33.0}, ("z", 0): {"psnr": 99.0}},
        "random@1.6": {("x", 0): {"psnr": 31.0}, ("y", 0): {"psnr": 29.0}},
    }
    over = figures.over_random(entries, rows, 1.6)
    assert set(over) == {"a@1.6", "b@1.6"}
    assert over["a@1.6"] == {"mean": 3.0, "low": 3.0, "high": 3.0, "count": 2} and over["b@1.6"]["mean"] == -0.5
    assert figures.over_random(entries[:2], rows, 1.6) == {}
    text = tables.markdown(result_of(entries, over_random={"1.6": over}))
    assert "| better than random by |" in text and "| **+3.00 (+3.00 to +3.00)** |" in text
    assert "| -0.50 (-5.00 to +4.00) |" in text and "accuracy" not in text
    assert "better than random" not in tables.markdown(result_of(entries[:2]))


def test_columns_are_of_what_was_measured() -> None:
    mean = {"mean": 1.234, "low": 1.0, "high": 2.0, "count": 8}
    asked = {"mean": 0.5, "against_dense": {"mean": -0.25, "low": -0.3, "high": -0.2}}
    plain, more = (tables.markdown(result_of([counted("a@1.6", 33.0, **own)])) for own in ({}, {"spectrum": mean}))
    for title in ("patch spectrum, dB", "GMSD", "HaarPSI", "time", "accuracy"):
        assert f"| {title} |" not in plain
    assert "At a cost of their own" not in plain
    assert "| patch spectrum, dB |" in more and "| 1.23 |" in more and "GMSD" not in more
    assert "| 50.0 % (-25.0) |" in tables.markdown(result_of([counted("a@1.6", 33.0, accuracy=asked)]))


def test_a_measure_that_some_images_lack_is_left_out() -> None:
    rows: Any = {("x", 0): {"psnr": 30.0, "spectrum": 1.0}, ("y", 0): {"psnr": 32.0}}
    entry = figures._entry({"label": "a"}, rows, {}, [])
    assert entry["psnr"]["mean"] == 31.0 and "spectrum" not in entry and entry["accuracy"] == {}


@pytest.mark.parametrize(("again", "given"), [(1.0, True), (1.09, True), (0.85, False), (1.2, False)])
def test_times_are_given_where_dense_took_as_long_again(again: float, given: bool) -> None:
    entries = [counted("a@1.6", 33.0, measured=spread(1.5))]
    text = tables.markdown(result_of(entries, dense_again=spread(again)))
    assert ("| 1.50x (1.40 to 1.60) |" in text) == given == ("engine `eager`" in text)
    assert f"Dense took {again:.2f}" in text and ("too coarse a clock" in text) != given


@pytest.mark.parametrize(("least", "most", "given"), [(0.8, 1.5, True), (0.11, 1.64, False)])
def test_times_are_not_given_where_dense_swung_widely(least: float, most: float, given: bool) -> None:
    """Several processes on one GPU: dense's two times are alike on average, and each is chance."""
    again = {"median": 1.0, "min": least, "max": most}
    text = tables.markdown(result_of([counted("a@1.6", 33.0, measured=spread(1.5))], dense_again=again))
    assert ("| 1.50x (1.40 to 1.60) |" in text) == given != ("too coarse a clock" in text)


def test_times_are_of_batches_that_ran_alike() -> None:
    """Dense was captured after its first batch: what ran eagerly is not compared with its replays."""

    def row(method: str, number: int, engine: str) -> dict[str, Any]:
        return {"method": method, "round": number, "engine": engine, "loop": 1.0, "samples": 1}

    timing = [row("dense", 0, "eager: first"), row("a", 0, "eager: first"), row("dense", 1, "graphs")]
    timing += [row("a", 1, "graphs"), row("b", 1, "eager: full")]
    assert [(kept["method"], kept["round"]) for kept in figures.alike(timing)] == [("dense", 1), ("a", 1)]
    assert figures.alike([]) == []


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"smooth": 8, "textured": 9}, ["smooth", "textured"]),
        ({"smooth": 8, "textured": 7}, []),
        ({"smooth": 8, "textured": 9, "rare": 2}, ["smooth", "textured"]),
        (dict.fromkeys("abcdef", 8), list("abcdef")),
        (dict.fromkeys("abcdefg", 8), []),
        ({"": 8, "smooth": 8}, []),
    ],
)
def test_two_to_six_categories_of_eight_images_are_told_apart(counts: dict[str, int], told: list[str]) -> None:
    rows: Any = {(f"{name}{n}", 0): {"category": name} for name, count in counts.items() for n in range(count)}
    assert list(figures.categories_of(rows)) == told


def test_figures_by_category() -> None:
    levels = {"smooth": 30.0, "textured": 20.0}
    rows: Any = {
        (f"{name}{n}", 0): {"category": name, "psnr": level + n % 2, "spectrum": 1.0}
        for name, level in levels.items()
        for n in range(8)
    }
    entry = figures._entry({"label": "a@1.6"}, rows, {}, list(levels))["by_category"]
    assert entry["smooth"]["psnr"]["mean"] == 30.5 and entry["textured"]["psnr"]["count"] == 8
    assert entry["textured"]["spectrum"]["mean"] == 1.0 and 20 <= entry["textured"]["psnr"]["low"] < 20.5
    entries = [counted("a@1.6", 25.5, by_category=entry), counted("b@1.6", 20.0)]
    text = tables.markdown(result_of(entries, categories={"smooth": 8, "textured": 8}))
    table = text.split("By kind of image, PSNR in dB:")[1].split("###")[0]
    assert "| method | smooth, 8 images | textured, 8 images |" in table and "| `b` |  |  |" in table
    assert re.search(r"\| `a` \| 30\.5 \(30\.\d to 30\.\d\) \| 20\.5 \(", table)


def test_a_folder_of_results_that_is_not_there_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *given, **more: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=r"results .*nowhere: no such folder; create it first"):
        board.main(["--out", str(tmp_path / "run"), "--results", str(tmp_path / "nowhere")])


def test_a_number_of_prompts_needs_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*given: Any, **more: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(Pipeline, "from_pretrained", loaded)
    with pytest.raises(
        UsageError, match=r"prompts 4: .* has no prompts of its own.*give a file with --prompts"
    ) as error:
        board.main(["--model", str(tmp_path), "--prompts", "4", "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    assert len(board.prompts_of("3", "scenes")) == 3
    with pytest.raises(SystemExit):
        board.main([])


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 prompts, every other one smooth."""
    path = tmp_path_factory.mktemp("prompts") / "mine.jsonl"
    kinds = ("smooth", "textured")
    lines = [{"prompt": f"a {word} circle", "category": kinds[n % 2]} for n, word in enumerate(["red", "blue"] * 8)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def go(model: Path, prompts: Path, out: Path, *more: str) -> None:
    options = ["--model", str(model), "--prompts", str(prompts), "--out", str(out), "--results", str(out.parent)]
    board.main(
        [*options, "--batch", "4", "--methods", "high-pass", "random", "--budgets", "1.3", "--name", "tiny", *more]
    )


@pytest.fixture(scope="module")
def whole(shared_model: Path, prompt_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "board"
    go(shared_model, prompt_file, out)
    return out


def test_any_model_and_any_prompts(whole: Path) -> None:
    result = json.loads((whole.parent / "leaderboard-tiny.json").read_text(), parse_constant=pytest.fail)
    assert result["images"] == 16 and result["categories"] == {"smooth": 8, "textured": 8}
    assert result["dense_accuracy"] is None and result["dense_again"]["median"] > 0
    assert result["settings"]["model"] == "tiny" and result["settings"]["prompts"]["source"] == "mine.jsonl"
    assert str(whole.parent) not in json.dumps(result["settings"])
    entries = {entry["label"]: entry for entry in result["entries"]}
    assert {"high-pass@1.3", "random@1.3"} <= set(entries) and "dense again" not in entries
    for entry in entries.values():
        assert entry["measured"]["min"] <= entry["measured"]["median"] <= entry["measured"]["max"]
        assert {"psnr", "gmsd", "haarpsi", "spectrum"} <= set(entry) and set(entry["by_category"]["smooth"]) == {
            "psnr",
            "spectrum",
        }
    difference = entries["high-pass@1.3"]["psnr"]["mean"] - entries["random@1.3"]["psnr"]["mean"]
    over = result["over_random"]["1.3"]
    assert "random@1.3" not in over and over["high-pass@1.3"]["mean"] == pytest.approx(difference, abs=2e-3)
    result["dense_again"] = spread(1.0)
    text = tables.markdown(result)
    assert "| method | FLOPs | time | cache | PSNR, dB | behind the first | better than random by | SSIM |" in text
    assert "| patch spectrum, dB |\n" in text and "textured, 8 images" in text and "questions" not in text


def test_shards_join_to_the_whole(whole: Path, shared_model: Path, prompt_file: Path, tmp_path: Path) -> None:
    for shard in ("0/2", "1/2"):
        go(shared_model, prompt_file, tmp_path / "board", "--shard", shard)
    assert not (tmp_path / "leaderboard-tiny.json").exists()
    shards = [tmp_path / "board" / f"{number}-of-2" for number in range(2)]
    given = [[*map(str, shards), "--name", "listed"], ["--out", str(tmp_path / "board"), "--name", "found"]]
    for more in given:
        board.main(["--results", str(tmp_path), "--figures", *more])
    listed, found = (json.loads((tmp_path / f"leaderboard-{name}.json").read_text()) for name in ("listed", "found"))
    wanted = json.loads((whole.parent / "leaderboard-tiny.json").read_text())
    for name in ("settings", "images", "categories", "leaders", "over_random"):
        assert listed[name] == found[name] == wanted[name]
    for own, other in zip(listed["entries"], wanted["entries"], strict=True):
        assert {**own, "measured": 0} == {**other, "measured": 0}
    with pytest.raises(UsageError, match="holds no evaluation"):
        board.main(["--figures", str(tmp_path), "--results", str(tmp_path)])


def test_other_prompts_are_refused(whole: Path, shared_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine.jsonl"
    other.write_text('{"prompt": "a red circle"}\n' * 16)
    with pytest.raises(UsageError, match="holds a run with other settings"):
        go(shared_model, other, whole)
    with pytest.raises(UsageError, match=r"methods nobody: no method's label begins so"):
        board.main(["--model", str(shared_model), "--prompts", str(other), "--out", "x", "--methods", "nobody"])


@pytest.mark.parametrize(
    ("given", "said"),
    [(["--judge", "x"], "one needs the other"), (["--judge", "x", "--photographs", "."], "judge 'x': no such file")],
)
def test_what_is_refused_begins_no_folder(
    shared_model: Path, prompt_file: Path, tmp_path: Path, given: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        go(shared_model, prompt_file, tmp_path / "board", *given)
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize("name", ["scenes", "scenes-video", "scenes-time", "wardrobe", "wardrobe-time"])
def test_stored_figures_keep_their_tables(name: str) -> None:
    result = json.loads((figures.RESULTS / f"leaderboard-{name}.json").read_text())
    stored = (SNIPPETS / f"leaderboard-{name}.md").read_text()
    assert stored.startswith(tables.markdown(result)) and ("| accuracy |" in stored) == name.startswith("scenes")


def test_auto_may_choose_what_stands_at_a_budget_but_no_baseline(tmp_path: Path) -> None:
    def entry(
        label: str, psnr: float, budget: float | None = 1.6, speedup: float = 1.6, high: float | None = None
    ) -> dict[str, Any]:
        accuracy = {} if high is None else {"against_dense": {"high": high}}
        return {"label": label, "budget": budget, "speedup": speedup, "psnr": {"mean": psnr}, "accuracy": accuracy}

    entries = [
        entry("stepvar@1.6", 30.0, high=0.01),
        entry("high-pass@1.6", 34.0, high=-0.01),  # certainly less accurate than dense
        entry("sparvar+stepvar@1.6", 34.0),
        entry("random@1.6", 33.0),
        entry("stepvar+drop-guidance last=2@1.6", 31.0),
        entry("drop-guidance last=2", 32.0, None, 1.56),
        entry("drop-guidance last=3", 29.0, None, 1.8),
        entry("fastvar:hart@2", 28.0, 2.0),
    ]
    found = figures.ranking({"settings": {"budgets": [1.6, 2.0]}, "entries": entries})
    assert found["1.6"] == [
        {"method": "drop-guidance", "settings": {}, "psnr": 32.0},
        {"method": "stepvar+drop-guidance", "settings": {"drop-guidance.last": 2}, "psnr": 31.0},
        {"method": "stepvar", "settings": {}, "psnr": 30.0},
    ]
    assert [row["method"] for row in found["2"]] == ["fastvar:hart"]
    worse = [entry("stepvar@1.6", 30.0, high=-0.01), entry("high-pass@1.6", 34.0, high=-0.02)]
    all_are = figures.ranking({"settings": {"budgets": [1.6]}, "entries": worse})
    assert [row["method"] for row in all_are["1.6"]] == ["high-pass", "stepvar"]
    path = tmp_path / "auto.json"
    update_auto("one", found, {"machine": "a"}, path)
    update_auto("two", {"2": []}, {"machine": "b"}, path)
    update_auto("one", {"1.3": []}, {"machine": "c"}, path)
    known = json.loads(path.read_text())
    assert known["models"] == {"one": {"1.3": []} | found, "two": {"2": []}}
    assert list(known["models"]["one"]) == ["1.3", "1.6", "2"]
    assert known["info"]["one"] == {"1.6": {"machine": "a"}, "2": {"machine": "a"}, "1.3": {"machine": "c"}}
