"""Rows of a batch job: what is read of a file, and what a bad row is told."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from stepvar.errors import UsageError
from stepvar.serving.batch.rows import Row, read_rows, row_seed

CSV = 'id,prompt,seed,aspect_ratio,who\nfirst,"a red circle, large",3,3:2,me\n,a blue square,,,\n'


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def lines(tmp_path: Path, *rows: object) -> list[Row]:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    return read_rows(write(tmp_path / "rows.jsonl", text), seed=0)


def test_columns_of_json_lines_are_read_and_others_kept(tmp_path: Path) -> None:
    given = {"id": "one", "prompt": "a circle", "seed": 7, "negative_prompt": "", "aspect_ratio": [3, 2], "tags": ["x"]}
    (row,) = lines(tmp_path, given)
    assert row == Row("one", "line 1", "a circle", 7, "", "3:2", other={"tags": ["x"]})


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    first, second = read_rows(write(tmp_path / "rows.csv", CSV), seed=0)
    assert first == Row("first", "line 2", "a red circle, large", 3, None, "3:2", other={"who": "me"})
    assert (second.prompt, second.seed) == ("a blue square", row_seed(0, second.id))
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install '.[batch]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"id": ["first", None], "prompt": ["a red circle, large", "a blue square"], "seed": [3, None]}
    table = arrow.table(columns | {"aspect_ratio": ["3:2", None], "who": ["me", None]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    from_parquet = read_rows(tmp_path / "rows.parquet", seed=0)
    assert [row.place for row in from_parquet] == ["row 1", "row 2"]
    for one, other in zip((first, second), from_parquet, strict=True):
        assert (one.id, one.prompt, one.seed, one.other) == (other.id, other.prompt, other.seed, other.other)


def test_numbers_among_missing_ones_are_ids_and_seeds(tmp_path: Path) -> None:
    first, second = lines(tmp_path, {"id": 7.0, "prompt": "a circle", "seed": 3.0}, {"id": 7.5, "prompt": "a circle"})
    assert (first.id, first.seed, first.error) == ("7", 3, None)
    assert second.error is not None and second.error.startswith("id=7.5: names a file")


def test_ids_and_seeds_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    one, other = {"prompt": "a circle"}, {"prompt": "a square"}
    there, back = lines(tmp_path, one, other), lines(tmp_path, other, one)
    assert [(row.id, row.seed) for row in there] == [(row.id, row.seed) for row in reversed(back)]
    assert there[0].seed != there[1].seed
    assert read_rows(tmp_path / "rows.jsonl", seed=1)[0].seed != back[0].seed


def test_rows_that_are_repeated_have_ids_and_seeds_of_their_own(tmp_path: Path) -> None:
    first, second = lines(tmp_path, {"prompt": "a circle"}, {"prompt": "a circle"})
    assert second.id == f"{first.id}-2"
    assert first.seed != second.seed
    assert [row.error for row in (first, second)] == [None, None]


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ("{broken", "is no JSON"),
        ("[1]", "is no object"),
        ({"seed": 1}, "prompt: is missing"),
        ({"prompt": "  "}, "prompt: is missing"),
        ({"prompt": ["a"]}, "prompt=.*must be a text"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "seed": "x"}, "seed='x'"),
        ({"prompt": "a", "aspect_ratio": "wide"}, "aspect_ratio='wide'"),
        ({"prompt": "a", "guidance_scale": "much"}, "guidance_scale='much': must be a number"),
        ({"prompt": "a", "id": "../a"}, "id='../a': names a file"),
    ],
)
def test_a_bad_row_says_what_is_wrong_and_leaves_the_others(tmp_path: Path, row: object, error: str) -> None:
    bad, good = lines(tmp_path, row, {"prompt": "a circle"})
    assert bad.error is not None
    assert re.search(error, bad.error)
    assert good.error is None


def test_an_id_that_two_rows_have_is_refused_to_the_second(tmp_path: Path) -> None:
    first, second = lines(tmp_path, {"id": "A", "prompt": "a circle"}, {"id": "a", "prompt": "a square"})
    assert first.error is None
    assert second.error == "id 'a': is that of line 1, too; give each row its own"


def test_a_bad_row_takes_no_id_that_another_row_gives(tmp_path: Path) -> None:
    bad, good = lines(tmp_path, "no JSON", {"id": "line-1", "prompt": "a circle"})
    assert bad.id == "line 1" and bad.error is not None
    assert good.id == "line-1" and good.error is None


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    for name, text, error in (
        ("rows.txt", "a", r"must end in \.jsonl"),
        ("rows.jsonl", "\n", "has no rows"),
        ("rows.csv", "text\na", "has no column 'prompt'"),
        ("rows.parquet", "PAR1", "cannot be read as Parquet|needs the package pyarrow"),
    ):
        with pytest.raises(UsageError, match=error):
            read_rows(write(tmp_path / name, text), seed=0)


def test_what_cannot_be_written_again_is_the_error_of_its_row(tmp_path: Path) -> None:
    deep = '{"id": "deep", "prompt": "a circle", "tags": ' + "[" * 900 + "]" * 900 + "}"
    halves = ('{"prompt": "\\ud800"}', '{"prompt": "a", "tag": ["\\udfff"]}', '{"prompt": "a", "\\ud800": 1}')
    rows = lines(tmp_path, deep, *halves, {"prompt": "a circle"})
    assert "nested" in (rows[0].error or "") and rows[-1].error is None
    assert all("lone surrogate" in (row.error or "") for row in rows[1:-1])
    for row in rows:
        json.dumps(asdict(row), ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    "text, said",
    [
        ("prompt,prompt\na,b\n", "several columns 'prompt'"),
        ('prompt\n"a circle\na square\na star\n', "line .* no CSV"),
        ("prompt, seed\na circle, 3\n", "column ' seed': has spaces around its name; write 'seed'"),
    ],
    ids=["two columns of one name", "a quote without its end", "a space behind a comma"],
)
def test_a_csv_file_that_would_be_misread_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_rows(write(tmp_path / "rows.csv", text), seed=0)
