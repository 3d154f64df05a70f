"""What users of other libraries do with a pipeline and its results without a second thought."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepvar import Pipeline
from stepvar.cli import main
from stepvar.cli.options import parse_method
from stepvar.engine import Engine
from stepvar.errors import CheckpointError, OutputError, UsageError
from stepvar.evaluation import prompts
from stepvar.models.infinity_star.config import CONFIGS as STAR
from stepvar.models.infinity_star.config import InfinityStarConfig
from stepvar.models.var.config import VARConfig
from tests.helpers import TINY_VAR
from tests.pipeline.conftest import image


def test_an_output_is_also_what_diffusers_returns(pipe: Pipeline) -> None:
    out = pipe(class_labels=3, seed=1)
    assert out[0] is out.images and out[0][0].size == out.images[0].size
    with pytest.raises(UsageError, match=r"Output.frames: videos are .videos"):
        _ = out.frames
    with pytest.raises(AttributeError, match=r"Output.image: .*did you mean 'images'"):
        _ = out.image
    assert not hasattr(out, "nsfw_content_detected") and len(copy.copy(out).images) == 1


def test_a_pipeline_can_be_copied(pipe: Pipeline) -> None:
    other = copy.deepcopy(pipe)
    assert other.engine is not pipe.engine and other.model is not pipe.model
    assert np.array_equal(image(other), image(pipe))
    assert isinstance(pickle.loads(pickle.dumps(Engine("eager"))), Engine)


def test_a_single_file_is_read_by_that_name(pipe: Pipeline, tmp_path: Path) -> None:
    folder = pipe.save_pretrained(tmp_path / "saved")
    assert np.array_equal(image(Pipeline.from_single_file(folder)), image(pipe))


@pytest.mark.parametrize("given", [["keep=0.4", "keep=0.5"], ["stepvar.keep=0.4", "stepvar.keep=0.5"]])
def test_two_values_for_one_setting_are_refused(given: list[str]) -> None:
    with pytest.raises(UsageError, match=r"is .0.4. already; give one of the two"):
        parse_method("stepvar", {}, given)
    with pytest.raises(UsageError, match=r"keep is .0.4. already"):
        parse_method("stepvar", {"keep": "0.4"}, ["keep=0.5"])
    assert parse_method("stepvar", {"keep": "0.4"}, ["keep=0.4"]).settings()["keep"] == 0.4


def test_a_place_of_thousands_of_characters_is_named(pipe: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"{'x' * 5000}/image.png"
    with pytest.raises(OutputError, match="a name of 5000 bytes; at most"):
        pipe(class_labels=3, seed=1).save(place)
    assert main(["generate", "a cat", "--model", "nope", "--out", place]) != 0
    assert capsys.readouterr().err.count("\n") == 1


def test_prompts_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MOST_PROMPTS", 3)
    (tmp_path / "many.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(UsageError, match="4 prompts; at most 3, split the file"):
        prompts.load_prompts(str(tmp_path / "many.txt"))


@pytest.mark.parametrize(
    ("config", "values", "said"),
    [
        (STAR["480p"], {"fps": 0}, "fps=0: at least 1"),
        (STAR["480p"], {"latents": [-4]}, "latents=-4: at least 1"),
        (STAR["480p"], {"shapes": [[[0, 4]]]}, "shapes=0: at least 1"),
        (TINY_VAR, {"heads": -2}, "heads=-2: at least 1"),
        (TINY_VAR, {"depth": 0}, "depth=0: at least 1"),
        (TINY_VAR, {"width": 10**9}, "width=1000000000: at most 1000000"),
    ],
)
def test_sizes_of_a_damaged_configuration_are_named(config: Any, values: dict[str, Any], said: str) -> None:
    kind = InfinityStarConfig if config is STAR["480p"] else VARConfig
    given = json.loads(json.dumps(config.to_dict())) | values
    with pytest.raises(CheckpointError, match=said):
        kind.from_dict(given)
    assert kind.from_dict(json.loads(json.dumps(config.to_dict()))) == config
