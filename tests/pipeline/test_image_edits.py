"""Edits from the pipeline, on a tiny model of 32x32 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stepvar import Pipeline, StepVAR
from stepvar.checkpoints import save_model
from stepvar.errors import UsageError
from stepvar.media.squares import cut_from_square, padded_square
from stepvar.models.infinity import Infinity
from stepvar.models.varedit.inputs import LARGEST, encode_image
from stepvar.pipeline.records import read_record
from stepvar.text import WordEncoder
from tests.helpers import TINY, make_edit, make_text

TEXT: dict[str, Any] = {
    "vocabulary": ["a", "blue", "make", "red", "sky", "the"],
    "synonyms": {},
    "width": TINY.text_channels,
    "layers": 1,
    "hidden": 32,
    "max_words": 15,
}
DEFAULTS = {"guidance_scale": 3.0, "temperature": 0.1, "top_k": 900, "top_p": 0.97}
PROMPTS = ["make the sky red", "make the sky blue"]


def write_edit(folder: Path) -> Path:
    torch.manual_seed(0)
    save_model(folder, "tiny-edit", make_edit(), WordEncoder(**TEXT), TEXT, DEFAULTS, torch.float32)
    return folder


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.from_pretrained(write_edit(tmp_path_factory.mktemp("edit")))


def photo(width: int = 40, height: int = 25) -> Image.Image:
    pixels = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def edited(pipe: Pipeline, *args: Any, **settings: Any) -> Any:
    given: dict[str, Any] = {"seed": 3, "output_type": "np", "progress": False} | settings
    return pipe(*args, **given).images


def test_a_saved_model_is_still_one_that_edits(pipe: Pipeline) -> None:
    assert (pipe.family.name, pipe.defaults) == ("varedit", DEFAULTS)


def test_an_image_is_padded_to_a_square_and_cut_back() -> None:
    square = padded_square(photo(40, 20), 32)
    assert square.size == (32, 32) and square.getpixel((31, 31)) == (255, 255, 255)
    back = cut_from_square(square, (40, 20))
    assert back.size == (40, 20)
    inner = (slice(2, -2), slice(2, -2))
    assert np.abs(np.asarray(back, int)[inner] - np.asarray(photo(40, 20), int)[inner]).max() < 8


def test_the_result_has_the_size_of_the_image(pipe: Pipeline) -> None:
    for size in ((40, 25), (25, 40), (32, 32), (100, 17)):
        out = pipe(PROMPTS[0], image=photo(*size), seed=1, progress=False)
        assert out.images[0].size == size and out.sources[0].size == size
        assert out.report.schedule == "0.06M 1" and out.captions == [PROMPTS[0]]


def test_latents_of_edits_are_cut_when_they_are_decoded(pipe: Pipeline) -> None:
    given: dict[str, Any] = {"image": [photo(40, 25), photo(20, 30)], "seed": 3, "progress": False}
    latents = pipe(PROMPTS, output_type="latent", **given).latents
    assert latents is not None
    whole = pipe(PROMPTS, **given).images
    assert [one.tobytes() for one in pipe.decode(latents)] == [one.tobytes() for one in whole]


def test_all_forms_of_an_image_are_the_same(pipe: Pipeline, tmp_path: Path) -> None:
    shown = photo()
    shown.save(tmp_path / "street.png")
    first = edited(pipe, PROMPTS[0], image=shown)
    assert first.shape == (1, 25, 40, 3) and first.dtype == np.uint8
    for form in (np.asarray(shown), tmp_path / "street.png", str(tmp_path / "street.png"), [shown]):
        assert np.array_equal(edited(pipe, PROMPTS[0], image=form), first)
    encoded = encode_image(pipe.model, shown, pipe.schedule())
    assert np.array_equal(edited(pipe, PROMPTS[0], image=encoded), first)
    tensor = edited(pipe, PROMPTS[0], image=shown, output_type="pt")
    assert np.array_equal((tensor * 255).round().byte().permute(0, 2, 3, 1).numpy(), first)
    assert np.array_equal(np.asarray(edited(pipe, PROMPTS[0], image=shown, output_type="pil")[0]), first[0])
    assert not np.array_equal(edited(pipe, PROMPTS[0], image=shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), first)


def test_one_image_for_all_prompts_or_one_each(pipe: Pipeline) -> None:
    shared = edited(pipe, PROMPTS, image=photo(), num_images_per_prompt=2)
    assert shared.shape[0] == 4 and not np.array_equal(shared[0], shared[2])
    each = pipe(PROMPTS, image=[photo(40, 25), photo(20, 30)], seed=3, progress=False)
    assert [image.size for image in each.images] == [(40, 25), (20, 30)]
    alone = edited(pipe, PROMPTS[1], image=photo(20, 30), seed=4)
    assert np.abs(np.asarray(each.images[1], int) - alone[0].astype(int)).max() <= 1


def test_the_encoder_reads_each_image_once(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []
    encode = pipe.model.tokenizer.encode_latent

    def noted(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(pixels.shape)
        latent: torch.Tensor = encode(pixels)
        return latent

    monkeypatch.setattr(pipe.model.tokenizer, "encode_latent", noted)
    edited(pipe, PROMPTS, image=photo(), num_images_per_prompt=2)
    assert calls == [(1, 3, 32, 32)]


def test_methods_prune_an_edit(pipe: Pipeline) -> None:
    dense = pipe(PROMPTS[0], image=photo(), seed=3, progress=False)
    fast = pipe(PROMPTS[0], image=photo(), seed=3, progress=False, method=StepVAR(keep=0.4))
    assert fast.report.kept < dense.report.kept and fast.report.flops < dense.report.flops
    assert fast.images[0].size == dense.images[0].size
    (_, kept), *_ = fast.kept
    assert kept.shape[-2:] == (12, 12) or kept.shape[-2:] == (16, 16)  # of the square, not of what is cut from it


def test_callbacks_see_the_whole_square_or_what_is_cut_from_it(pipe: Pipeline) -> None:
    seen: list[tuple[int, int]] = []
    pipe(
        PROMPTS[0], image=photo(), seed=3, progress=False,
        callback_on_scale_end=lambda _, state: seen.append(pipe.preview(state)[0].size),
    )  # fmt: skip
    assert seen == [(32, 32)] * 7
    cut: list[Image.Image] = []
    result = pipe(
        PROMPTS[0], image=photo(), seed=3, progress=False,
        callback_on_scale_end=lambda _, state: cut.extend(pipe.preview(state, sources=[photo()])),
    )  # fmt: skip
    assert {one.size for one in cut} == {photo().size} != {(32, 32)}
    assert np.array_equal(np.asarray(cut[-1]), np.asarray(result.images[0]))


def test_offloading_changes_nothing(pipe: Pipeline) -> None:
    whole = edited(pipe, PROMPTS[0], image=photo())
    try:
        assert np.array_equal(edited(pipe.enable_sequential_cpu_offload("cpu"), PROMPTS[0], image=photo()), whole)
    finally:
        pipe.disable_cpu_offload()


def test_features_of_the_callers_own(pipe: Pipeline) -> None:
    out = pipe(prompt_embeds=make_text((4,)).features[0, :4], image=photo(), seed=1, progress=False)
    assert out.images[0].size == (40, 25)


def test_a_file_says_how_to_edit_it_again(pipe: Pipeline, tmp_path: Path) -> None:
    photo().save(tmp_path / "street.png")
    out = pipe(PROMPTS[0], image=tmp_path / "street.png", seed=5, progress=False, method="stepvar")
    record = read_record(out.metadata[0], "file")
    assert record.call["image"] == str(tmp_path / "street.png") == out.metadata[0]["image"]
    again = record.run(pipe)
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(out.images[0]))
    drawn = pipe(PROMPTS[0], image=photo(), seed=5, progress=False)
    assert "image was given as a" in drawn.metadata[0]["not repeatable"]


def test_speedup_and_memory_count_the_source(pipe: Pipeline) -> None:
    settings = pipe.settings()
    method = StepVAR()
    plan = method.plan(settings, pipe.model.info, 1)
    taken = pipe.dry_run(plan, method)
    source, heads = 256, 2 * 2 * TINY.width * 4  # keys and values of two rows in float32
    own = sum(plan.cache_tokens) * heads
    assert taken.cache == own + (256 + 3 * source) * heads  # the first block has room for its largest reference
    assert taken.prepare_flops > taken.flops[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "image: this model changes an image; give one"),
        ({"image": []}, "image: an empty list"),
        ({"image": "gone.png"}, "image 'gone.png': .*"),
        ({"image": 3}, "image: a int; give a PIL image, a path, or an array"),
        ({"image": np.zeros((4, 4))}, r"image of shape \(4, 4\) and type float64: must be \(H, W, 3\) uint8"),
        ({"image": photo(40, 1)}, "image of 40x1 pixels: too small; each side must have at least 2"),
        ({"image": photo(100, 4)}, "image of 100x4 pixels: too narrow; one side may be at most 16 times the other"),
        ({"image": Image.new("RGB", (LARGEST + 1, 600))}, "too large; each side may have at most 8192"),
        ({"image": [photo()] * 3}, "image: 3 given for 2 prompts; give one, or one each"),
        ({"image": photo(), "video": "a.mp4"}, "video: this model does not take it"),
        ({"image": photo(), "aspect_ratio": "3:2"}, r"aspect ratio 1.5 \(width to height\): this model edits squares"),
        ({"image": photo(), "resolution": "1M"}, "resolution '1M': this model knows only 0.06M"),
        ({"image": photo(), "height": 64, "width": 64}, "height=64, width=64: no schedule of this model has this size"),
        ({"image": [photo(), photo(20, 20)], "output_type": "np"}, "output_type='np': the images have different"),
        ({"image": photo(), "strength": 0.5}, "strength: models that edit take image= and an instruction"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)  # fmt: skip
def test_what_cannot_be_edited_is_refused(pipe: Pipeline, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        pipe(PROMPTS, **given)
    assert "\n" not in str(error.value)


def test_a_broken_file_is_refused(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(UsageError, match=r"notes.png': is not an image"):
        pipe(PROMPTS[0], image=tmp_path / "notes.png")


def test_other_models_say_where_an_image_goes(tiny_model: Infinity) -> None:
    from stepvar.checkpoints import LoadedModel

    bare = Pipeline(LoadedModel("tiny", "infinity", tiny_model, None, {}), None)
    with pytest.raises(UsageError, match=r"image: this model does not take it; .* or changes images"):
        bare(prompt_embeds=torch.zeros(1, 3, TINY.text_channels), image=photo())
