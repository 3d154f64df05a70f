"""Goldens of SkipVAR on Infinity."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import torch

from stepvar.conformance import infinity
from stepvar.conformance.golden import Golden, Record
from stepvar.errors import CheckpointError
from stepvar.methods import SkipVAR
from stepvar.methods.skipvar import Classifiers, LinearClassifier, Probe, Verdict


@dataclass(frozen=True)
class RecordingSkipVAR(SkipVAR):
    """Also notes what it decides by."""

    record: Record = field(default_factory=dict, compare=False)

    def judge(self, before: Probe, after: Probe) -> Verdict:
        found = super().judge(before, after)
        for name, probe in (("before", before), ("after", after)):
            self.record.update({f"probe_latent_{name}": probe.latent, f"probe_image_{name}": probe.image})
        self.record.update(
            features=torch.tensor(found.features, dtype=torch.float64),
            skip_scores=torch.tensor(found.skip_scores, dtype=torch.float64),
            skip_class=torch.tensor([found.skip]),
            branch_class=torch.tensor([-1 if found.branch is None else found.branch]),
        )
        if found.branch_scores is not None:
            self.record["branch_scores"] = torch.tensor(found.branch_scores, dtype=torch.float64)
        return found


def run_generation(golden: Golden) -> Record:
    """Generates what the golden describes, and notes what was decided and why."""
    record = Record()
    computed = infinity.run_generation(golden, lambda _: read_method(golden, record))
    return computed | record


def read_method(golden: Golden, record: Record) -> SkipVAR:
    """The method with the golden's constants."""
    constant = partial(golden.constant, "skipvar")
    return RecordingSkipVAR(
        target=Classifiers(_classifier(golden, "skip"), _classifier(golden, "branch")),
        decide_after=constant("decide_after"),
        probe_scale=constant("probe_scale"),
        radius=constant("freq_ratio"),
        record=record,
    )


def _classifier(golden: Golden, name: str) -> LinearClassifier:
    about = golden.constant("skipvar", name)
    parts = ("mean", "scale", "weight", "bias", "classes")
    if not isinstance(about, dict) or not about.keys() >= set(parts):
        raise CheckpointError(f"{golden.path}: skipvar.{name} lacks one of {', '.join(parts)}; copy the golden again")
    return LinearClassifier(*(about[part] for part in parts))


KINDS = (
    replace(
        infinity.GENERATION,
        name="skipvar",
        run=run_generation,
        settings=infinity.GENERATION.settings | {"skipvar"},
    ),
)
