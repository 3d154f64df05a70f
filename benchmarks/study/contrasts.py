"""The questions of the study as pairs of candidates at equal cost, picture by picture."""

from __future__ import annotations

from benchmarks.study.candidates import ABLATED, BUDGETS

Contrast = tuple[str, str, str]
"""Question, key of the one candidate, key of the other."""

RIVALS = {
    "structure + texture against texture alone": ("stepvar", "high-pass"),
    "the same, with the plain sum (weight 1)": ("stepvar, weight 1", "high-pass"),
    "structure + texture against PCA alone": ("stepvar", "pca"),
    "structure + texture against the L2 norm": ("stepvar", "l2-norm"),
    "structure + texture against the distance to the mean": ("stepvar", "mean-distance"),
    "structure + texture against the latent delta": ("stepvar", "latent-delta"),
    "structure + texture against random": ("stepvar", "random"),
    "StepVAR against FastVAR": ("stepvar", "fastvar"),
    "StepVAR against SparseVAR": ("stepvar", "sparsevar"),
    "coverage against StepVAR": ("coverage", "stepvar"),
    "blend against StepVAR": ("blend", "stepvar"),
    "taper against StepVAR": ("taper", "stepvar"),
    "StepVAR with guidance dropped at the last scale against StepVAR": ("stepvar+drop-guidance", "stepvar"),
}
"""Compared at every budget at which both take part."""


def default_of(group: str) -> str:
    """Key of what the variants of a group are held to: StepVAR's default, of the power iterations that at weight 1."""
    return f"methods/{'stepvar, weight 1' if group == 'iterations' else 'stepvar'}@{ABLATED}"


def contrasts() -> list[Contrast]:
    """All pairs; those whose candidates did not take part are left out when they are computed."""
    found = [
        (question, f"methods/{one}@{budget}", f"methods/{other}@{budget}")
        for question, (one, other) in RIVALS.items()
        for budget in BUDGETS
    ]
    found += [
        ("StepVAR at 2.0 against skipping the last scale", "methods/stepvar@2.0", "methods/skip-last 1"),
        ("StepVAR at 1.3 against guidance dropped once", "methods/stepvar@1.3", "methods/drop-guidance 1"),
        ("StepVAR at 1.6 against guidance dropped twice", "methods/stepvar@1.6", "methods/drop-guidance 2"),
    ]
    for what in ("state", "update"):
        for selection in ("stepvar", "mean-distance", "random"):
            for restore in ("cached", "anchors", "blend"):
                one = f"restore/{selection}, nearest, {what}@{ABLATED}"
                other = f"restore/{selection}, {restore}, {what}@{ABLATED}"
                found.append((f"nearest against {restore} ({selection}, {what})", one, other))
    return found
