"""Files of the released models, from the Hugging Face hub or its cache on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from stepvar.errors import CheckpointError, UsageError
from stepvar.utils.hub import hub_options

WHOLE = "."
"""In place of the name of a folder: the repository itself."""

FILES_OF_A_MODEL = ("config.json", "*.safetensors", "*.safetensors.index.json")


def fetch(repos: Sequence[str], names: Sequence[str], revision: str | None, local_files_only: bool) -> Path:
    """One file or folder of a repository, downloaded unless it is in the cache already.

    The cache, its place (``HF_HOME``), resumed downloads and working without a network (``HF_HUB_OFFLINE=1``) are
    those of ``huggingface_hub``.

    Args:
        repos: the repository, and other spellings of its name, under which the cache may have it.
        names: the file, or the folder if it has no ending, and other spellings of its name; :data:`WHOLE` for a
            repository that holds nothing else.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub import utils as errors
    except ImportError:
        raise UsageError(
            "huggingface_hub is not installed, which downloads need; pip install '.[hub]' in the checkout"
        ) from None
    problems = []
    for repo, name in product(repos, names):
        try:
            return _download(hub, repo, name, revision, local_files_only)
        except errors.LocalEntryNotFoundError:
            problems.append(
                f"{repo}: {name} is not in the cache of downloads, and the hub was not asked or not reached; "
                "connect to the network, or unset HF_HUB_OFFLINE"
            )
        except errors.RevisionNotFoundError:
            raise UsageError(f"revision {revision!r}: {repo} has none of this name; try main") from None
        except (errors.EntryNotFoundError, FileNotFoundError):  # after the first, whose class is derived from these
            wanted = " or ".join("safetensors files" if one == WHOLE else one for one in names)
            problems.append(f"{repo}: revision {revision or 'main'} holds no {wanted}")
        except errors.RepositoryNotFoundError:
            problems.append(f"{repo}: cannot be read on the hub; log in with 'hf auth login' if it is private")
        except (errors.HfHubHTTPError, OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{repo}: {name} cannot be downloaded ({reason}); try again") from error
    raise CheckpointError(problems[0])


def _download(hub: Any, repo: str, name: str, revision: str | None, local_files_only: bool) -> Path:
    options = {"local_files_only": local_files_only} | hub_options()
    if Path(name).suffix:
        return Path(hub.hf_hub_download(repo, name, revision=revision, **options))
    patterns = list(FILES_OF_A_MODEL) if name == WHOLE else [f"{name}/*"]
    root = hub.snapshot_download(repo, revision=revision, allow_patterns=patterns, **options)
    if not (Path(root) / name).is_dir() or not any((Path(root) / name).iterdir()):
        raise FileNotFoundError(name)
    return Path(root) / name
