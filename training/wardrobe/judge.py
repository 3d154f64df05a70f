"""Says what of a caption a picture of clothes shows, as the judge of scenes does for scenes.

The garment is read by a probe on EfficientNet-Lite0; colours, pattern and ground by the rule that makes the captions.
``python -m training.wardrobe.judge --photographs FOLDER --out FILE`` fits the probe.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.errors import StepvarError, UsageError
from stepvar.evaluation.metrics.scenes import encode_features
from stepvar.evaluation.prompts import Prompt
from training.wardrobe.captioned import Captioned
from training.wardrobe.captions import Description, caption, describe, ground_words
from training.wardrobe.lite0 import Lite0, load_lite0
from training.wardrobe.measure import FINE, Measurer
from training.wardrobe.photographs import read_photographs, read_table
from training.wardrobe.probe import Probe, features, features_of, whole_photographs

SIDE = 256


def answers(wanted: Description, seen: Description) -> dict[str, bool]:
    """Whether each thing that a caption says is seen; what it does not say is not asked, nor whether it is a child's.

    Args:
        wanted: what the caption says.
        seen: what the picture shows; its label is the probe's.
    """
    found = {"garment": seen.label == wanted.label, "colour": seen.first == wanted.first}
    if wanted.second:
        found["second colour"] = wanted.second in (seen.first, seen.second)
    if wanted.pattern:
        found["pattern"] = seen.pattern == wanted.pattern
    return found | {"ground": ground_words(seen) == ground_words(wanted)}


class PhotographJudge:
    """Judges pictures of the captions of held-out photographs, which are what others are held against.

    Args:
        source: the held-out photographs.
    """

    def __init__(self, probe: Probe, network: Lite0, source: Captioned, device: torch.device) -> None:
        self.probe, self.network = probe.to(device), network.to(device)
        self.source = source
        self.by_caption: dict[str, list[int]] = {}
        for place in source.photographs.where(True).tolist():
            self.by_caption.setdefault(caption(source.description(place)), []).append(place)

    @classmethod
    def load(cls, probe: Path, photographs: Path, device: torch.device) -> PhotographJudge:
        """From the file of a probe and the folder of the photographs.

        Raises:
            UsageError: if one of them is not there, or the network's package is not.
        """
        if not probe.is_file():
            raise UsageError(f"judge {str(probe)!r}: no such file; python -m training.wardrobe.judge makes one")
        if not photographs.is_dir():
            raise UsageError(f"photographs {photographs}: no such folder; docs/models/wardrobe.md says what is in it")
        if not any(facts.held_out for facts in read_table(photographs)):
            raise UsageError(f"photographs {photographs}: none is held out; docs/models/wardrobe.md says which are")
        try:
            network = load_lite0()
        except FileNotFoundError as error:
            raise UsageError(f"judge: {error}") from None
        return cls(Probe.load(probe), network, Captioned.held_out_of(photographs), device)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Looks for photographs of all prompts.

        Raises:
            UsageError: for one without.
        """
        for prompt in prompts:
            self._places(prompt)

    def judge(self, prompts: Sequence[Prompt], videos: Tensor) -> list[dict[str, Any]]:
        """Of pictures (B, 1, 3, H, W) in [0, 1]: what is right, and features (1280,) in half precision and base64."""
        pictures = videos[:, 0].float()
        found = features(pictures, self.network)
        wanted = [self.source.description(self._places(prompt)[0]) for prompt in prompts]
        # The rule says no pattern of shoes and hats: whether it is asked is a matter of the label that was wanted.
        seen = Measurer.of(F.interpolate(pictures, (FINE, FINE), mode="area")).look()
        described = describe([item.label for item in wanted], [False] * len(wanted), seen)
        columns = zip(wanted, described, self.probe.read(found), encode_features(found), strict=True)
        return [
            {"right": answers(item, replace(own, label=label)), "features": stored}
            for item, own, label, stored in columns
        ]

    def render(self, prompts: Sequence[Prompt], seeds: Sequence[int], like: Tensor) -> Tensor:
        """The middles of photographs with those captions, of the shape of ``like`` (B, 1, 3, H, W), in [0, 1].

        Of several with one caption each seed takes another.
        """
        places = [self._places(prompt) for prompt in prompts]
        index = torch.tensor([own[seed % len(own)] for own, seed in zip(places, seeds, strict=True)])
        height, width = like.shape[-2:]
        return whole_photographs(self.source.photographs, index, (height, width)).unsqueeze(1).to(like)

    def _places(self, prompt: Prompt) -> list[int]:
        if prompt.text not in self.by_caption:
            raise UsageError(f"prompt {prompt.text!r}: no held-out photograph has this caption; leave it out")
        return self.by_caption[prompt.text]


def fit(folder: Path, device: torch.device) -> Probe:
    """The probe of square pictures, from the photographs that are trained on."""
    photographs = read_photographs([folder], device)
    train = photographs.where(False)
    found = features_of(photographs, train, (SIDE, SIDE), load_lite0().to(device))
    return Probe.fit(found, [photographs.facts[place].label for place in train.tolist()])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.wardrobe.judge", description=__doc__)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of the photographs and their CSV file")
    parser.add_argument("--out", type=Path, required=True, help="file of the probe, .safetensors")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    fit(given.photographs, torch.device(given.device)).save(given.out)
    print(f"{given.out}: written")


if __name__ == "__main__":
    try:
        main()
    except StepvarError as error:
        raise SystemExit(str(error)) from None
