"""Files in pieces, for ways that carry only small ones: ``cat NAME.part* > NAME`` joins them again."""

from __future__ import annotations

from pathlib import Path

PART_BYTES = 14 << 20


def split_file(path: Path, folder: Path, size: int = PART_BYTES) -> list[Path]:
    """Writes ``NAME.part00``, ``NAME.part01`` ... into a folder, each of at most ``size`` bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes()
    written = []
    for number, start in enumerate(range(0, len(content), size)):
        part = folder / f"{path.name}.part{number:02d}"
        part.write_bytes(content[start : start + size])
        written.append(part)
    return written


def join_parts(folder: Path, name: str, path: Path) -> None:
    """Joins the pieces of ``name`` in a folder.

    Raises:
        FileNotFoundError: if there are none.
    """
    parts = sorted(folder.glob(f"{name}.part*"))
    if not parts:
        raise FileNotFoundError(f"{folder / name}.part*: no pieces here")
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
