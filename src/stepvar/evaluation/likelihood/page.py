"""The page of an evaluation of likelihood."""

from __future__ import annotations

from stepvar.evaluation.candidates import DENSE
from stepvar.evaluation.folder import RunFolder
from stepvar.evaluation.likelihood.summary import Results, by_scale, chart, divergence_by_scale, notes, overview, title
from stepvar.evaluation.report.page import render_page, small_image
from stepvar.media.images import read_image


def page(results: Results, folder: RunFolder) -> str:
    """The HTML page of a run; it needs nothing beside itself."""
    examples = [
        small_image(read_image(file), row.get("text", row["prompt"]))
        for (method, _, _), row in folder.rows.items()
        if method == DENSE.label and (file := folder.image(row)) is not None
    ]
    return render_page(
        "likelihood.html",
        title=title(results),
        info=results["info"],
        overview=overview(results),
        by_scale=by_scale(results),
        divergence=divergence_by_scale(results),
        chart=chart(results),
        notes=notes(results),
        examples=examples,
    )
