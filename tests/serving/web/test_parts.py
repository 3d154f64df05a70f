"""The parts of the page that need neither Gradio nor a browser."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from stepvar.errors import UsageError
from stepvar.media.metadata import read_metadata
from stepvar.pipeline import Pipeline
from stepvar.serving.web import check_package, markup, parse_auth
from stepvar.serving.web.downloads import Downloads
from stepvar.serving.web.requests import Requests
from stepvar.serving.web.studio import Progress, Result, Studio, Wish
from tests.cli.conftest import Run


@pytest.fixture
def result(studio: Studio) -> Result:
    *_, last = studio.generate(Wish("a red circle on grass", seed=3), Event())
    assert isinstance(last, Result)
    return last


def test_a_download_holds_the_settings_and_is_named_after_its_prompt(result: Result, tmp_path: Path) -> None:
    path = Downloads(tmp_path).add(result.output)
    assert path.name == "a-red-circle-on-grass-3.png"
    texts = read_metadata(path)
    assert (texts["prompt"], texts["seed"], texts["method"]) == ("a red circle on grass", "3", "stepvar")


@pytest.mark.parametrize("prompt", ["../../etc/passwd", "café ☕", "x" * 500])
def test_no_prompt_leads_out_of_the_folder(pipe: Pipeline, tmp_path: Path, prompt: str) -> None:
    output = replace(pipe("a red circle", seed=1, progress=False), captions=[prompt])
    path = Downloads(tmp_path).add(output)
    assert path.exists() and path.parent.parent == tmp_path and len(path.name) < 100


def test_old_downloads_go_when_there_are_many(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepvar.serving.web.downloads.KEPT", 3)
    files = Downloads(tmp_path)
    paths = [files.add(result.output) for _ in range(5)]
    assert [path.exists() for path in paths] == [False, False, True, True, True]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_table_states_the_numbers_of_both_reports(result: Result) -> None:
    table = markup.costs(result)
    assert result.dense is not None and result.psnr is not None
    for report in (result.output.report, result.dense.report):
        assert f"<td>{report.kept:,}</td>" in table and f"<td>{markup.seconds(report.seconds)}</td>" in table
    assert f"{result.psnr:.1f} dB" in table
    assert "equal" in markup.costs(replace(result, psnr=math.inf))
    alone = markup.costs(replace(result, dense=None, psnr=None))
    assert "PSNR" not in alone and "dense" not in alone


def test_texts_of_a_visitor_are_escaped() -> None:
    for text in (markup.error("<b>"), markup.progress(Progress("<b>")), markup.done("<b>", ["<b>"])):
        assert "<b>" not in text and "&lt;b&gt;" in text


def test_a_bar_without_an_end_has_no_value() -> None:
    assert "value" not in markup.progress(Progress("measuring"))
    assert 'value="0.250"' in markup.progress(Progress("scale 2", 0.25))


def test_a_login_has_a_name_and_a_password() -> None:
    assert parse_auth(None) is None
    assert parse_auth("ada:a:b") == ("ada", "a:b")
    for wrong in ("ada", ":secret", "ada:"):
        with pytest.raises(UsageError, match="name:password") as refused:
            parse_auth(wrong)
        assert "secret" not in str(refused.value)


def test_a_request_behind_a_cancelled_one_is_not_cancelled_with_it(studio: Studio, tmp_path: Path) -> None:
    requests = Requests(studio, Downloads(tmp_path))
    first = requests.begin("ada", False)
    requests.cancel("ada", False)
    second = requests.begin("ada", False)  # before the first has come to its end
    assert first.is_set() and not second.is_set()
    requests.end("ada", False, first)
    requests.cancel("ada", False)
    assert second.is_set()


def test_a_number_of_those_who_may_wait_has_bounds(run: Run) -> None:
    assert "waiting=-1" in run("web", "--waiting", "-1").error()


def test_the_command_names_the_extra_where_gradio_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UsageError):
        check_package()
    assert run("web").error() == "the web page: needs the package gradio; pip install '.[web]' in the checkout"
