"""The study of StepVAR+: shared passes give what a whole generation gives, and figures follow from measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.stepvar_plus.__main__ import Kept, changed_codes, describe, run
from benchmarks.stepvar_plus.candidates import Entry, plus_at, rivals_at
from benchmarks.stepvar_plus.shared import SharedImages
from benchmarks.stepvar_plus.summary import comparison, markdown, settings_markdown, summarise
from stepvar.evaluation.prompts import load_prompts
from stepvar.methods import Compose, Dense, DropGuidance, FastVAR, Method, SkipLast, StepVAR, StepVARPlus
from stepvar.pipeline import Pipeline
from tests.cli.conftest import write_model
from tests.methods.helpers import work

PROMPTS, SEEDS = ["a red circle", "a blue star on sand"], [3, 4]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.from_pretrained(write_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def shared(pipe: Pipeline) -> SharedImages:
    return SharedImages.of(pipe, PROMPTS, SEEDS)


METHODS = [
    Dense(),
    StepVARPlus(last=2, drop_guidance=2),
    Compose(StepVAR(keep=0.3, last=2, restore="cached"), DropGuidance(1)),
    FastVAR(prune=(0.5,), skip=1, blocks_before=1, blocks_after=1),
    SkipLast(2),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_shared_passes_give_what_a_whole_generation_gives(pipe: Pipeline, shared: SharedImages, method: Method) -> None:
    whole = pipe(PROMPTS, seed=SEEDS, method=method, output_type="pt", progress=False).images
    assert torch.equal(shared.generate(method), whole)
    if method == Dense():
        assert torch.equal(shared.images, whole)


def test_dense_generation_changes_no_code_and_pruning_more_changes_more(shared: SharedImages) -> None:
    assert shared.flips(Dense()).tolist() == [0.0, 0.0]
    little, much = (shared.flips(StepVARPlus(keep=keep, last=2)) for keep in (0.9, 0.2))
    assert (little > 0).all() and (much > little).all() and (much < 2).all()


def test_what_changes_a_shared_pass_is_refused(shared: SharedImages) -> None:
    with pytest.raises(ValueError, match="changes a pass before 4, which all methods share"):
        shared.generate(DropGuidance(4))


def test_candidates_cost_what_they_are_compared_at(pipe: Pipeline) -> None:
    """Here by the tokens that run through the blocks; the study counts operations."""

    def tokens(method: Method) -> float:
        return work(method.plan(pipe.settings(), pipe.model.info, 1))

    def speedup_of(method: Method) -> float:
        return tokens(Dense()) / tokens(method)

    for budget in (1.2, 1.4, 1.8):
        plus = plus_at(budget, speedup_of, pipe.settings())
        assert plus.speedup == pytest.approx(budget, rel=0.05) and plus.speedup == speedup_of(plus.method)
    rivals = {entry.label: entry for entry in rivals_at(1.6, speedup_of)}
    assert "drop-guidance, last 2 scales" in rivals and rivals["stepvar"].speedup == pytest.approx(1.6, rel=0.05)


def test_measuring_goes_on_where_it_was_stopped(pipe: Pipeline, tmp_path: Path) -> None:
    entries = [Entry("all", 1.0, Dense(), 1.0), Entry("half", 1.5, StepVARPlus(last=1), 1.5)]
    prompts, path = load_prompts("scenes:3").prompts, tmp_path / "choose.json"

    def measure(count: int, chosen: list[Entry]) -> dict[str, Any]:
        run(pipe, prompts[:count], [1, 2, 3], chosen, changed_codes, Kept.open(path, chosen, {}), 2)
        return dict(json.loads(path.read_text())["rows"])

    first = measure(2, entries)
    assert list(first) == ["all@1", "half@1.5"] and list(first["all@1"]) == ["00000", "00001"]
    more = measure(3, entries)
    assert {name: more["half@1.5"][name] for name in ("00000", "00001")} == first["half@1.5"]
    assert len(more["half@1.5"]) == 3 and more["all@1"]["00002"] == {"flips": 0.0}
    other = measure(2, [entries[0], Entry("half", 1.5, StepVARPlus(last=1, keep=0.2), 1.5)])
    assert other["half@1.5"] != first["half@1.5"]  # another method under the label


def kept(entries: list[Entry], measures: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What a part of the study keeps."""
    info = {"model": "scenes", "captions": "0 to 3", "dtype": "float32", "machine": "a test", "torch": "2"}
    rows = {key: {str(index): row for index, row in enumerate(own)} for key, own in measures.items()}
    return {"info": info, "entries": {entry.key: describe(entry) for entry in entries}, "rows": rows}


def judged(psnr: list[float], right: list[bool]) -> list[dict[str, Any]]:
    fidelity = [{"psnr": value, "ssim": value / 50, "high_frequency": 0.9} for value in psnr]
    return [row | {"right": {"shape": True, "colour": seen}} for row, seen in zip(fidelity, right, strict=True)]


ENTRIES = [
    Entry("dense", 1.0, Dense(), 1.0),
    Entry("stepvar-plus", 1.6, StepVARPlus(), 1.6),
    Entry("stepvar", 1.6, StepVAR(), 1.6),
    Entry("drop-guidance", 1.6, DropGuidance(), 1.58),
    Entry("skip-last", 1.6, SkipLast(), 1.6),
]
ROWS = {
    "dense@1": judged([99.0] * 4, [True] * 4),
    "stepvar-plus@1.6": judged([34.0, 36.0, 35.0, 35.0], [True, True, True, False]),
    "stepvar@1.6": judged([33.0, 35.0, 34.0, 34.0], [True] * 4),
    "drop-guidance@1.6": judged([36.0] * 4, [False] * 4),
    "skip-last@1.6": judged([40.0] * 4, [True] * 4),
}


def test_figures_are_paired() -> None:
    compared = comparison(kept(ENTRIES, ROWS))
    found = {row["label"]: row for row in compared}
    assert found["stepvar-plus"]["psnr"]["mean"] == 35.0 and found["stepvar-plus"]["psnr_of_plus_ahead"]["mean"] == 0
    ahead = found["stepvar"]["psnr_of_plus_ahead"]
    assert (ahead["mean"], ahead["low"], ahead["high"]) == (1.0, 1.0, 1.0)
    assert found["stepvar-plus"]["accuracy_against_dense"]["mean"] == -1 / 8
    assert found["drop-guidance"]["accuracy_against_dense"] == {"mean": -0.5, "low": -0.5, "high": -0.5, "count": 8}


def test_a_summary_writes_results(tmp_path: Path) -> None:
    variants = [Entry("as it is", 1.6, StepVARPlus(), 1.6), Entry("stepvar", 1.6, StepVAR(), 1.6)]
    tried = {"as it is@1.6": judged([34.0, 36.0], [True] * 2), "stepvar@1.6": judged([33.0, 35.0], [True] * 2)}
    (tmp_path / "judge.json").write_text(json.dumps(kept(ENTRIES, ROWS)))
    (tmp_path / "choose.json").write_text(json.dumps(kept(variants, tried)))
    summarise(tmp_path, tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert "| stepvar | 1.60x | 34.0 (33.5-34.8) | **+1.00** (+1.00 to +1.00) |" in markdown(results)
    assert "| stepvar | 1.60x | 34.0 (33.0-35.0) | **-1.00** (-1.00 to -1.00) |" in settings_markdown(results)
