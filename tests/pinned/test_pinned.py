"""What the package did when ``pinned.json`` was recorded, it does still: codes, pixels, counts and errors.

Every method, setting and way of sampling is run on a tiny model of each family, some on the embedded models, and
compared to the bit. That holds only where arithmetic is the same: with the recorded build of PyTorch on a processor
that rounds alike (``environment`` of the file). Elsewhere codes, logits, selections and pixels are not compared, as a
rounding may flip them; tokens, kept tokens, branches, operations and the texts of errors still are, and where all codes
agree, a few pixels to 1e-4, in bfloat16 and behind soft codes to more. The first test is skipped there, to say so.

``python -m tests.pinned.record`` records again. Only ``adapter.py`` knows names inside the package.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.pinned import adapter, cases
from tests.pinned.results import EXACT, environment, recorded, works

WORKS = works()


def test_arithmetic_is_as_recorded() -> None:
    if environment() != recorded()["environment"]:
        pytest.skip(f"recorded in {recorded()['environment']}, this is {environment()}: bits are not compared")


def test_every_case_is_recorded() -> None:
    assert list(WORKS) == list(recorded()["cases"]), "record the cases again: python -m tests.pinned.record"


def test_every_method_has_a_case() -> None:
    assert set(adapter.method_names()) <= {name for name, _ in cases.METHODS.values()}


@pytest.mark.parametrize("name", WORKS)
def test_pinned(name: str) -> None:
    now, then = WORKS[name](), recorded()["cases"][name]
    if isinstance(then, str):
        assert now == then
        return
    assert _counted(now) == _counted(then)
    if environment() == recorded()["environment"]:
        assert now == then
    elif "codes" in then and now["codes"] == then["codes"]:
        assert now["fingerprint"] == pytest.approx(then["fingerprint"], abs=_rounding(name))


def _rounding(name: str) -> float:
    """How far pixels in [-1, 1] may lie apart where arithmetic differs and the codes agree."""
    setting = name.rpartition("/")[2]
    if setting.startswith("half"):
        return 2e-2  # a bfloat16 near 1 is 2 ** -8 from the next one, and a decoder rounds many times
    return 1e-3 if setting.startswith("smooth") else 1e-4  # soft codes pass on how their logits were rounded


def _counted(result: dict[str, Any]) -> dict[str, Any]:
    """The part of a result that is the same on every machine."""
    return {name: value for name, value in result.items() if name not in (*EXACT, "fingerprint")}
