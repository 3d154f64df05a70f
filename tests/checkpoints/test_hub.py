"""Which files of a repository are fetched, and what happens when there are none. Nothing here needs a network."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from stepvar.checkpoints import load_model
from stepvar.errors import CheckpointError, UsageError
from stepvar.models.infinity import CONFIGS
from tests.checkpoint_writer import Release, write_infinity, write_var
from tests.checkpoints.test_layouts import assert_holds

huggingface_hub = pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Stands for the hub: gives the files of a folder, and remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str, str | None, bool]] = []
        self.failing: type[Exception] | None = None

    def hf_hub_download(self, repo: str, name: str, revision: str | None, local_files_only: bool) -> str:
        self.asked.append((repo, name, revision, local_files_only))
        self._fail()
        if not (self.folder / name).is_file():
            raise huggingface_hub.utils.EntryNotFoundError.__new__(huggingface_hub.utils.EntryNotFoundError)
        return str(self.folder / name)

    def snapshot_download(
        self, repo: str, revision: str | None, allow_patterns: Sequence[str], local_files_only: bool
    ) -> str:
        self.asked.append((repo, *allow_patterns, revision, local_files_only))  # type: ignore[arg-type]
        self._fail()
        return str(self.folder)

    def _fail(self) -> None:
        if self.failing is not None:
            raise self.failing.__new__(self.failing)  # the arguments differ between versions of huggingface_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.mark.parametrize("name", ["FoundationVision/Infinity", "FoundationVision/infinity"])
def test_only_the_files_of_the_variant(hub: Hub, name: str) -> None:
    """The files are found under the variant's names; the size is that of the configuration beside them."""
    with pytest.raises(CheckpointError, match=r"revision main holds no infinity_vae_d32reg.pth or infinity_vae_d32_"):
        load_model(name)
    hub.asked.clear()
    write_infinity(hub.folder, spelling=1)
    with pytest.raises(CheckpointError, match="does not fit"):  # the released size is another
        load_model(name, revision=COMMIT)
    repo = "FoundationVision/Infinity"
    assert hub.asked == [
        (repo, "infinity_vae_d32reg.pth", COMMIT, False),
        (repo, "infinity_vae_d32_reg.pth", COMMIT, False),
        (repo, "infinity_2b_reg.pth", COMMIT, False),
    ]


@pytest.fixture
def tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the released sizes those of the tests."""
    from dataclasses import replace

    from stepvar.models.registry import FAMILIES
    from tests.helpers import TINY, TINY_VAR

    for family, config in (("infinity", TINY), ("var", TINY_VAR)):
        variants: Any = FAMILIES[family].variants
        for name, variant in variants.items():
            monkeypatch.setitem(variants, name, replace(variant, config=config))


@pytest.mark.usefixtures("tiny_sizes")
def test_shards(hub: Hub) -> None:
    release = write_infinity(hub.folder, variant="8b", layout="shards")
    loaded = load_model("FoundationVision/Infinity", "8b", local_files_only=True)
    assert_holds(loaded, release)
    assert (loaded.name, loaded.defaults["temperature"]) == ("infinity-8b", 1.0)
    assert [name for _, name, *_ in hub.asked] == ["infinity_vae_d56_f8_14_patchify.pth", "infinity_8b_weights/*"]
    assert {local for *_, local in hub.asked} == {True}
    shutil.rmtree(release.transformer)
    with pytest.raises(CheckpointError, match="holds no infinity_8b_weights"):
        load_model("FoundationVision/Infinity", "8b")


@pytest.mark.usefixtures("tiny_sizes")
def test_var_and_a_tokenizer_of_ones_own(hub: Hub) -> None:
    release = write_var(hub.folder)
    assert_holds(load_model("FoundationVision/var"), release)
    hub.asked.clear()
    assert_holds(load_model("FoundationVision/var", "d16", tokenizer=release.tokenizer), release)
    assert [name for _, name, *_ in hub.asked] == ["var_d16.pth"]
    hub.asked.clear()
    with pytest.raises(UsageError, match="does not exist"):
        load_model("FoundationVision/var", tokenizer="gone.pth")
    with pytest.raises(UsageError, match="variant '2b': var has d16, d20"):
        load_model("FoundationVision/var", "2b")
    assert hub.asked == []


def test_a_local_folder_of_that_name_goes_first(hub: Hub, tmp_path: Path) -> None:
    release = write_var(tmp_path / "FoundationVision" / "var")
    assert_holds(load_model("FoundationVision/var"), release)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("LocalEntryNotFoundError", CheckpointError, "not in the cache.*connect to the network, or unset"),
        ("RevisionNotFoundError", UsageError, "revision 'v9'"),
        ("RepositoryNotFoundError", CheckpointError, "cannot be read on the hub"),
        ("GatedRepoError", CheckpointError, "log in"),
        ("HfHubHTTPError", CheckpointError, r"cannot be downloaded \(.*try again"),
    ],
)
def test_failures_of_the_hub(hub: Hub, kind: str, error: type[Exception], said: str) -> None:
    hub.failing = getattr(huggingface_hub.utils, kind)
    with pytest.raises(error, match=said):
        load_model("FoundationVision/var", revision="v9")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def refuse(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return plain(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match=r"pip install '\.\[hub\]'"):
        load_model("FoundationVision/var")


def fill_cache(cache: Path, repo: str, release: Release) -> None:
    """Puts files where downloads would have left them."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for path in release.folder.rglob("*"):
        if path.is_file() and not fnmatch(path.name, "config.json"):
            place = snapshot / path.relative_to(release.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)


@pytest.mark.usefixtures("tiny_sizes")
@pytest.mark.parametrize("repo", ["FoundationVision/Infinity", "FoundationVision/infinity"])
@pytest.mark.parametrize("variant", ["2b", "8b"])
def test_the_cache_without_a_network(tmp_path: Path, monkeypatch, repo: str, variant: str) -> None:
    """With the real huggingface_hub, whichever spelling the cache has."""
    release = write_infinity(tmp_path / "r", variant=variant, layout="flat" if variant == "2b" else "shards")
    fill_cache(tmp_path / "cache", repo, release)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for revision in (None, "main", COMMIT):
        assert_holds(load_model("FoundationVision/Infinity", variant, revision), release)
    with pytest.raises(CheckpointError, match="not in the cache"):
        load_model("FoundationVision/Infinity", "125m")
    with pytest.raises(CheckpointError, match="not in the cache"):
        load_model("FoundationVision/Infinity", variant, "other")
    with pytest.raises(CheckpointError, match="not in the cache"):
        load_model("FoundationVision/var", local_files_only=True)


@pytest.mark.usefixtures("tiny_sizes")
def test_part_of_a_download_in_the_cache(tmp_path: Path, monkeypatch) -> None:
    release = write_infinity(tmp_path / "r", variant="8b", layout="shards")
    next(release.transformer.glob("*.safetensors")).unlink()
    fill_cache(tmp_path / "cache", "FoundationVision/Infinity", release)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=r"safetensors: missing, though .* lists it; fetch it again"):
        load_model("FoundationVision/Infinity", "8b", local_files_only=True)


def test_the_released_sizes_are_those_of_the_configurations() -> None:
    from stepvar.models.registry import FAMILIES

    assert {name: variant.config for name, variant in FAMILIES["infinity"].variants.items()} == CONFIGS
