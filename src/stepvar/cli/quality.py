"""``stepvar eval``: methods compared by what they generate from many prompts, and by what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar.cli.runs import RunOptions, describe_model, resumable, say_finished
from stepvar.errors import UsageError
from stepvar.utils.progress import bar

if TYPE_CHECKING:
    import torch

    from stepvar.evaluation.candidates import Candidate
    from stepvar.evaluation.folder import RunFolder
    from stepvar.evaluation.metrics.learned import Features
    from stepvar.evaluation.prompts import PromptSet
    from stepvar.evaluation.run import Evaluation, Measures
    from stepvar.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class QualityOptions(RunOptions):
    """What the command line says.

    Attributes:
        model, variant: whose images are generated; to know what its prompts must have before it is loaded.
        prompts: which.
        seeds: of each prompt.
        rounds, timed: how often methods are timed, and how many images at once.
        scores: of an image against its prompt.
        reference: a folder of real images.
    """

    model: str
    variant: str | None
    prompts: str
    seeds: Sequence[int]
    rounds: int
    timed: int
    scores: Sequence[str]
    reference: Path | None


def measure_quality(options: QualityOptions, load: Callable[[], Pipeline]) -> None:
    """Generates, compares and times what is missing, and writes the results.

    Args:
        load: the model, once the prompts are known to fit it.
    """
    from stepvar.checkpoints.sources import find_outline
    from stepvar.evaluation.candidates import with_baselines
    from stepvar.evaluation.folder import RunFolder
    from stepvar.evaluation.machine import provenance
    from stepvar.evaluation.metrics.sets import reference_files
    from stepvar.evaluation.prompts import load_prompts
    from stepvar.evaluation.run import Evaluation
    from stepvar.evaluation.summary import write_results
    from stepvar.utils.require import require

    for package in ("torchmetrics", "matplotlib"):
        require(package)  # before anything is generated
    wanted = with_baselines(options.methods)
    suite = load_prompts(options.prompts).limited(options.limit)
    real = reference_files(options.reference) if options.reference is not None else []
    edits = find_outline(options.model, options.variant).family.edits
    suite.check_images(edits, max(options.batch, options.timed))
    pipe, settings = load(), options.settings
    measures, notes = load_measures(pipe, suite, options.scores)
    features = load_features(pipe.device, bool(real), measures.domain is not None, notes)
    candidates = supported(pipe, wanted, [label for label, _ in options.methods], settings, options.timed, notes)
    described = {
        **describe_model(pipe, options.dtype, options.quantization),
        "prompts": {"source": suite.source, "count": len(suite), "texts": suite.digest},
        "seeds": options.seeds,
        "settings": settings,
        "timed_batch": options.timed,
        "methods": [_describe(candidate) for candidate in candidates],
        "notes": notes,
    }
    folder = RunFolder.open(options.out, described, provenance(pipe.device, options.command))
    evaluation = Evaluation(pipe, suite, options.seeds, candidates, folder, measures, settings, options.batch)
    with resumable(options.out, folder, options.quiet):
        _run(evaluation, options.rounds, options.timed, features, real, options.quiet)
    write_results(folder)
    if not options.quiet:
        _print_table(folder)
        say_finished(options.out)


def _run(
    evaluation: Evaluation,
    rounds: int,
    timed: int,
    features: Mapping[str, Features],
    real: Sequence[Path],
    quiet: bool,
) -> None:
    """Generates, times and compares what is missing in the folder, with a bar for each."""
    from stepvar.evaluation.metrics.sets import compare_sets

    folder, candidates, device = evaluation.folder, evaluation.candidates, evaluation.pipe.device
    with bar("images", evaluation.images_left, not quiet, time_left=True) as advance:
        evaluation.generate(advance)
    with bar("timing", evaluation.runs_left(rounds), not quiet, time_left=True) as advance:
        evaluation.time(rounds, timed, advance)
    if features:
        with bar("features", len(features) * len(candidates), not quiet, time_left=True) as advance:
            compare_sets(folder, candidates, features, device, real, advance)


def load_measures(pipe: Pipeline, suite: PromptSet, scores: Sequence[str]) -> tuple[Measures, dict[str, str]]:
    """What can be measured here beside what needs no network, and a note for what cannot."""
    from stepvar.evaluation.metrics.learned import Unavailable, load_cvvdp, load_distances, load_scores
    from stepvar.evaluation.metrics.scenes import domain_of
    from stepvar.evaluation.run import Measures

    notes: dict[str, str] = {}
    distances = load_distances(pipe.device, notes)
    cvvdp = load_cvvdp(pipe.device, getattr(pipe.model.config, "fps", 1.0))
    if isinstance(cvvdp, Unavailable):
        notes["cvvdp"] = str(cvvdp)
    whole = {} if isinstance(cvvdp, Unavailable) else {"cvvdp": cvvdp}
    domain = domain_of(suite.prompts, pipe.device)
    return Measures(domain, distances, whole, load_scores(scores, pipe.device)), notes


def load_features(device: torch.device, asked: bool, judged: bool, notes: dict[str, str]) -> dict[str, Features]:
    """What sets of images are compared in; a note for what cannot be had.

    Args:
        asked: whether there are real images to compare with.
        judged: whether a judge compares sets, which Inception is then left out of, unless it is asked for.

    Raises:
        UsageError: if there are real images and no features of Inception.
    """
    from stepvar.evaluation.metrics.learned import Unavailable, load_inception, load_lite0_features
    from stepvar.evaluation.metrics.sets import INCEPTION, LITE0

    found: dict[str, Features] = {}
    if asked or not judged:
        inception = load_inception(device)
        if isinstance(inception, Unavailable):
            if asked:
                raise UsageError(f"reference: FID and KID are {inception}")
            notes["FID and KID"] = str(inception)
        else:
            found[INCEPTION] = inception
    lite0 = load_lite0_features(device)
    if isinstance(lite0, Unavailable):
        notes["Lite0-KID"] = str(lite0)
    else:
        found[LITE0] = lite0
    return found


def _describe(candidate: Candidate) -> dict[str, Any]:
    """What a folder must have been made with; the code of the user's own methods, too: it may change between runs."""
    from stepvar.methods.registry import code_digest

    method, code = candidate.method, code_digest(candidate.method)
    described = {"label": candidate.label, "settings": repr(method), "resampled": candidate.resampled}
    return described | ({} if code is None else {"code": code})


def supported(
    pipe: Pipeline,
    candidates: Sequence[Candidate],
    asked: Sequence[str],
    settings: dict[str, Any],
    timed: int,
    notes: dict[str, str],
) -> list[Candidate]:
    """The candidates that can serve the model; baselines that cannot are left out with a note.

    Args:
        timed: images at once while methods are timed.

    Raises:
        UsageError: if a method that was asked for cannot, before anything is generated.
    """
    plain, found = pipe.settings(**settings), []
    for candidate in candidates:
        try:
            candidate.method.plan(plain, pipe.model.info, timed)
        except UsageError as error:
            if candidate.label in asked:
                raise
            notes[candidate.label] = f"left out: {error}"
        else:
            found.append(candidate)
    return found


def _print_table(folder: RunFolder) -> None:
    from stepvar.cli.listing import print_table
    from stepvar.evaluation.report.tables import overview, rich_table, title
    from stepvar.evaluation.summary import summarise

    results = summarise(folder)
    print_table(rich_table(title(results), overview(results)), whole=True)
