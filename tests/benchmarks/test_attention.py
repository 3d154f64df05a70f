"""The benchmark of sparse attention runs without a GPU."""

from pathlib import Path

from benchmarks import attention


def test_a_table_of_both_kinds_of_layers(tmp_path: Path) -> None:
    attention.main(["--variants", "2b", "--out", str(tmp_path / "attention.md")])
    rows = [line for line in (tmp_path / "attention.md").read_text().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:-1]] == [f"| {side}x{side}" for side in (8, 8, 12, 12, 16, 16)]
    assert sum("11 CS4A" in row for row in rows) == sum("21 CSLA" in row for row in rows) == 3
    assert rows[-1].startswith(("| all, faster", "| all, not faster"))
