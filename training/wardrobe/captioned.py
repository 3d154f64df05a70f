"""Photographs with what a rule sees in them, as they are and with the hue turned."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from training.wardrobe.captions import Description, caption, describe
from training.wardrobe.measure import Measurer
from training.wardrobe.photographs import Photographs, choose_boxes, find_centres, read_photographs, shift_tones
from training.wardrobe.presets import PRESETS, WardrobePreset

UNTURNED = 0.72
"""Share of training pictures in their own hues."""
ZOOM, SQUEEZE = 0.86, 1.2


class Captioned:
    """Captioned photographs, as training batches and as held-out ones.

    Attributes:
        described: per hue of the preset and photograph what can be said; photographs without a label are left empty.
    """

    def __init__(self, photographs: Photographs, preset: WardrobePreset) -> None:
        self.photographs, self.preset = photographs, preset
        known = torch.tensor([bool(facts.label) for facts in photographs.facts]).nonzero().flatten()
        measurer = Measurer.of(photographs.fine(known))
        find_centres(photographs, known.to(photographs.pixels.device), measurer)
        labels = [photographs.facts[i].label for i in known.tolist()]
        children = [photographs.facts[i].child for i in known.tolist()]
        seen = measurer.look()
        self.described: list[list[Description | None]] = []
        for hue in preset.hues:
            row: list[Description | None] = [None] * len(photographs)
            found = describe(labels, children, measurer.turned(seen, hue) if hue else seen)
            for place, description in zip(known.tolist(), found, strict=True):
                row[place] = description
            self.described.append(row)
        self.suitable = {ratio: photographs.where(False, ratio) for ratio, _ in preset.ratios}

    @classmethod
    def held_out_of(cls, folder: Path) -> Captioned:
        """The held-out photographs of a folder on the CPU, as they are: no hue is turned."""
        photographs = read_photographs([folder], torch.device("cpu"), held_out=True)
        return cls(photographs, replace(PRESETS["wardrobe"], hues=(0.0,)))

    def description(self, place: int, hue: int = 0) -> Description:
        found = self.described[hue][place]
        if found is None:
            raise ValueError(f"{self.photographs.facts[place].name}: has no label, so no caption")
        return found

    @torch.no_grad()
    def draw(self, count: int, ratio: float, rng: random.Random) -> tuple[list[str], Tensor]:
        """Training captions and pictures (count, 3, H, W) in [-1, 1]."""
        device, size = self.photographs.pixels.device, self.preset.size(ratio)
        known = self.suitable[ratio]
        index = known[torch.randint(len(known), (count,), device=device)]
        boxes = choose_boxes(self.photographs, index, size, ZOOM, SQUEEZE)
        mirrored = torch.rand(count, device=device) < 0.5
        turned = [0 if rng.random() < UNTURNED else rng.randrange(len(self.preset.hues)) for _ in range(count)]
        hue = torch.tensor([self.preset.hues[number] for number in turned]).to(device)
        pictures = shift_tones(self.photographs.crop(index, boxes, mirrored, size), hue, 0.5) * 2 - 1
        places = zip(index.tolist(), turned, strict=True)
        return [caption(self.description(place, number), rng) for place, number in places], pictures

    @torch.no_grad()
    def held_out(self, ratio: float, count: int) -> tuple[list[str], Tensor]:
        """Full captions and pictures of held-out photographs, the same each time."""
        device, size = self.photographs.pixels.device, self.preset.size(ratio)
        known = self.photographs.where(True, ratio)
        index = known[:: max(1, len(known) // max(1, count))][:count]
        if not len(index):
            return [], torch.empty(0, 3, *size, device=device)
        boxes = choose_boxes(self.photographs, index, size, 1.0, SQUEEZE)
        # The boxes move a little at random; held-out pictures are to be the same each time.
        height, width = self.photographs.sizes[index].float().unbind(1)
        boxes[:, 0], boxes[:, 1] = (height - boxes[:, 2]) / 2, (width - boxes[:, 3]) / 2
        straight = torch.zeros(len(index), dtype=torch.bool, device=device)
        pictures = self.photographs.crop(index, boxes, straight, size) * 2 - 1
        return [caption(self.description(place)) for place in index.tolist()], pictures
