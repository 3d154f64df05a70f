"""What the controls of the page do; Gradio runs, a browser does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stepvar.media.metadata import read_metadata
from stepvar.serving.web.downloads import Downloads
from stepvar.serving.web.requests import Requests
from stepvar.serving.web.studio import Studio

pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[web]'")

from stepvar.serving.web.page import build
from stepvar.serving.web.panel import Panel

ASKED: dict[str, Any] = {
    "prompt": "a red circle on grass",
    "negative": "",
    "random": False,
    "seed": 3,
    "shape": 1.0,
    "method": "stepvar",
    "budget": "keep",
    "keep": 50,
    "speedup": 1.5,
    "compare": True,
    "previews": True,
    "image": None,
}
VISITOR: Any = SimpleNamespace(session_hash="visitor")


@pytest.fixture
def requests(studio: Studio, tmp_path: Path) -> Requests:
    return Requests(studio, Downloads(tmp_path))


@pytest.fixture
def panel(requests: Requests) -> Panel:
    blocks = build(requests)
    made = [one for one in blocks.fns.values() if getattr(one.fn, "__name__", "") == "_generate"]
    panel: Panel = made[0].fn.__self__
    return panel


def changes(panel: Panel, **asked: Any) -> Iterator[dict[Any, Any]]:
    return panel._generate(**(ASKED | asked), request=VISITOR)


def test_a_request_shows_pictures_then_the_comparison_and_a_file(panel: Panel) -> None:
    first, *steps, last = changes(panel)
    assert first[panel.cancel]["visible"] and not first[panel.generate]["visible"]
    assert sum(panel.picture in step for step in steps) == 7
    dense, pruned = last[panel.slider]["value"]
    assert dense.size == pruned.size and dense.tobytes() != pruned.tobytes()
    assert "PSNR to dense" in last[panel.costs]
    assert read_metadata(Path(last[panel.download]["value"]))["seed"] == "3"
    assert last[panel.generate]["visible"] and not last[panel.cancel]["visible"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt": ""}, "prompt: is empty"),
        ({"prompt": None}, "prompt: is empty"),
        ({"seed": None}, "seed: is empty"),
        ({"seed": -5}, "seed=-5"),
        ({"prompt": "<script>"}, ""),
    ],
)
def test_wrong_input_is_said_and_the_page_goes_on(panel: Panel, asked: dict[str, Any], said: str) -> None:
    *_, last = changes(panel, **asked)
    if said:
        assert 'role="alert"' in last[panel.status] and said in last[panel.status]
    assert "<script>" not in last[panel.status]
    assert last[panel.generate]["visible"] and not last[panel.cancel]["visible"]


def test_a_failure_of_the_model_is_said_on_the_page(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("the decoder broke")

    monkeypatch.setattr(panel.requests.studio.pipe, "preview", broken)
    *_, last = changes(panel)
    assert "RuntimeError: the decoder broke" in last[panel.status]


def test_cancel_stops_the_visitors_own_request_only(panel: Panel) -> None:
    events = changes(panel)
    next(events)
    panel.requests.cancel("somebody else", False)
    assert panel.picture in next(step for step in events if panel.picture in step)
    panel._cancel(VISITOR)
    *_, last = events
    assert "Cancelled" in last[panel.status] and last[panel.generate]["visible"]
    *_, again = changes(panel)
    assert panel.slider in again


def test_a_random_seed_is_shown_when_it_was_drawn(panel: Panel) -> None:
    *_, last = changes(panel, random=True, compare=False)
    assert read_metadata(Path(last[panel.download]["value"]))["seed"] == str(last[panel.seed])
    assert panel.slider not in last


def test_a_method_brings_its_description_and_its_budgets(panel: Panel) -> None:
    shown = panel._choose("fastvar", "keep")
    assert "farthest from the mean" in shown[panel.method]["info"] and shown[panel.budget]["value"] == "speedup"
    limited: list[tuple[str, Any, bool, bool]] = [
        ("stepvar", "keep", True, False),
        ("stepvar", "speedup", False, True),
        ("fastvar", "speedup", False, True),
        ("dense", None, False, False),
    ]
    for method, budget, keep, speedup in limited:
        limits = panel._limit(method, budget)
        assert (limits[panel.keep]["visible"], limits[panel.speedup]["visible"]) == (keep, speedup)


def test_no_function_of_the_page_is_a_public_endpoint(requests: Requests) -> None:
    blocks = build(requests)
    assert blocks.fns and all(one.api_visibility == "private" or one.fn is None for one in blocks.fns.values())
