"""The captions' rule on pictures small enough to know the answer, and the grammar."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from stepvar.errors import UsageError
from training.wardrobe import held_out
from training.wardrobe.captions import Description, caption, describe, vocabulary, words_of
from training.wardrobe.colours import COLOURS, name_pixels, to_lab, turn_hue
from training.wardrobe.looks import fine_detail, hue_error, psnr, sheet
from training.wardrobe.measure import FINE, KINDS, Measurer, Seen
from training.wardrobe.parts import join_parts, split_file
from training.wardrobe.photographs import Facts, Photographs, choose_boxes, middle_boxes, read_photographs
from training.wardrobe.prompts import category, main, prompts
from training.wardrobe.regions import garment_chance

RED, WHITE, BLUE, WOOD = (0.8, 0.1, 0.1), (0.95, 0.95, 0.95), (0.15, 0.25, 0.75), (0.6, 0.42, 0.25)


def plain(colour: tuple[float, float, float], side: int = FINE) -> Tensor:
    return torch.tensor(colour).view(3, 1, 1).expand(3, side, side).clone()


def garment(own: Tensor, ground: Tensor) -> Tensor:
    """A square garment in the middle of a ground; (1, 3, side, side)."""
    picture, side = ground.clone(), ground.shape[-1]
    part = slice(side // 5, side - side // 5)
    picture[:, part, part] = own[:, part, part]
    return picture.unsqueeze(0)


def striped() -> Tensor:
    rows = torch.where(torch.arange(FINE) % 12 < 6, 1.0, 0.0).view(1, FINE, 1)
    return plain(RED) * rows + plain(WHITE) * (1 - rows)


@pytest.mark.parametrize(
    ("rgb", "word"),
    [
        ((0.02, 0.02, 0.02), "black"),
        ((0.5, 0.5, 0.5), "grey"),
        (WHITE, "white"),
        (RED, "red"),
        ((0.95, 0.65, 0.75), "pink"),
        ((0.95, 0.5, 0.1), "orange"),
        ((0.4, 0.26, 0.15), "brown"),
        ((0.85, 0.77, 0.65), "beige"),
        ((0.95, 0.85, 0.2), "yellow"),
        ((0.2, 0.55, 0.25), "green"),
        ((0.2, 0.7, 0.7), "turquoise"),
        (BLUE, "blue"),
        ((0.1, 0.11, 0.25), "navy"),
        ((0.5, 0.2, 0.6), "purple"),
    ],
)
def test_every_colour_word_names_its_colour(rgb: tuple[float, float, float], word: str) -> None:
    assert COLOURS[int(name_pixels(to_lab(plain(rgb, 1)[None])))] == word


def test_lab_of_white_and_of_red() -> None:
    lab = to_lab(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]).view(2, 3, 1, 1)).view(2, 3)
    torch.testing.assert_close(lab[0], torch.tensor([100.0, 0.0, 0.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(lab[1], torch.tensor([53.24, 80.09, 67.20]), atol=0.1, rtol=0)


def test_turning_the_hue_keeps_greys_and_names_colours_anew() -> None:
    grey, red = plain((0.4, 0.4, 0.4), 2)[None], plain((0.7, 0.2, 0.2), 2)[None]
    torch.testing.assert_close(turn_hue(grey, torch.tensor([120.0])), grey, atol=1e-4, rtol=0)
    torch.testing.assert_close(turn_hue(red, torch.tensor([0.0])), red, atol=1e-4, rtol=0)
    measurer = Measurer.of(garment(plain((0.7, 0.2, 0.2)), plain(WHITE)))
    seen = measurer.look()
    assert COLOURS[int(seen.first)] == "red"
    turned = measurer.turned(seen, 240.0)
    assert COLOURS[int(turned.first)] in ("green", "blue", "turquoise")
    assert COLOURS[int(turned.ground)] == "white"


def test_the_garment_is_found_by_colour_and_place() -> None:
    small = garment(plain(RED, 64), plain(WHITE, 64))
    chance = garment_chance(small)[0]
    assert chance[24:40, 24:40].min() > 0.9
    assert chance[:4].max() < 0.1


def test_colours_pattern_and_ground_are_told() -> None:
    pictures = torch.cat([garment(plain(BLUE), plain(WHITE)), garment(striped(), plain(BLUE))])
    first, second = describe(["Dress", "T-Shirt"], [False, True], Measurer.of(pictures).look())
    assert first == Description("Dress", False, "blue", "", "plain", "white", "")
    assert {second.first, second.second} == {"red", "white"}
    assert second.pattern == "striped" and second.ground == "blue"


def test_wood_has_a_tone_and_one_direction() -> None:
    torch.manual_seed(0)
    boards = plain(WOOD) * (1 + 0.08 * torch.randn(1, 1, FINE))
    seen = Measurer.of(torch.cat([garment(plain(BLUE), boards.clamp(0, 1)), garment(plain(BLUE), plain(WOOD))])).look()
    assert [KINDS[kind] for kind in seen.kind.tolist()] == ["wooden", ""]


def test_full_captions() -> None:
    assert caption(Description("T-Shirt", False, "red", "white", "striped", "beige", "wooden")) == (
        "a red and white striped t-shirt on a wooden floor"
    )
    assert caption(Description("Pants", True, "blue", "", "", "orange", "patterned")) == (
        "child's blue pants on an orange patterned ground"
    )
    assert caption(Description("Hat", False, "orange", "", "", "grey", "")) == "an orange hat on a grey ground"


def test_training_captions_vary_and_stay_within_the_vocabulary() -> None:
    rng, known = random.Random(0), set(vocabulary())
    item = Description("Longsleeve", True, "grey", "navy", "printed", "white", "patterned")
    said = {caption(item, rng) for _ in range(200)}
    assert len(said) > 10
    assert all(set(words_of(line)) <= known for line in said)
    assert all("longsleeve" in line or "sweater" in line for line in said)


def test_patterns_are_not_told_of_shoes() -> None:
    one = torch.zeros(1, dtype=torch.int64)
    (item,) = describe(["Shoes"], [False], Seen(one, one - 1, one + 3, one, one))
    assert item.pattern == ""


@pytest.mark.parametrize(
    ("pattern", "kind", "wanted"),
    [
        ("", "", "smooth"),
        ("plain", "", "smooth"),
        ("striped", "", "textured"),
        ("printed", "", "textured"),
        ("plain", "wooden", "textured"),
        ("", "patterned", "textured"),
    ],
)
def test_a_prompt_is_textured_by_what_its_caption_says(pattern: str, kind: str, wanted: str) -> None:
    assert category(Description("Dress", False, "red", "", pattern, "beige", kind)) == wanted
    unsaid = Description("Dress", False, "red", "", "", "", kind)
    assert category(unsaid) == "smooth" and caption(unsaid) == "a red dress"


def test_each_caption_is_a_prompt_once() -> None:
    hat, dress = Description("Hat", False, "red"), Description("Dress", False, "red", "", "striped")
    assert prompts([hat, dress, hat]) == [
        {"prompt": "a red hat", "category": "smooth"},
        {"prompt": "a red striped dress", "category": "textured"},
    ]


@pytest.fixture
def five_photographs(tmp_path: Path) -> Path:
    """Four are held out; the last one's label names no garment."""
    blue, stripes = garment(plain(BLUE), plain(WHITE)), garment(striped(), plain(BLUE))
    rows = [(1, stripes, "Skirt"), (7, blue, "Dress"), (17, stripes, "Shirt"), (27, blue, "Dress"), (37, blue, "Other")]
    for number, picture, _ in rows:
        pixels = (255 * picture[0].permute(1, 2, 0)).round().byte().numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number:05}.png")
    lines = ["image,label,kids", *(f"{number:05}.png,{label},false" for number, _, label in rows)]
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_prompts_are_of_held_out_photographs(five_photographs: Path) -> None:
    """Two captions of three held-out photographs; one is of a training photograph, one names no garment."""
    out = five_photographs / "new" / "prompts.jsonl"
    main(["--photographs", str(five_photographs), "--out", str(out)])
    found = {line["prompt"]: line["category"] for line in map(json.loads, out.read_text().splitlines())}
    assert found.pop("a blue plain dress on a white ground") == "smooth"
    ((text, kind),) = found.items()
    assert "striped shirt on a blue ground" in text and kind == "textured"
    main(["--photographs", str(five_photographs), "--out", str(out), "--count", "1"])
    assert len(out.read_text().splitlines()) == 1


def test_held_out_photographs_lie_in_a_folder_with_their_captions(five_photographs: Path, tmp_path: Path) -> None:
    arguments = ["--photographs", str(five_photographs), "--out", str(out := tmp_path / "held-out")]
    held_out.main([*arguments, "--count", "2"])
    with (out / "metadata.csv").open(newline="") as stream:
        captions = {row["file_name"]: row["text"] for row in csv.DictReader(stream)}
    assert captions.keys() == {"00007.png", "00027.png"}, "two of four, evenly spread"
    assert captions["00007.png"] == "a blue plain dress on a white ground"
    assert (out / "00027.png").read_bytes() == (five_photographs / "00027.png").read_bytes()
    with pytest.raises(UsageError, match="there already"):
        held_out.main(arguments)


def write_pictures(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (96, 128), "red").save(folder / "00001.png")
    Image.new("RGB", (96, 96), "blue").save(folder / "00007.png")
    (folder / "all.csv").write_text("image,label,kids\n00001.png,Dress,false\n00007.png,Hat,true\n00009.png,Hat,true\n")


def test_photographs_are_read_with_their_table(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a")
    plain_folder = tmp_path / "b"
    plain_folder.mkdir()
    Image.new("RGB", (800, 400), "green").save(plain_folder / "x7.png")
    photographs = read_photographs([tmp_path / "a", plain_folder], torch.device("cpu"))
    assert photographs.facts == [Facts("00001.png", "Dress", False), Facts("00007.png", "Hat", True), Facts("x7.png")]
    assert photographs.sizes.tolist() == [[128, 96], [96, 96], [172, 344]]
    assert photographs.where(True).tolist() == [1]
    assert photographs.where(False).tolist() == [0]
    assert photographs.where(False, labelled=False).tolist() == [0, 2]
    assert photographs.where(False, 1.333).tolist() == [0]
    held_out = read_photographs([tmp_path / "a", plain_folder], torch.device("cpu"), held_out=True)
    assert held_out.facts == [Facts("00007.png", "Hat", True)]


def test_crops_show_the_piece_asked_for() -> None:
    pixels = torch.zeros(1, 3, 344, 344, dtype=torch.uint8)
    pixels[0, 0, :, :100] = 255
    photographs = Photographs([Facts("1.png", "Hat")], pixels, torch.tensor([[200, 200]]), torch.full((1, 2), 0.5))
    index, straight = torch.tensor([0]), torch.tensor([False])
    boxes = torch.tensor([[50.0, 50.0, 100.0, 100.0]])
    piece = photographs.crop(index, boxes, straight, (100, 100))
    assert piece[0, 0, :, :49].min() > 0.99 and piece[0, 0, :, 52:].max() < 0.01
    mirrored = photographs.crop(index, boxes, ~straight, (100, 100))
    torch.testing.assert_close(mirrored, piece.flip(-1), atol=0.01, rtol=0)
    whole = middle_boxes(photographs, index, (80, 60))
    torch.testing.assert_close(whole, torch.tensor([[0.0, 25.0, 200.0, 150.0]]))
    torch.manual_seed(0)
    for _ in range(20):
        top, left, height, width = choose_boxes(photographs, index, (64, 64), 0.8, 1.2)[0].tolist()
        assert top >= 0 and left >= 0 and top + height <= 200.01 and left + width <= 200.01
        assert 1 / 1.21 <= height / width <= 1.21


def test_files_go_in_pieces_and_come_back(tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(bytes(range(250)))
    parts = split_file(tmp_path / "whole", tmp_path / "parts", size=100)
    assert [part.name for part in parts] == ["whole.part00", "whole.part01", "whole.part02"]
    join_parts(tmp_path / "parts", "whole", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == bytes(range(250))
    with pytest.raises(FileNotFoundError, match="no pieces"):
        join_parts(tmp_path, "other", tmp_path / "again")


def test_figures_of_copies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 32, 32)
    assert float(psnr(picture + 0.1, picture)) == pytest.approx(20.0, abs=1e-3)
    blurred = torch.nn.functional.avg_pool2d(picture, 5, 1, 2)
    assert float(fine_detail(blurred) / fine_detail(picture)) < 0.1
    assert float(hue_error(picture, picture)) == 0.0
    sheet(tmp_path / "sheet.png", [[picture[0], picture[0]]], [["two words", "one"]], side=32)
    assert Image.open(tmp_path / "sheet.png").size == (72, 64)
