"""Model cards of the embedded models: in the hub's format, with measured figures."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from benchmarks.tables import card_tables, with_table
from stepvar.checkpoints import EMBEDDED

ROOT = Path(__file__).parents[2]


def card_of(name: str) -> str:
    return Path(str(files("stepvar") / "weights" / name / "README.md")).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_every_embedded_model_has_a_card_that_the_hub_can_read(name: str) -> None:
    card = ModelCard(card_of(name))
    known = card.data.to_dict()
    assert (known["license"], known["library_name"], known["language"]) == ("apache-2.0", "stepvar", "en")
    assert known["pipeline_tag"] in ("text-to-image", "text-to-video") and known["tags"]
    headings = re.findall(r"^## (.+)$", card.text, re.MULTILINE)
    assert {"Uses", "Data", "Training", "Measured quality", "Limits"} <= set(headings)
    assert "](" not in card.text  # relative links would break on one side or the other


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_figures_of_a_card_are_the_stored_results(name: str) -> None:
    text = card_of(name)
    assert with_table(text, card_tables()[name]) == text


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_the_page_of_a_model_shows_its_card(name: str) -> None:
    page = (ROOT / "docs" / "models" / f"{name}.md").read_text(encoding="utf-8")
    assert f'--8<-- "src/stepvar/weights/{name}/README.md:card"' in page
