"""The images API, as OpenAI's client uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from stepvar.checkpoints import save_model
from stepvar.media.images import image_metadata
from stepvar.models.var import VAR
from tests.serving.server.servers import LONG, HeldPipeline, Server, in_thread, picture, pixels, running, until

PROMPT = "a red circle on grass"


def test_an_image_is_that_of_the_pipeline_with_this_seed(server: Server) -> None:
    answer = server.client.images.generate(prompt=PROMPT, n=2, model="tiny", extra_body={"seed": 7})
    expected = server.pipe(prompt=[PROMPT] * 2, seed=7).images
    assert [one.seed for one in answer.data] == [7, 8]
    for one, image in zip(answer.data, expected, strict=True):
        assert np.array_equal(pixels(picture(one)), pixels(image))
    assert (answer.size, answer.output_format, answer.background) == ("32x32", "png", "opaque")
    assert answer.usage is not None and answer.usage.output_tokens == 2 * sum(
        grid.size for grid in server.pipe.schedule().grids
    )


def test_own_fields_choose_the_method_and_its_settings(server: Server) -> None:
    def report(**fields: Any) -> Any:
        quality = fields.pop("quality", "auto")
        answer = server.client.images.generate(prompt=PROMPT, quality=quality, extra_body={"seed": 1, **fields})
        return answer.data[0].report

    dense, pruned = report(), report(keep=0.5)
    assert (dense["method"], pruned["method"]) == ("dense", "stepvar") and pruned["kept"] < dense["kept"]
    assert report(method="stepvar+drop-guidance")["method"] == "stepvar+drop-guidance"
    assert report(quality="low")["method"] == "stepvar+drop-guidance"
    assert report(quality="medium")["method"] == "stepvar" and report(quality="hd")["method"] == "dense"


def test_guidance_and_a_negative_prompt_change_the_image(server: Server) -> None:
    images = [
        pixels(picture(server.client.images.generate(prompt=PROMPT, extra_body={"seed": 1, **own}).data[0]))
        for own in ({}, {"guidance_scale": 5}, {"negative_prompt": "a blue square"}, {"guidance_scale": [1.0] * 7})
    ]
    assert all(not np.array_equal(images[0], other) for other in images[1:])


@pytest.mark.parametrize("kind, options", [("png", {}), ("jpeg", {"output_compression": 40}), ("webp", {})])
def test_formats_hold_how_the_image_was_made_and_nothing_of_the_server(server: Server, kind: Any, options: Any) -> None:
    answer = server.client.images.generate(
        prompt=PROMPT, output_format=kind, response_format="url", extra_body={"seed": 3}, **options
    )
    (one,) = answer.data
    assert one.url is not None and one.url.startswith(f"data:image/{kind};base64,")
    image = picture(one)
    texts = image_metadata(image)
    assert image.format == kind.upper() and texts["prompt"] == PROMPT and texts["seed"] == "3"
    assert "repeat" not in texts and not any("/" in text for text in texts.values())


def test_a_stream_brings_a_picture_per_scale_and_then_the_image(server: Server) -> None:
    events = list(server.client.images.generate(prompt=PROMPT, stream=True, partial_images=50, extra_body={"seed": 5}))
    *partial, last = events
    scales = len(server.pipe.schedule().grids)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * (scales - 1)
    assert [event.partial_image_index for event in partial] == list(range(scales - 1))
    assert last.type == "image_generation.completed" and last.usage.output_tokens > 0
    assert all(event.size == "32x32" and event.created_at and event.quality == "auto" for event in events)
    plain = server.client.images.generate(prompt=PROMPT, extra_body={"seed": 5})
    assert np.array_equal(pixels(picture(last)), pixels(picture(plain.data[0])))
    distances = [np.abs(pixels(picture(event)) - pixels(picture(last))).mean() for event in partial]
    assert distances[-1] < distances[0]


def test_a_stream_has_as_many_pictures_as_asked_for(server: Server) -> None:
    for count in (0, 1, 3):
        events = list(server.client.images.generate(prompt=PROMPT, stream=True, partial_images=count, n=2))
        partial = [event for event in events if event.type == "image_generation.partial_image"]
        assert len(partial) == 2 * count and len(events) == 2 * count + 2


def test_another_size_is_one_of_the_model(server: Server) -> None:
    sizes = {(grid.w * 2, grid.h * 2) for name, _, grid in server.pipe.model.shapes() if name == "0.06M"}
    width, height = max(sizes)
    answer = server.client.images.generate(prompt=PROMPT, size=f"{width}x{height}")
    assert answer.size == f"{width}x{height}" and picture(answer.data[0]).size == (width, height)


@pytest.mark.filterwarnings("ignore::stepvar.errors.ExperimentalWarning")
def test_a_size_that_an_error_names_can_be_asked_for(server: Server) -> None:
    widest = max(grid.w / grid.h for _, _, grid in server.pipe.model.shapes())
    with pytest.raises(openai.BadRequestError, match=r"\(width x height\)") as refused:
        server.client.images.generate(prompt=PROMPT, size=f"{round(40 * widest)}x41")
    size = refused.value.message.split("nearest are ")[1].split(",")[0]
    width, height = map(int, size.split("x"))
    assert width > height and server.client.images.generate(prompt=PROMPT, size=size).size == size


@pytest.mark.parametrize(
    "fields, param, said",
    [
        ({"n": 0}, "n", "n=0: must be a whole number from 1 to 10"),
        ({"n": 11}, "n", "n=11"),
        ({"n": 10**400}, "n", "n="),
        ({"n": 1e99}, "n", "must be a whole number of fewer digits"),
        ({"size": "7x7"}, "size", "size='7x7': this model has no such size; the nearest are"),
        ({"size": "0x99999"}, "size", "size='0x99999': this model has no such size"),
        ({"size": "٣٢x٣٢"}, "size", "width x height"),
        ({"size": "../../etc/passwd"}, "size", "width x height"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": "x" * 5000}, "prompt", "at most 4000"),
        ({"prompt": 5}, "prompt", "prompt=5: must be"),
        ({"negative_prompt": "qwxyz"}, "negative_prompt", "negative_prompt 'qwxyz': this model knows none"),
        ({"negative_prompt": "red " * 40}, "negative_prompt", "negative_prompt of 40 words"),
        ({"method": "os:Popen"}, "method", "registered method"),
        ({"method": "dense+os.path:Join"}, "method", "registered method"),
        ({"method": "nothing"}, "method", "unknown; choose one of"),
        ({"method": "dense+fast"}, "method", "stepvar-plus; did you mean 'fastvar'?"),  # and no class by its path
        ({"method": "stepvar keep=0.4"}, "method", "have the fields keep and speedup"),
        ({"keep": 2}, "keep", "keep=2"),
        ({"keep": 0.5, "speedup": 2}, "keep", "give one of them"),
        ({"keep": 0.5, "quality": "low"}, "quality", "give one of them"),
        ({"quality": "best"}, "quality", "must be 'auto'"),
        ({"seed": -1}, "seed", "seed=-1"),
        ({"seed": 2**63}, "seed", "seed="),
        ({"guidance_scale": [1, 2]}, "guidance_scale", "guidance_scale"),
        ({"output_format": "gif"}, "output_format", "must be 'png'"),
        ({"output_compression": 50}, "output_compression", "PNG"),
        ({"background": "transparent"}, "background", "must be 'auto'"),
        ({"partial_images": 2}, "partial_images", "stream=true"),
        ({"stream": True, "partial_images": 99}, "partial_images", "from 0 to 64"),
        ({"image": "file:///etc/passwd"}, None, "is not a field"),
        ({"guidance_sclae": 3}, None, "did you mean 'guidance_scale'"),
    ],
)
def test_wrong_fields_are_refused_in_one_line(server: Server, fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.client.images.generate(prompt=PROMPT, extra_body=fields)
    assert said in refused.value.message and refused.value.message.count("\n") == 0
    assert refused.value.param == param and server.pipe.prompts == []


def test_a_model_that_is_not_served_is_not_found(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="'tiny'") as refused:
        server.client.images.generate(prompt=PROMPT, model="gpt-image-2")
    assert refused.value.code == "model_not_found"
    assert [one.id for one in server.client.models.list()] == ["tiny"] and server.client.models.retrieve("tiny").id
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("other/model")


def test_a_speed_up_is_measured_for_one_image(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEPVAR_CACHE", str(tmp_path))
    answer = server.client.images.generate(prompt=PROMPT, n=2, extra_body={"seed": 1, "speedup": 1})
    assert [one.report["method"] for one in answer.data] == ["stepvar"] * 2


def test_a_model_that_does_not_edit_says_so(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="does not edit"):
        server.client.images.edit(prompt=PROMPT, image=b"no matter what")


def test_a_class_conditional_model_takes_classes(tiny_var: VAR, tmp_path: Path) -> None:
    save_model(tmp_path, "tiny-var", tiny_var, None, None, {"guidance_scale": 2.0}, torch.float32)
    with running(lambda: HeldPipeline.load(tmp_path), warm_up=True) as server:
        answer = server.client.images.generate(prompt="3", extra_body={"seed": 1})
        expected = server.pipe(class_labels=[3], seed=1).images[0]
        assert np.array_equal(pixels(picture(answer.data[0])), pixels(expected))
        with pytest.raises(openai.BadRequestError, match="10"):
            server.client.images.generate(prompt="10")


IGNORES = "this model knows only the words of its vocabulary and ignores "


@pytest.mark.filterwarnings("ignore::stepvar.text.UnknownWordWarning")
def test_words_that_the_model_does_not_know_are_in_the_answer(server: Server) -> None:
    def warnings(prompt: str, **own: Any) -> list[list[str]]:
        answer = server.client.images.generate(prompt=prompt, extra_body={"seed": 1, **own}, n=2)
        return [one.warnings for one in answer.data]

    assert warnings(PROMPT) == [[], []]
    for _ in range(2):  # the second time its features are those that were kept
        assert warnings(f"{PROMPT} by Vermeer, a zebra") == 2 * [[f"{IGNORES}by, vermeer, zebra"]]
    assert warnings(PROMPT, negative_prompt="a blurred square") == 2 * [[f"{IGNORES}blurred"]]
    (event,) = server.client.images.generate(prompt="a red zebra", stream=True)
    assert event.warnings == [f"{IGNORES}zebra"]


@pytest.mark.filterwarnings("ignore::stepvar.text.UnknownWordWarning")
def test_each_image_of_a_batch_has_its_own_warnings(server: Server) -> None:
    prompts = ["a red zebra", PROMPT, "a blue giraffe"]
    server.pipe.let_begin.clear()
    first = in_thread(lambda: server.client.images.generate(prompt=PROMPT))
    assert server.pipe.begun.wait(LONG)

    def ask(prompt: str) -> Any:
        return in_thread(lambda: server.client.images.generate(prompt=prompt))

    answers = [ask(prompt) for prompt in prompts]
    until(lambda: len(server.service.worker._queue) == 3)
    server.pipe.let_begin.set()
    first()
    found = [answer().data[0] for answer in answers]
    assert [one.report["batch"] for one in found] == [3] * 3
    assert [one.warnings for one in found] == [[f"{IGNORES}zebra"], [], [f"{IGNORES}giraffe"]]
