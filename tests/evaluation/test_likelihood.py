"""Teacher forcing against hand-computed likelihoods, and against what each family's tokenizer says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stepvar.checkpoints import LoadedModel
from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Settings
from stepvar.core.resolve import resolve
from stepvar.core.stack import ModelInfo
from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.evaluation.candidates import DENSE, Candidate
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.likelihood.forcing import TeacherForcing
from stepvar.evaluation.likelihood.images import GivenImages, load_images
from stepvar.evaluation.likelihood.run import Likelihood, check_candidate, likelihood_settings, per_scale, scale_names
from stepvar.generation import generate
from stepvar.methods import Dense, DropGuidance, Method, SkipLast, StepVAR
from stepvar.models.infinity import TextCondition
from stepvar.models.infinity_star.model import VideoCondition
from stepvar.models.var import ClassCondition
from stepvar.pipeline import Pipeline
from tests.helpers import (
    SQUARE,
    TINY,
    WIDE,
    make_context,
    make_hart,
    make_model,
    make_settings,
    make_star,
    make_text,
    make_var,
)


def step_of(settings: Settings, index: int) -> Any:
    return resolve(settings, 1, 1).steps[index]


def test_bits_and_divergence_of_known_logits() -> None:
    """Probabilities (1/4, 3/4) of one bit, seen twice: a 0 is 2 bits, a 1 is log2(4/3)."""
    step = step_of(make_settings(ScaleSchedule.of([(1, 1)])), 0)
    logits = torch.tensor([0.0, math.log(3)]).expand(1, 1, 2, 2)
    codes = torch.tensor([[[0, 1]]])
    even = {0: torch.full((1, 1, 2, 2), math.log(0.5))}
    forcing = TeacherForcing({0: codes}, even, keeps=True)
    given, weights = forcing(logits, SeededNoise([0]), step)
    assert torch.equal(given, codes) and weights is None
    assert forcing.bits[0].item() == pytest.approx(2 + math.log2(4 / 3), abs=1e-6)
    # Twice 1/2 log2((1/2) / (1/4)) + 1/2 log2((1/2) / (3/4))
    assert forcing.divergence[0].item() == pytest.approx(1 + math.log2(2 / 3), abs=1e-6)
    assert forcing.log_probs[0][0, 0, 0].exp().tolist() == pytest.approx([0.25, 0.75])


def forced_run(
    model: Any, condition: Any, settings: Settings, images: Tensor, method: Method | None = None, **how: Any
) -> tuple[TeacherForcing, Any]:
    forcing = TeacherForcing(dict(enumerate(model.encode(images, settings.schedule))), **how)
    method = method or Dense()
    plan = method.plan(settings, model.info, len(images))
    return forcing, generate(model, condition, plan, method, SeededNoise([0] * len(images)), sampler=forcing)


def pictures(count: int, height: int, width: int) -> Tensor:
    return 2 * torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) - 1


@pytest.mark.parametrize("patchify", [False, True])
def test_forced_codes_of_infinity_add_up_to_what_the_tokenizer_says(patchify: bool) -> None:
    model = make_model(replace(TINY, patchify=patchify))
    stride, last = model.config.stride, WIDE[-1]
    images = pictures(2, stride * last.h, stride * last.w)
    _, state = forced_run(model, TextCondition(make_text((5, 3))), make_settings(WIDE), images)
    cells = ScaleSchedule.of([model.config.latent_size(grid)[1:] for grid in WIDE])
    torch.testing.assert_close(state.latent, model.tokenizer.encode(images, cells)[1])


def test_forced_codes_of_var_add_up_to_what_the_tokenizer_says() -> None:
    model, images = make_var(), pictures(2, 16, 16)
    _, state = forced_run(model, ClassCondition((3, -1)), make_settings(SQUARE), images)
    torch.testing.assert_close(state.latent, model.tokenizer.encode(images, SQUARE)[1])


def test_forced_codes_of_a_still_image_add_up_to_what_the_video_tokenizer_says() -> None:
    model = make_star()
    schedule = model.schedule(0.5, None, 0.0)
    images = pictures(2, *(model.config.stride * side for side in (schedule[-1].h, schedule[-1].w)))
    forcing, state = forced_run(model, VideoCondition(make_text((5, 3))), make_settings(schedule), images)
    residual = model.tokenizer.encode(images.unsqueeze(2), mean=True) - state.latent
    assert set(forcing.bits) == set(range(len(schedule))) and scale_names(schedule) == ["1x2", "2x3", "4x6"]
    assert residual.square().mean() < model.tokenizer.encode(images.unsqueeze(2), mean=True).square().mean()


def test_a_model_that_knows_nothing_needs_every_bit_of_a_code() -> None:
    """With a head of zeros each bit costs one bit, and each of 48 indices log2(48)."""
    infinity, var, hart = make_model(), make_var(), make_hart()
    for model in (infinity, var, hart):
        torch.nn.init.zeros_(model.transformer.head.weight)
        torch.nn.init.zeros_(model.transformer.head.bias)
    tokens = [grid.size for grid in SQUARE]
    images = pictures(1, 16, 16)
    bits, _ = forced_run(infinity, TextCondition(make_text((5,))), make_settings(SQUARE, 1.0), images)
    assert [bits.bits[i].item() for i in range(5)] == pytest.approx([6 * count for count in tokens])
    for coded, condition in ((var, ClassCondition((3,))), (hart, make_context((3,)))):
        found, _ = forced_run(coded, condition, make_settings(SQUARE, 1.0), images)
        assert [found.bits[i].item() for i in range(5)] == pytest.approx([math.log2(48) * n for n in tokens])


def test_pruned_passes_run_as_in_a_generation() -> None:
    """Nothing is pruned at keep=1; else the pruned scale is predicted worse, and no scale before it differs."""
    model, images, settings = make_model(), pictures(2, 16, 16), make_settings(SQUARE)
    condition = TextCondition(make_text((5, 3)))
    dense, _ = forced_run(model, condition, settings, images, keeps=True)
    neutral, _ = forced_run(model, condition, settings, images, StepVAR(keep=1.0), reference=dense.log_probs)
    assert all(torch.equal(neutral.bits[index], dense.bits[index]) for index in range(5))
    assert all(neutral.divergence[index].eq(0).all() for index in range(5))
    pruned, _ = forced_run(model, condition, settings, images, StepVAR(keep=0.5, last=1), reference=dense.log_probs)
    assert all(pruned.divergence[index].eq(0).all() for index in range(4)) and pruned.divergence[4].gt(0).all()
    assert all(torch.equal(pruned.bits[index], dense.bits[index]) for index in range(4))


def test_repetitions_of_a_scale_are_one_scale() -> None:
    schedule = make_star().schedule(0.5, None, 0.0)
    assert [schedule.scale(index) for index in range(len(schedule))] == [0, 0, 1, 1, 2]
    by_pass = {index: torch.tensor([10.0**index]) for index in range(5)}
    assert per_scale(by_pass, schedule) == [[11.0, 1100.0, 10000.0]]


INFO = ModelInfo(4)


@dataclass(frozen=True)
class SkipsPerhaps(Method):
    """Decides behind the second pass whether the last one follows."""

    def alternatives(self, settings: Settings) -> tuple[int, dict[str, Settings]]:
        return 1, {"all": settings, "fewer": settings.without_last(1)}


def test_a_method_that_may_leave_a_scale_out_is_refused() -> None:
    with pytest.raises(UsageError, match="does not run every scale"):
        check_candidate(make_settings(SQUARE, 1.0), SkipsPerhaps(), INFO)


def test_methods_that_say_nothing_of_some_code_are_refused() -> None:
    guided, plain = make_settings(SQUARE, 3.0), make_settings(SQUARE, 1.0)
    with pytest.raises(UsageError, match="does not run every scale"):
        check_candidate(plain, SkipLast(), INFO)
    with pytest.raises(UsageError, match="changes nothing here"):
        check_candidate(plain, DropGuidance(), INFO)
    with pytest.raises(UsageError, match="images without captions have none"):
        check_candidate(make_settings(SQUARE, 0.0), DropGuidance(), INFO)
    check_candidate(guided, DropGuidance(), INFO)
    check_candidate(plain, StepVAR(), INFO)


def measured(pipe: Pipeline, images: GivenImages, folder: Path, **given: Any) -> dict[str, list[dict[str, Any]]]:
    """Rows of the manifest by method."""
    candidates = [DENSE, Candidate("stepvar", StepVAR(keep=0.5, last=1))]
    settings = likelihood_settings(pipe, images.captioned, given)
    run = RunFolder.open(folder, {})
    Likelihood(pipe, images, candidates, run, settings, batch=2).run()
    return {label: [row for (own, _, _), row in run.rows.items() if own == label] for label in ("dense", "stepvar")}


@pytest.mark.parametrize("family", ["var", "hart", "infinity_star"])
def test_every_family_finds_the_likelihood_of_images_without_captions(family: str, folder: Path) -> None:
    models: dict[str, Callable[[], Any]] = {"var": make_var, "hart": make_hart, "infinity_star": make_star}
    pipe = Pipeline(LoadedModel("tiny", family, models[family](), None, {}), None)
    rows = measured(pipe, load_images(str(folder)), folder / "run")
    assert [len(own) for own in rows.values()] == [3, 3]
    for dense, pruned in zip(rows["dense"], rows["stepvar"], strict=True):
        assert dense["bits"][:-1] == pytest.approx(pruned["bits"][:-1]) and dense["bits"][-1] != pruned["bits"][-1]
        assert max(pruned["divergence"][:-1]) == pytest.approx(0, abs=1e-6) and pruned["divergence"][-1] > 0


def test_a_class_is_a_caption(folder: Path) -> None:
    pipe = Pipeline(LoadedModel("tiny", "var", make_var(), None, {}), None)
    (folder / "metadata.csv").write_text("file_name,label\na.png,3\nb.png,-1\n")
    classed = measured(pipe, load_images(str(folder), folder / "metadata.csv"), folder / "run")["dense"]
    plain = measured(pipe, load_images(str(folder)), folder / "plain")["dense"]
    assert classed[0]["bits"] != plain[0]["bits"]
    assert classed[1]["bits"] == pytest.approx(plain[1]["bits"], abs=1e-3)  # any class is the unconditional branch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in ("b.png", "a.png", "more/c.png"):
        Image.fromarray(np.full((8, 16, 3), 255, np.uint8)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_images_of_a_folder_and_their_captions(folder: Path) -> None:
    plain = load_images(str(folder))
    assert [image.name for image in plain.images] == ["a.png", "b.png", "more/c.png"] and not plain.captioned
    assert plain.images[0].pixels((4, 4)).shape == (3, 4, 4) and plain.images[0].pixels((4, 4)).eq(1).all()
    table = folder / "metadata.csv"
    table.write_text('file_name,text\nmore/c.png,"a cat, white"\na.png,a dog\n')
    captioned = load_images(str(folder), table)
    assert [(one.name, one.caption) for one in captioned.images] == [("a.png", "a dog"), ("more/c.png", "a cat, white")]
    (folder / "metadata.jsonl").write_text('{"image": "b.png", "label": 207}\n')
    (only,) = load_images(str(folder), folder / "metadata.jsonl").images
    assert (only.name, only.caption) == ("b.png", "207")


def test_a_limit_spreads_over_the_folder(folder: Path) -> None:
    assert [image.name for image in load_images(str(folder)).limited(2).images] == ["a.png", "b.png"]
    assert len(load_images(str(folder)).limited(9)) == 3


def test_renders_of_scenes_have_their_captions() -> None:
    scenes = load_images("scenes:3")
    assert scenes.captioned and len(scenes) == 3
    assert scenes.images[1].pixels((32, 16)).shape == (3, 16, 32)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "file_name,text\nz.png,a dog\n", "names none of the images"),
        ("t.csv", "file_name,text\na.png,\n", "row 1 needs file_name and text"),
        ("t.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("t.txt", "a.png a dog\n", r"must end in \.csv or \.jsonl"),
    ],
)
def test_captions_that_do_not_fit(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        load_images(str(folder), folder / name)


def test_images_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        load_images(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="has no image"):
        load_images(str(tmp_path))
    with pytest.raises(UsageError, match="scenes bring their own"):
        load_images("scenes:3", tmp_path / "t.csv")
