from __future__ import annotations

import pytest

from stepvar.errors import UsageError
from stepvar.models.var import class_index, class_names


def test_one_line_per_class() -> None:
    names = class_names()
    assert len(names) == 1000
    assert len({known[0] for known in names}) == 1000
    for known in names:
        assert known and all(name and name == name.lower().strip() for name in known)


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0, "tench"), (1, "goldfish"), (22, "bald eagle"), (99, "goose"), (151, "chihuahua"), (207, "golden retriever"),
        (250, "siberian husky"), (282, "tiger cat"), (291, "lion"), (340, "zebra"), (388, "giant panda"),
        (417, "balloon"), (483, "castle"), (510, "container ship"), (555, "fire engine"), (620, "laptop"),
        (701, "parachute"), (779, "school bus"), (850, "teddy"), (933, "cheeseburger"), (954, "banana"),
        (963, "pizza"), (980, "volcano"), (985, "daisy"), (999, "toilet tissue"),
    ],
)  # fmt: skip
def test_well_known_classes(index: int, name: str) -> None:
    assert class_names()[index][0] == name
    assert class_index(name) == class_index(index) == class_index(str(index)) == index


def test_every_first_name_is_found() -> None:
    assert [class_index(names[0]) for names in class_names()] == list(range(1000))


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("Golden Retriever", 207), ("golden_retriever", 207), (" GOLDEN-RETRIEVER ", 207), ("polar bear", 296),
        ("jack-o'-lantern", 607), ("Shih Tzu", 155), ("toilet paper", 999), ("orca", 148), ("T-shirt", 610),
        ("missile", 657),  # also another class's second name
    ],
)  # fmt: skip
def test_other_spellings_and_names(name: str, index: int) -> None:
    assert class_index(name) == index


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("golden retreiver", r"class 'golden retreiver': unknown; did you mean 'golden retriever'"),
        ("volcanoe", "did you mean 'volcano'"),
        ("qqqqqq", r"unknown; see class_names\(\) for all"),
        ("", "unknown"),
        ("crane", r"is several classes; say 'crane bird' \(134\) or 'crane machine' \(517\)"),
        ("corgi", r"'pembroke' \(263\) or 'cardigan dog' \(264\)"),
        (1000, "class 1000: must be between 0 and 999"),
        (-1, "class -1"),
        ("1000", "class 1000"),
    ],
)
def test_wrong_names_say_what_was_meant(name: str | int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        class_index(name)
