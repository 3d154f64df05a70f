"""``stepvar eval --likelihood``: how likely a model finds given images, dense and with methods."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar.cli.runs import RunOptions, describe_model, resumable, say_finished
from stepvar.errors import UsageError
from stepvar.utils.progress import bar

if TYPE_CHECKING:
    from stepvar.evaluation.candidates import Candidate
    from stepvar.evaluation.likelihood.images import GivenImages
    from stepvar.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions(RunOptions):
    """What the command line says.

    Attributes:
        images, captions: which images, and what they show.
    """

    images: str
    captions: Path | None


def measure_likelihood(options: LikelihoodOptions, load: Callable[[], Pipeline]) -> None:
    """Measures all images and writes the results.

    Args:
        load: the model, once the images are known to be there.
    """
    from stepvar.evaluation.candidates import with_baselines
    from stepvar.evaluation.folder import RunFolder
    from stepvar.evaluation.likelihood.images import load_images
    from stepvar.evaluation.likelihood.run import Likelihood, likelihood_settings
    from stepvar.evaluation.likelihood.summary import overview, summarise, title, write_results
    from stepvar.evaluation.machine import provenance
    from stepvar.evaluation.report.tables import rich_table

    given = load_images(options.images, options.captions).limited(options.limit)
    pipe = load()
    notes: dict[str, str] = {}
    settings = likelihood_settings(pipe, given.captioned, options.settings)
    asked = [label for label, _ in options.methods]
    candidates = comparable(pipe, with_baselines(options.methods, floors=()), asked, settings, notes)
    model = describe_model(pipe, options.dtype, options.quantization)
    described = _describe(pipe, given, candidates, settings, notes, model)
    folder = RunFolder.open(options.out, described, provenance(pipe.device, options.command))
    evaluation = Likelihood(pipe, given, candidates, folder, settings, options.batch)
    with (
        resumable(options.out, folder, options.quiet),
        bar("images", evaluation.runs_left, not options.quiet, time_left=True) as advance,
    ):
        evaluation.run(advance)
    write_results(folder)
    if not options.quiet:
        from stepvar.cli.listing import print_table

        results = summarise(folder)
        print_table(rich_table(title(results), overview(results)), whole=True)
        say_finished(options.out)


def _describe(
    pipe: Pipeline,
    given: GivenImages,
    candidates: Sequence[Candidate],
    settings: Mapping[str, Any],
    notes: Mapping[str, str],
    model: Mapping[str, str],
) -> dict[str, Any]:
    """What a folder must have been made with."""
    from stepvar.evaluation.likelihood.run import KIND, computed_tokens, scale_names

    plain, info = pipe.settings(**settings), pipe.model.info
    return {
        "kind": KIND,
        **model,
        "images": {
            "source": given.source,
            "count": len(given),
            "captioned": given.captioned,
            "names": digest([[image.name, image.caption] for image in given.images]),
        },
        "scales": scale_names(plain.schedule),
        "settings": settings,
        "methods": [
            {
                "label": candidate.label,
                "settings": repr(candidate.method),
                "tokens": computed_tokens(candidate.method.plan(plain, info, 1)),
            }
            for candidate in candidates
        ],
        "notes": notes,
    }


def comparable(
    pipe: Pipeline,
    candidates: Sequence[Candidate],
    asked: Sequence[str],
    settings: Mapping[str, Any],
    notes: dict[str, str],
) -> list[Candidate]:
    """The candidates whose likelihood can be measured; others are left out with a note.

    Raises:
        UsageError: if a method that was asked for is among those.
    """
    from stepvar.evaluation.candidates import DENSE
    from stepvar.evaluation.likelihood.run import check_candidate

    plain, found = pipe.settings(**settings), []
    for candidate in candidates:
        try:
            if candidate is not DENSE:
                check_candidate(plain, candidate.method, pipe.model.info)
        except UsageError as error:
            if candidate.label in asked:
                raise UsageError(f"methods {candidate.label!r}: {error}") from None
            notes[candidate.label] = f"left out: {error}"
        else:
            found.append(candidate)
    return found


def digest(content: Any) -> str:
    """Of what a run is made with, so that it goes on with the same only."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
