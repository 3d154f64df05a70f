"""What a rule can see in a photograph: colours and pattern of the garment, tone and kind of the ground."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.wardrobe.colours import COLOURS, name_pixels, to_lab, turn_hue
from training.wardrobe.regions import garment_chance

SIDE = 64
"""Side of the small pictures that colours are measured on; their aspect ratio is given up."""

FINE = 128
"""Side of the pictures that patterns are measured on."""

PATTERNS = ("", "plain", "striped", "printed")
KINDS = ("", "wooden", "patterned")

SECOND = 0.2
"""A second colour is named where it has this share of the garment."""
APART = 24.0
"""Colours nearer than this in Lab are one: the smaller share is a shade of the larger."""

_WOOD_TONES = tuple(COLOURS.index(word) for word in ("brown", "beige", "orange", "yellow"))


@dataclass(frozen=True)
class Seen:
    """Measurements of B pictures, as indices (B,) on the CPU.

    Attributes:
        first, second: the garment's colours in ``COLOURS``; second is -1 where there is one colour.
        pattern: in ``PATTERNS``; "" where the rule cannot tell.
        ground: the ground's main colour.
        kind: in ``KINDS``; "" where the rule sees nothing special.
    """

    first: Tensor
    second: Tensor
    pattern: Tensor
    ground: Tensor
    kind: Tensor


def shares(names: Tensor, lab: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Share of each colour word (B, words) and its mean in Lab (B, words, 3); weights (B, H, W)."""
    index, flat = names.flatten(1), weight.flatten(1)
    count = flat.new_zeros(len(index), len(COLOURS)).scatter_add_(1, index, flat)
    sums = flat.new_zeros(len(index), 3, len(COLOURS))
    sums.scatter_add_(2, index[:, None].expand(-1, 3, -1), lab.flatten(2) * flat[:, None])
    means = (sums / count[:, None].clamp(min=1e-6)).transpose(1, 2)
    return count / count.sum(1, keepdim=True).clamp(min=1e-6), means


def main_colours(share: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """First and second colour (B,) of shares (B, words) and mean tones (B, words, 3).

    The first is the largest when each colour also counts what is near it; what is near the first is not a second.
    """
    near = torch.cdist(means, means) < APART
    counted = share * (1 + 0.001) + (near.float() * share[:, None]).sum(2) * (share > 0.12)
    first = (counted * (share > 0) + share * 0.5).argmax(1)
    rows = torch.arange(len(share), device=share.device)
    others = share * ~near[rows, first]
    others[rows, first] = 0
    best, second = others.max(1)
    return first, torch.where(best > SECOND, second, -1)


def _profile_ratio(patch: Tensor, dim: int) -> Tensor:
    """Share (B,) of the variance of light that the mean profile along one axis of a patch (B, h, w) explains.

    0 where the profile crosses its mean seldom: folds do, stripes do not.
    """
    flat = patch - F.avg_pool2d(F.pad(patch[:, None], (12, 12, 12, 12), mode="reflect"), 25, 1)[:, 0]
    profile = flat.mean(dim)
    crossings = (profile[:, 1:] * profile[:, :-1] < 0).sum(1)
    return profile.var(1) / flat.var((1, 2)).clamp(min=1e-6) * (crossings >= 8)


def find_patterns(fine: Tensor, chance: Tensor, second: Tensor) -> Tensor:
    """Pattern (B,) of fine pictures (B, 3, 128, 128): by the light and colour of a patch around the garment's middle.

    Striped: one axis explains most of what varies. Plain: little varies, and there is one colour. Printed: colours
    vary strongly. In between nothing is said: folds and prints look alike to this rule.
    """
    lab = to_lab(fine)
    size, cut = FINE, FINE // 2
    low, high = (size - cut) // 2, (size + cut) // 2
    patch = lab[:, :, low:high, low:high]
    inside = F.interpolate(chance[:, None], size=(size, size), mode="bilinear")[:, 0, low:high, low:high]
    sure = inside.mean((1, 2)) > 0.8
    light = patch[:, 0]
    coarse = F.avg_pool2d(patch, 2)
    detail = coarse - F.avg_pool2d(F.pad(coarse, (6, 6, 6, 6), mode="reflect"), 13, 1)
    contrast = detail.square().mean((2, 3)).sqrt()
    busy = torch.hypot(contrast[:, 1], contrast[:, 2])
    stripes = torch.maximum(_profile_ratio(light, 2), _profile_ratio(light, 1))
    pattern = torch.zeros(len(fine), dtype=torch.int64, device=fine.device)
    pattern[sure & (contrast[:, 0] < 4.5) & (busy < 2.6) & (second < 0)] = PATTERNS.index("plain")
    pattern[sure & ((busy > 9) | ((contrast[:, 0] > 16) & (busy > 4.5)))] = PATTERNS.index("printed")
    pattern[sure & (stripes > 0.5) & (contrast[:, 0] > 6)] = PATTERNS.index("striped")
    return pattern


def find_grounds(fine: Tensor, chance: Tensor, ground: Tensor) -> Tensor:
    """Kind of ground (B,) in fine pictures (B, 3, 128, 128), from the ring around the garment.

    Wooden: a tone of wood, and light that changes across one direction and hardly along it. Patterned: colours
    vary strongly.
    """
    lab = to_lab(fine)
    outside = (F.interpolate(chance[:, None], size=(FINE, FINE), mode="bilinear")[:, 0] < 0.15).float()
    outside = -F.max_pool2d(-outside[:, None], 5, 1, 2)[:, 0]
    room = outside.sum((1, 2)).clamp(min=1)
    across = lab[:, 0].diff(dim=2)[:, :-1] * outside[:, :-1, :-1]
    down = lab[:, 0].diff(dim=1)[:, :, :-1] * outside[:, :-1, :-1]
    xx, yy, xy = (across**2).sum((1, 2)), (down**2).sum((1, 2)), (across * down).sum((1, 2))
    energy = (xx + yy) / room
    lengthwise = torch.hypot(xx - yy, 2 * xy) / (xx + yy).clamp(min=1e-6)
    detail = lab - F.avg_pool2d(F.pad(lab, (8, 8, 8, 8), mode="replicate"), 17, 1)
    spread = ((detail.square() * outside[:, None]).sum((2, 3)) / room[:, None]).sqrt()
    tone = (lab[:, 1:] * outside[:, None]).sum((2, 3)) / room[:, None]
    chroma = torch.hypot(tone[:, 0], tone[:, 1])
    kind = torch.zeros(len(fine), dtype=torch.int64, device=fine.device)
    enough = room > 0.08 * FINE * FINE
    kind[enough & (torch.hypot(spread[:, 1], spread[:, 2]) > 8.0)] = KINDS.index("patterned")
    wood = torch.isin(ground, torch.tensor(_WOOD_TONES, device=ground.device)) & (
        tone[:, 1] < 28 * tone[:, 0].clamp(min=0.1)
    )
    kind[enough & wood & (chroma > 13) & (lengthwise > 0.5) & (energy > 2.5) & (energy < 60)] = KINDS.index("wooden")
    return kind


@dataclass
class Measurer:
    """Measures pictures once, and their colours again when the hue is turned.

    Attributes:
        small, fine: the pictures (B, 3, 64, 64) and (B, 3, 128, 128), sRGB in [0, 1].
        chance: (B, 64, 64), where the garment is.
    """

    small: Tensor
    fine: Tensor
    chance: Tensor

    @classmethod
    def of(cls, fine: Tensor) -> Measurer:
        """From pictures (B, 3, 128, 128) in [0, 1], squeezed to a square whatever their shape."""
        small = F.interpolate(fine, size=(SIDE, SIDE), mode="area")
        return cls(small, fine, garment_chance(small))

    def look(self) -> Seen:
        """What is seen."""
        first, second, ground = self.colours()
        parts = zip(self.fine.split(256), self.chance.split(256), second.split(256), ground.split(256), strict=True)
        kinds = [(find_patterns(f, c, s), find_grounds(f, c, g)) for f, c, s, g in parts]
        pattern, kind = (torch.cat(column) for column in zip(*kinds, strict=True))
        return Seen(first.cpu(), second.cpu(), pattern.cpu(), ground.cpu(), kind.cpu())

    def turned(self, seen: Seen, degrees: float) -> Seen:
        """What is seen when the hue is turned by ``degrees``: colours anew, wood no longer."""
        first, second, ground = (part.cpu() for part in self.colours(degrees))
        kind = torch.where(seen.kind == KINDS.index("wooden"), KINDS.index(""), seen.kind)
        return Seen(first, second, seen.pattern, ground, kind)

    def colours(self, degrees: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """First and second colour and that of the ground (B,), with the hue turned by ``degrees``."""
        parts = [_colours(*both, degrees) for both in zip(self.small.split(256), self.chance.split(256), strict=True)]
        first, second, ground = (torch.cat(column) for column in zip(*parts, strict=True))
        return first, second, ground


def _colours(small: Tensor, chance: Tensor, degrees: float) -> tuple[Tensor, Tensor, Tensor]:
    turned = small if degrees == 0 else turn_hue(small, torch.full((len(small),), degrees))
    lab = to_lab(turned)
    names = name_pixels(lab)
    inside = (chance - 0.5).clamp(min=0) * 2
    first, second = main_colours(*shares(names, lab, inside + 1e-6))
    outside = (0.3 - chance).clamp(min=0)
    ground, _ = main_colours(*shares(names, lab, outside + 1e-6))
    return first, second, ground
