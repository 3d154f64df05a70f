"""The page as a visitor meets it, in Chromium."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stepvar.pipeline import Pipeline
from stepvar.serving.web import serve
from tests.cli.conftest import Run
from tests.serving.web.conftest import Gate

pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[web]'")
playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install playwright")

pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROMPT = "a red circle on grass"

UNNAMED = """() => [...document.querySelectorAll('button, input, textarea, select, [role=slider]')].filter(one => {
  if (!one.checkVisibility() || one.closest('[aria-hidden=true]')) return false;
  const text = one.getAttribute('aria-label') || one.title || one.innerText || [...(one.labels || [])].map(
    label => label.innerText).join('') || [...one.querySelectorAll('img')].map(image => image.alt).join('');
  return !text.trim();
}).map(one => one.outerHTML.slice(0, 200))"""
"""Controls without a name that a screen reader could say."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system, or the one that Playwright brought."""
    with playwright.sync_playwright() as driver:
        found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        own = driver.chromium.executable_path
        if found is None and not os.path.exists(own):
            pytest.skip(f"no Chromium: install one of {', '.join(NAMES)}, or run 'playwright install chromium'")
        started = driver.chromium.launch(executable_path=found or own, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def address(pipe: Pipeline) -> Iterator[str]:
    with serve(pipe, port=0, waiting=1) as url:
        yield url


Visit = Callable[..., Any]


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    """Opens the page as one visitor more; nothing may fail in it, or be fetched from elsewhere."""
    wrong: list[str] = []
    contexts = []

    def seen(message: Any) -> None:
        if message.type in ("error", "warning"):
            wrong.append(message.text)

    def requested(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            wrong.append(request.url)

    def open_page(width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", seen)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", requested)
        page.goto(address)
        page.locator("#image-prompt textarea").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def ask(page: Any, prompt: str = PROMPT) -> None:
    """Types a prompt and presses Enter."""
    field = page.locator("#image-prompt textarea")
    field.fill(prompt)
    field.press("Enter")


def finished(page: Any) -> None:
    page.locator("#image-costs table").wait_for()
    page.locator("#image-generate").wait_for()


def test_enter_generates_a_comparison_and_a_file_that_says_how_it_was_made(
    visit: Visit, tmp_path: Path, run: Run
) -> None:
    page = visit()
    ask(page)
    finished(page)
    slider = page.locator("#image-slider img")
    slider.nth(1).wait_for()
    first, second = (slider.nth(index).bounding_box() for index in (0, 1))
    assert first == second  # else the halves of a picture would not meet
    with page.expect_download() as download:
        page.locator("#image-download").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    seed = page.locator("#image-seed input").input_value()
    assert path.name == f"a-red-circle-on-grass-{seed}.png"
    said = run("info", path).out
    assert re.search(rf"^prompt +{PROMPT}$", said, re.M) and re.search(rf"^seed +{seed}$", said, re.M)


def test_the_picture_appears_before_it_is_finished(visit: Visit, gate: Gate) -> None:
    page = visit()
    ask(page)
    assert gate.reached.wait(60)
    assert page.locator("#image-status progress").count() == 1
    gate.open()
    page.locator("#image-picture img").wait_for(state="attached")
    finished(page)
    page.get_by_role("tab", name="Scales").click()
    page.locator("#image-scales .thumbnail-item").first.wait_for()
    assert page.locator("#image-scales .thumbnail-item").count() == 7
    page.get_by_role("tab", name="Tokens").click()
    page.locator("#image-kept .thumbnail-item").first.wait_for()
    assert page.locator("#image-kept .thumbnail-item").count() == 2


def test_cancel_gives_the_page_back(visit: Visit, gate: Gate) -> None:
    page = visit()
    ask(page)
    assert gate.reached.wait(60)
    page.locator("#image-cancel").click()
    page.get_by_text("Cancelled.").wait_for()
    gate.open()
    ask(page)
    finished(page)


def test_two_visitors_are_served_one_after_the_other_and_a_third_is_told_to_wait(visit: Visit, gate: Gate) -> None:
    one, two, three = visit(), visit(), visit()
    ask(one)
    assert gate.reached.wait(60)
    ask(two, "a blue star on sand")
    two.get_by_text("Waiting: 1 ahead of you").wait_for()
    ask(three)
    three.get_by_role("alert").get_by_text("try again in a while").wait_for()
    gate.open()
    for page in (one, two):
        finished(page)
    ask(three)
    finished(three)


def test_work_of_a_visitor_who_leaves_is_stopped(visit: Visit, gate: Gate) -> None:
    leaving, staying = visit(), visit()
    ask(leaving)
    assert gate.reached.wait(60)
    ask(staying)
    staying.get_by_text("Waiting").wait_for()
    leaving.close()
    gate.open()
    finished(staying)


def test_wrong_input_is_said_as_an_alert(visit: Visit) -> None:
    page = visit()
    ask(page, "  ")
    page.get_by_role("alert").get_by_text("prompt: is empty").wait_for()
    page.locator("#image-random input").uncheck()
    page.locator("#image-seed input").fill("-4")
    ask(page)
    page.get_by_role("alert").get_by_text("seed=-4").wait_for()


def test_everything_works_from_the_keyboard(visit: Visit) -> None:
    page = visit()
    page.locator("#image-prompt textarea").focus()
    page.keyboard.type(PROMPT)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "image-generate"
    page.keyboard.press("Enter")
    finished(page)
    divider = page.locator("#image-divider input[type=range]")
    before = page.locator("#image-slider img").nth(1).get_attribute("style")
    divider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "before => document.querySelectorAll('#image-slider img')[1].getAttribute('style') !== before", arg=before
    )
    page.locator("#image-keep input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#image-keep input[type=number]").input_value() == "55"


def test_every_control_has_a_name(visit: Visit) -> None:
    page = visit()
    assert page.evaluate(UNNAMED) == []
    ask(page)
    finished(page)
    for tab in ("Picture", "Compare", "Tokens", "Scales"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate(UNNAMED) == [], tab
    assert page.locator("html").get_attribute("lang") and page.locator("h1").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_on_a_phone(visit: Visit, scheme: str) -> None:
    page = visit(width=375, scheme=scheme)
    ask(page, "a large red striped circle left of a small blue star on grass")
    finished(page)
    for tab in ("Picture", "Compare", "Tokens", "Scales"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") == 375, tab
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")


def test_a_model_of_images_explains_how_to_make_videos(visit: Visit) -> None:
    page = visit()
    page.get_by_role("tab", name="Video").click()
    page.get_by_text("stepvar web --model scenes-video").wait_for()


def test_a_login_keeps_strangers_out(browser: Any, pipe: Pipeline) -> None:
    with serve(pipe, port=0, auth=("ada", "secret")) as url:
        page = browser.new_page()
        page.goto(url)
        page.get_by_label("username").fill("ada")
        page.get_by_label("password").fill("wrong")
        page.get_by_role("button", name="Login").click()
        page.get_by_text("Incorrect").wait_for()
        assert page.locator("#image-prompt").count() == 0
        page.get_by_label("username").fill("ada")
        page.get_by_label("password").fill("secret")
        page.get_by_role("button", name="Login").click()
        page.locator("#image-prompt textarea").wait_for()
        page.close()


def test_videos_play_beside_each_other_and_download_with_their_settings(browser: Any, tmp_path: Path, run: Run) -> None:
    pytest.importorskip("av", reason="video files need PyAV")
    with serve(Pipeline.from_pretrained("scenes-video"), port=0) as url:
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(url)
        page.locator("#video-previews input").uncheck()
        page.locator("#video-prompt textarea").fill("a large red circle moving right on grass")
        page.locator("#video-prompt textarea").press("Enter")
        page.locator("#video-costs table").wait_for()
        for place in ("#video-dense", "#video-pruned"):
            page.wait_for_function("place => document.querySelector(place + ' video')?.readyState >= 2", arg=place)
        with page.expect_download() as download:
            page.locator("#video-download").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        assert path.suffix == ".mp4" and "moving right" in run("info", path).out
        page.close()
