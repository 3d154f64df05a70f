"""Captions by rule, and the grammar they follow.

    [a | an] [child's] [colour [and colour]] [pattern] garment [on [a | an] ground]

``garment`` is one of ``GARMENTS`` by label, ``colour`` one of ``COLOURS``, ``pattern`` plain, striped or printed, and
``ground`` a colour word and "ground", "wooden floor", or a colour word and "patterned ground". Every part but the
garment may be left out. "a red and white striped t-shirt on a wooden floor".
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from training.wardrobe.colours import COLOURS
from training.wardrobe.measure import KINDS, PATTERNS, Seen

GARMENTS: dict[str, tuple[str, ...]] = {
    "T-Shirt": ("t-shirt", "tee"),
    "Longsleeve": ("longsleeve", "sweater"),
    "Pants": ("pants", "trousers"),
    "Shoes": ("shoes",),
    "Shirt": ("shirt",),
    "Dress": ("dress",),
    "Outwear": ("jacket", "coat"),
    "Shorts": ("shorts",),
    "Hat": ("hat", "cap"),
    "Skirt": ("skirt",),
    "Polo": ("polo", "polo shirt"),
    "Undershirt": ("undershirt", "sleeveless shirt"),
    "Blazer": ("blazer",),
    "Hoodie": ("hoodie",),
    "Body": ("bodysuit", "romper"),
    "Top": ("top",),
    "Blouse": ("blouse",),
    "Other": ("garment",),
}
"""Label of the data set -> words for it, the usual one first."""

UNPATTERNED = ("Shoes", "Hat")
"""Labels whose parts differ so much that the rule for patterns says nothing of them."""
PLURAL = ("pants", "trousers", "shoes", "shorts")
KEPT = {"colour": 0.94, "second": 0.9, "pattern": 0.95, "ground": 0.9}
"""Chance that a training caption says a part that is known."""
USUAL = 0.75
"""Chance of the usual word for a garment that has two."""

SYNONYMS: dict[str, str] = {
    "an": "a",
    "gray": "grey",
    "teal": "turquoise",
    "violet": "purple",
    "cream": "beige",
    "tan": "beige",
    "kids": "child",
    "children": "child",
    "baby": "child",
    "stripy": "striped",
    "patterned": "printed",
    "background": "ground",
    "sheet": "ground",
    "wood": "wooden",
    "jeans": "pants",
    "tshirt": "tee",
    "undershirts": "undershirt",
    "jumper": "sweater",
    "pullover": "sweater",
    "beanie": "hat",
    "sneakers": "shoes",
    "boots": "shoes",
}


@dataclass(frozen=True)
class Description:
    """What a caption can say of one photograph; "" for what is not known.

    Attributes:
        label: of the data set.
        child: whether it is a child's.
        first, second: colour words.
        pattern, ground, kind: words of ``PATTERNS``, ``COLOURS`` and ``KINDS``.
    """

    label: str
    child: bool = False
    first: str = ""
    second: str = ""
    pattern: str = ""
    ground: str = ""
    kind: str = ""


def describe(labels: list[str], children: list[bool], seen: Seen) -> list[Description]:
    """Labels and measurements of B photographs -> descriptions."""
    rows = zip(labels, children, *(getattr(seen, f).tolist() for f in Seen.__dataclass_fields__), strict=True)
    return [
        Description(
            label,
            child,
            COLOURS[first],
            COLOURS[second] if second >= 0 else "",
            "" if label in UNPATTERNED else PATTERNS[pattern],
            COLOURS[ground],
            KINDS[kind],
        )
        for label, child, first, second, pattern, ground, kind in rows
    ]


def ground_words(item: Description) -> str:
    """What a caption calls the ground."""
    if item.kind == "wooden":
        return "wooden floor"
    return f"{item.ground} {item.kind} ground".replace("  ", " ")


def _with_article(words: list[str]) -> str:
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def caption(item: Description, rng: random.Random | None = None) -> str:
    """The full caption; with ``rng`` a training caption, in which known parts are left out now and then."""

    def kept(part: str) -> bool:
        return rng is None or rng.random() < KEPT[part]

    words: list[str] = []
    if item.child:
        words.append("child's")
    if item.first and kept("colour"):
        words.append(item.first)
        if item.second and kept("second"):
            words += ["and", item.second]
    if item.pattern and kept("pattern"):
        words.append(item.pattern)
    names = GARMENTS[item.label]
    name = names[0] if rng is None or rng.random() < USUAL else rng.choice(names)
    words.append(name)
    said = " ".join(words) if name in PLURAL else _with_article(words)
    if item.ground and kept("ground"):
        said += " on " + _with_article(ground_words(item).split())
    return said


def words_of(text: str) -> list[str]:
    """The words as the text encoder splits them."""
    return re.findall(r"[^\W\d_]+", text.lower())


def vocabulary() -> list[str]:
    """All words that captions use and synonyms stand for, sorted."""
    texts = [name for names in GARMENTS.values() for name in names]
    texts += [*COLOURS, *PATTERNS, *KINDS, "a an child's and on ground wooden floor"]
    known = {word for text in texts for word in words_of(text)}
    return sorted(known | set(SYNONYMS.values()) | set(SYNONYMS))
