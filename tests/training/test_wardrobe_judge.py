"""The judge of pictures of clothes, with a network that nobody trained and photographs of which all is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.evaluation.metrics.scenes import decode_features
from stepvar.evaluation.prompts import Prompt
from training.wardrobe.captioned import Captioned
from training.wardrobe.captions import Description
from training.wardrobe.judge import PhotographJudge, answers, fit
from training.wardrobe.lite0 import Lite0
from training.wardrobe.probe import Probe, features

RED, BLUE, WHITE, GREEN = (200, 25, 25), (30, 60, 190), (243, 243, 243), (50, 140, 60)
SHOWN = {"00007": (RED, WHITE, "T-Shirt"), "00017": (BLUE, WHITE, "Dress"), "00027": (RED, WHITE, "T-Shirt")}


def garment(own: tuple[int, int, int], ground: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("RGB", (256, 256), ground)
    picture.paste(own, (50, 50, 206, 206))
    return picture


def prompt(text: str) -> Prompt:
    return Prompt(text.replace(" ", "-"), text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three held-out photographs, two of them with one caption, and two to train on."""
    for name, (own, ground, _) in SHOWN.items():
        garment(own, ground).save(tmp_path / f"{name}.png")
    garment(GREEN, WHITE).save(tmp_path / "00001.png")
    garment(WHITE, GREEN).save(tmp_path / "00002.png")
    lines = [f"{name}.png,{label},false" for name, (_, _, label) in SHOWN.items()]
    (tmp_path / "all.csv").write_text(
        "\n".join(["image,label,kids", *lines, "00001.png,Hat,false", "00002.png,Polo,false"]) + "\n"
    )
    return tmp_path


class Sees(Lite0):
    """In place of the network: the mean of the middle and of the edge."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images[:, :, 90:130, 90:130].mean((2, 3)), images[:, :, :8].mean((2, 3))], dim=1)


@pytest.fixture
def judge(folder: Path) -> PhotographJudge:
    torch.manual_seed(0)
    source, network = Captioned.held_out_of(folder), Sees()
    pictures = torch.cat([as_video(*SHOWN[name][:2])[:, 0] for name in SHOWN])
    probe = Probe.fit(features(pictures, network), [SHOWN[name][2] for name in SHOWN])
    return PhotographJudge(probe, network, source, torch.device("cpu"))


def as_video(own: tuple[int, int, int], ground: tuple[int, int, int]) -> Tensor:
    from numpy import asarray

    return torch.from_numpy(asarray(garment(own, ground)).copy()).permute(2, 0, 1)[None, None].float() / 255


def test_it_sees_what_a_picture_shows(judge: PhotographJudge) -> None:
    red, blue = "a red plain t-shirt on a white ground", "a blue plain dress on a white ground"
    assert sorted(judge.by_caption) == [blue, red]
    pictures = torch.cat([as_video(RED, WHITE), as_video(BLUE, WHITE), as_video(BLUE, WHITE), as_video(RED, GREEN)])
    rows = judge.judge([prompt(text) for text in (red, blue, red, red)], pictures)
    assert rows[0]["right"] == rows[1]["right"] == dict.fromkeys(("garment", "colour", "pattern", "ground"), True)
    assert rows[2]["right"] == {"garment": False, "colour": False, "pattern": True, "ground": True}
    assert rows[3]["right"]["colour"] and not rows[3]["right"]["ground"]
    stored = decode_features([row["features"] for row in rows])
    torch.testing.assert_close(stored.float(), features(pictures[:, 0], judge.network), atol=1e-3, rtol=1e-3)


def test_real_photographs_are_those_of_the_caption(judge: PhotographJudge) -> None:
    like = torch.zeros(2, 1, 3, 64, 64)
    shown = judge.render([prompt("a blue plain dress on a white ground")] * 2, [0, 1], like)
    assert shown.shape == like.shape and torch.equal(shown[0], shown[1])
    torch.testing.assert_close(shown[0, 0, :, 32, 32], torch.tensor(BLUE) / 255, atol=0.02, rtol=0)
    red = judge.source.photographs.facts
    own = [red[place].name for place in judge.by_caption["a red plain t-shirt on a white ground"]]
    assert own == ["00007.png", "00027.png"]
    with pytest.raises(UsageError, match="prompt 'a hat': no held-out photograph has this caption"):
        judge.render([prompt("a hat")], [0], like[:1])


def test_answers_are_of_what_the_caption_says() -> None:
    wanted = Description("Shoes", first="red", second="white", ground="brown", kind="wooden")
    seen: dict[str, Any] = {"first": "white", "second": "red", "ground": "beige", "kind": "wooden"}
    assert answers(wanted, Description("Hat", **seen)) == {
        "garment": False,
        "colour": False,
        "second colour": True,  # it is there, if not as the second one
        "ground": True,  # a wooden floor has no tone in a caption
    }
    plain = Description("Shoes", first="red", ground="brown")
    assert answers(plain, Description("Shoes", first="red", ground="brown", kind="patterned")) == {
        "garment": True,
        "colour": True,
        "ground": False,
    }


def test_a_probe_is_kept_as_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    middles = {"Hat": -2.0, "Dress": 0.0, "Shoes": 2.0}
    labels = [label for label in middles for _ in range(20)]
    found = torch.stack([torch.randn(8) * 0.3 + middles[label] for label in labels])
    probe = Probe.fit(found, labels)
    assert probe.labels == ("Dress", "Hat", "Shoes") and probe.read(found) == labels
    probe.save(tmp_path / "new" / "probe.safetensors")
    again = Probe.load(tmp_path / "new" / "probe.safetensors")
    assert again.labels == probe.labels and again.read(found + 0.1) == probe.read(found + 0.1)


def test_it_is_fitted_to_what_is_trained_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.wardrobe.judge.load_lite0", Sees)
    assert fit(folder, torch.device("cpu")).labels == ("Hat", "Polo")


def test_it_is_loaded_from_files(judge: PhotographJudge, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge.probe.save(folder / "probe.safetensors")
    monkeypatch.setattr("training.wardrobe.judge.load_lite0", Sees)
    again = PhotographJudge.load(folder / "probe.safetensors", folder, torch.device("cpu"))
    asked, pictures = [prompt("a red plain t-shirt on a white ground")], as_video(RED, WHITE)
    assert again.judge(asked, pictures) == judge.judge(asked, pictures)
    again.check(asked)
    with pytest.raises(UsageError, match="prompt 'a cat': no held-out photograph has this caption"):
        again.check([*asked, prompt("a cat")])


def test_what_is_missing_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe, device = tmp_path / "probe.safetensors", torch.device("cpu")
    with pytest.raises(UsageError, match=r"judge .*probe\.safetensors': no such file"):
        PhotographJudge.load(probe, folder, device)
    probe.write_bytes(b"something else")
    with pytest.raises(UsageError, match=r"photographs .*nowhere: no such folder"):
        PhotographJudge.load(probe, tmp_path / "nowhere", device)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"photographs .*empty: none is held out"):
        PhotographJudge.load(probe, tmp_path / "empty", device)
    monkeypatch.setattr("training.wardrobe.judge.load_lite0", Sees)
    with pytest.raises(UsageError, match=r"probe .*probe\.safetensors: is no probe"):
        PhotographJudge.load(probe, folder, device)
    save_file({"weight": torch.zeros(1)}, probe)
    with pytest.raises(UsageError, match=r"probe .*probe\.safetensors: is no probe"):
        PhotographJudge.load(probe, folder, device)

    def missing() -> Lite0:
        raise FileNotFoundError("some-package: not installed; pip install some-package")

    monkeypatch.setattr("training.wardrobe.judge.load_lite0", missing)
    with pytest.raises(UsageError, match="judge: some-package: not installed"):
        PhotographJudge.load(probe, folder, device)
