"""The nodes for ComfyUI, called as ComfyUI calls them, and the workflows that come with them."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stepvar import Compose, DropGuidance, Pipeline, StepVAR
from stepvar.checkpoints import save_model
from stepvar.errors import UsageError
from stepvar.models.infinity import Infinity
from stepvar.models.var import VAR
from stepvar.text import WordEncoder
from tests.helpers import TINY, TINY_STAR, make_star
from tests.integrations.comfyui_stand_in import Cancelled, ComfyUI

PACK = Path(__file__).parents[2] / "integrations" / "comfyui"
WORKFLOWS = ("image", "video")
WORDS: dict[str, Any] = {
    "vocabulary": ["a", "circle", "red", "sand"],
    "synonyms": {},
    "layers": 1,
    "hidden": 32,
    "max_words": 15,
}
DEFAULTS = {"seed": 3, "batch_size": 1, "guidance_scale": 0.0, "aspect_ratio": "", "resolution": "", "seconds": -1.0}


@pytest.fixture(scope="module")
def comfy(tiny_model: Infinity, tiny_var: VAR, tmp_path_factory: pytest.TempPathFactory) -> ComfyUI:
    """With three models in its folder of models, and a file that is none."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    words = WORDS | {"width": TINY.text_channels}
    save_model(root / "stepvar/tiny", "tiny", tiny_model, WordEncoder(**words), words, {}, torch.float32)
    save_model(root / "stepvar/tiny-var", "tiny-var", tiny_var, None, None, {}, torch.float32)
    words = WORDS | {"width": TINY_STAR.text_channels}
    save_model(root / "stepvar/tiny-star", "tiny-star", make_star(), WordEncoder(**words), words, {}, torch.float32)
    (root / "stepvar/notes.txt").write_text("no model")
    return ComfyUI(root)


@pytest.fixture(scope="module")
def pack(comfy: ComfyUI) -> Any:
    """The pack, loaded from its folder under a name of ComfyUI's own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in comfy.modules().items():
            patch.setitem(sys.modules, name, module)
        spec = spec_from_file_location("custom_nodes_stepvar", PACK / "__init__.py")
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def nodes(pack: ModuleType, comfy: ComfyUI) -> dict[str, Any]:
    comfy.shown.clear()
    comfy.cancel_after = None
    extension = asyncio.run(pack.comfy_entrypoint())
    return {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}


def run(node: Any, **given: Any) -> Any:
    """The outputs of a node; inputs that are not given have their defaults, as in a new node."""
    declared = {one.id: one.given["default"] for one in node.define_schema().inputs if "default" in one.given}
    return node.execute(**(declared | given)).args


@pytest.fixture
def pipe(nodes: dict[str, Any]) -> Pipeline:
    (loaded,) = run(nodes["StepVARLoadModel"], model="tiny")
    return loaded


def test_what_execute_takes_is_what_the_schema_declares(nodes: dict[str, Any]) -> None:
    assert len(nodes) == 5
    for name, node in nodes.items():
        schema, parameters = node.define_schema(), inspect.signature(node.execute).parameters
        assert list(parameters) and {one.id for one in schema.inputs} == parameters.keys(), name
        for one in schema.inputs:
            assert (parameters[one.id].default is inspect.Parameter.empty) != bool(one.given.get("optional")), one.id
        options = {one.id: one.given["options"] for one in schema.inputs if one.kind == "Combo"}
        for one in schema.inputs:
            assert one.kind != "Combo" or one.given["default"] in options[one.id], one.id


def test_models_are_embedded_in_the_folder_and_on_the_hub(nodes: dict[str, Any]) -> None:
    options = nodes["StepVARLoadModel"].define_schema().inputs[0].given["options"]
    assert options[:6] == ["scenes", "scenes-video", "wardrobe", "tiny", "tiny-star", "tiny-var"]
    assert "FoundationVision/Infinity 2b" in options and "notes.txt" not in options


def test_the_image_is_to_the_bit_that_of_the_pipeline(nodes: dict[str, Any], pipe: Pipeline) -> None:
    (text,) = run(nodes["StepVARText"], text=" a red circle ", negative="sand")
    (method,) = run(nodes["StepVARMethod"], method="stepvar", settings="keep=0.5 last=2")
    given = {"model": pipe, "text": text, "method": method} | DEFAULTS | {"batch_size": 2, "guidance_scale": 2.0}
    latent, report = run(nodes["StepVARSampler"], **given)
    images, fps = run(nodes["StepVARDecode"], model=pipe, latent=latent)
    expected = pipe(
        *("a red circle", "sand"), seed=3, num_images_per_prompt=2, guidance_scale=2, method=StepVAR(keep=0.5, last=2)
    )
    assert images.shape == (2, 32, 32, 3) and images.dtype == torch.float32 and isinstance(fps, float)
    # As ComfyUI's Save Image makes levels of 8 bits: without rounding.
    saved = np.clip(255.0 * images.numpy(), 0, 255).astype(np.uint8)
    assert [one.tobytes() for one in saved] == [one.tobytes() for one in expected.images]
    assert "stepvar" in report and "8x8" in report


def test_every_level_of_8_bits_survives_saving() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert np.array_equal((255.0 * (levels.float() / 255).numpy()).astype(np.uint8), levels.numpy())


def test_the_picture_so_far_is_shown_after_each_scale(nodes: dict[str, Any], pipe: Pipeline, comfy: ComfyUI) -> None:
    (text,) = run(nodes["StepVARText"], text="a red circle")
    run(nodes["StepVARSampler"], model=pipe, text=text, **DEFAULTS)
    scales = comfy.shown[-1][1]
    assert [entry[:2] for entry in comfy.shown] == [(done, scales) for done in range(1, scales + 1)]
    pictures = [preview[1] for _, _, preview in comfy.shown[:-1]]
    assert all(isinstance(picture, Image.Image) and picture.size == (32, 32) for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures) and comfy.shown[-1][2] is None
    comfy.shown.clear()
    run(nodes["StepVARSampler"], model=pipe, text=text, **DEFAULTS, preview=False)
    assert [preview for _, _, preview in comfy.shown] == [None] * scales


def test_cancelling_ends_the_generation_and_the_next_one_runs(
    nodes: dict[str, Any], pipe: Pipeline, comfy: ComfyUI
) -> None:
    (text,) = run(nodes["StepVARText"], text="a red circle")
    comfy.cancel_after = 2
    with pytest.raises(Cancelled):
        run(nodes["StepVARSampler"], model=pipe, text=text, **DEFAULTS)
    assert len(comfy.shown) == 2
    comfy.cancel_after = None
    latent, _ = run(nodes["StepVARSampler"], model=pipe, text=text, **DEFAULTS)
    assert len(latent) == 1


def test_videos_become_frames_and_a_rate(nodes: dict[str, Any]) -> None:
    (pipe,) = run(nodes["StepVARLoadModel"], model="tiny-star")
    (text,) = run(nodes["StepVARText"], text="a red circle")
    start = torch.rand(1, 40, 40, 3)
    given: dict[str, Any] = {"model": pipe, "text": text, "image": start} | DEFAULTS | {"seconds": 1.0}
    latent, _ = run(nodes["StepVARSampler"], **given)
    frames, fps = run(nodes["StepVARDecode"], model=pipe, latent=latent)
    picture = Image.fromarray((start[0] * 255).round().byte().numpy())
    expected = pipe("a red circle", seed=3, seconds=1, image=picture, output_type="np").videos[0]
    assert fps == TINY_STAR.fps and torch.equal((frames * 255).round().byte(), torch.from_numpy(expected))


def test_classes_are_named_in_the_text(nodes: dict[str, Any]) -> None:
    (pipe,) = run(nodes["StepVARLoadModel"], model="tiny-var")
    (text,) = run(nodes["StepVARText"], text="3")
    latent, _ = run(nodes["StepVARSampler"], model=pipe, text=text, **DEFAULTS)
    images, _ = run(nodes["StepVARDecode"], model=pipe, latent=latent, tile=0)
    expected = pipe(class_labels="3", seed=3, output_type="np").images
    assert torch.equal((images * 255).round().byte(), torch.from_numpy(expected))


def test_methods_act_together(nodes: dict[str, Any]) -> None:
    node = nodes["StepVARMethod"]
    (first,) = run(node, method="drop-guidance", settings="last=2")
    (both,) = run(node, method="stepvar", settings="keep=0.4", speedup=1.5, together_with=first)
    assert both.method == Compose(DropGuidance(last=2), StepVAR(keep=0.4)) and both.speedup == 1.5
    (auto,) = run(node, method="auto", speedup=2.0)
    assert (auto.method, auto.speedup) == ("auto", 2.0)
    with pytest.raises(UsageError, match="keeping: not a setting of method 'stepvar'"):
        run(node, method="stepvar", settings="keeping=0.4")
    with pytest.raises(UsageError, match="auto: acts alone"):
        run(node, method="auto", speedup=2.0, together_with=first)
    with pytest.raises(UsageError, match=r"settings 'keep=0\.4': auto finds its own"):
        run(node, method="auto", settings="keep=0.4", speedup=2.0)


def test_a_workflow_cannot_name_files_or_code(nodes: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    """Not every version of ComfyUI holds values to the options of a list: 0.3.64 does not, 0.33.0 does."""
    (tmp_path / "own.py").write_text("raise SystemExit('was run')")
    monkeypatch.chdir(tmp_path)
    for method in ("own:Class", "stepvar+own:Class"):
        with pytest.raises(UsageError, match=rf"method '{re.escape(method)}': choose one of the list"):
            run(nodes["StepVARMethod"], method=method)
    for model in ("/etc/passwd", "../stepvar/tiny", "me/model"):
        with pytest.raises(UsageError, match=f"model '{model}': choose one of the list, or put it into models/stepvar"):
            run(nodes["StepVARLoadModel"], model=model)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_is_the_same_in_both_of_its_forms(name: str, nodes: dict[str, Any]) -> None:
    """What the page shows, and what is posted to ``/prompt``."""
    shown = json.loads((PACK / "example_workflows" / f"{name}.json").read_text())
    posted = json.loads((PACK / "api_workflows" / f"{name}.json").read_text())
    sources = {link[0]: [str(link[1]), link[2]] for link in shown["links"]}
    assert {str(node["id"]): node["type"] for node in shown["nodes"]} == {
        key: node["class_type"] for key, node in posted.items()
    }
    for node in shown["nodes"]:
        values = [value for value in node["widgets_values"] if value != "fixed"]  # what the seed does after a run
        widgets = [one["name"] for one in node["inputs"] if "widget" in one]
        links = {one["name"]: sources[one["link"]] for one in node["inputs"] if one.get("link") is not None}
        assert dict(zip(widgets, values, strict=True)) | links == posted[str(node["id"])]["inputs"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_uses_inputs_that_nodes_have(name: str, nodes: dict[str, Any]) -> None:
    for node in json.loads((PACK / "api_workflows" / f"{name}.json").read_text()).values():
        if node["class_type"] not in nodes:
            assert node["class_type"] in ("SaveImage", "CreateVideo", "SaveVideo")
            continue
        inputs = {one.id: one for one in nodes[node["class_type"]].define_schema().inputs}
        assert node["inputs"].keys() <= inputs.keys()
        required = {key for key, one in inputs.items() if not one.given.get("optional")}
        assert required <= node["inputs"].keys()
        for key, value in node["inputs"].items():
            assert inputs[key].kind != "Combo" or value in inputs[key].given["options"]


@pytest.mark.parametrize("own", [{"quantization": "int3"}, {"offload": "everything"}], ids=str)
def test_a_choice_that_is_not_in_its_list_is_refused(nodes: dict[str, Any], own: dict[str, str]) -> None:
    """Workflows that were written by hand, or for another version, may hold any."""
    with pytest.raises(UsageError, match="choose one of none"):
        run(nodes["StepVARLoadModel"], model="tiny", **own)


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (1, 8, 8, 1), (1, 8, 8), (1, 0, 8, 3)], ids=str)
def test_what_is_no_image_is_refused(nodes: dict[str, Any], pipe: Pipeline, shape: tuple[int, ...]) -> None:
    (text,) = run(nodes["StepVARText"], text="a red circle")
    with pytest.raises(UsageError, match="image of shape"):
        run(nodes["StepVARSampler"], model=pipe, text=text, image=torch.zeros(shape), **DEFAULTS)
