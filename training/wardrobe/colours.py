"""Colour words: the name of every pixel, in CIE Lab."""

from __future__ import annotations

import torch
from torch import Tensor

COLOURS = (
    "black",
    "grey",
    "white",
    "red",
    "pink",
    "orange",
    "brown",
    "beige",
    "yellow",
    "green",
    "turquoise",
    "blue",
    "navy",
    "purple",
)
"""All colour words; a pixel's class is the index here."""

_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_WHITE = (0.95047, 1.0, 1.08883)
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def to_lab(pictures: Tensor) -> Tensor:
    """sRGB (B, 3, H, W) in [0, 1] -> CIE Lab under D65: L in [0, 100], a and b about [-100, 100]."""
    linear = torch.where(pictures <= 0.04045, pictures / 12.92, ((pictures.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("ij,bjhw->bihw", pictures.new_tensor(_XYZ), linear)
    xyz = xyz / pictures.new_tensor(_WHITE)[:, None, None]
    root = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def turn_hue(pictures: Tensor, degrees: Tensor) -> Tensor:
    """Turns the hue of sRGB pictures (B, 3, H, W) in [0, 1] by ``degrees`` (B,), around the axis of greys (in YIQ).

    What leaves the range is clipped; a turn by 0 changes nothing.
    """
    yiq = pictures.new_tensor(_YIQ)
    angle = torch.deg2rad(degrees.to(pictures))
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    one = torch.ones_like(angle)
    turn = torch.stack((one, zero, zero, zero, cos, -sin, zero, sin, cos), dim=1).view(-1, 3, 3)
    matrix = torch.linalg.inv(yiq.cpu()).to(pictures) @ turn @ yiq
    return torch.einsum("bij,bjhw->bihw", matrix, pictures).clamp(0, 1)


def name_pixels(lab: Tensor) -> Tensor:
    """Lab (B, 3, H, W) -> indices into ``COLOURS`` (B, H, W), by lightness, chroma and hue angle.

    Greys first: little chroma, and less is needed for a hue to be seen in dark and in light tones than in between.
    Hues are cut at fixed angles; light reds are pink, dark oranges brown, pale ones beige, dark blues navy.
    """
    light, a, b = lab.unbind(1)
    chroma, hue = torch.hypot(a, b), torch.rad2deg(torch.atan2(b, a)) % 360
    names = torch.full_like(hue, COLOURS.index("red"), dtype=torch.int64)

    def put(word: str, where: Tensor) -> None:
        names[where] = COLOURS.index(word)

    put("orange", (hue >= 42) & (hue < 72))
    put("yellow", (hue >= 72) & (hue < 108))
    put("green", (hue >= 108) & (hue < 178))
    put("turquoise", (hue >= 178) & (hue < 232))
    put("blue", (hue >= 232) & (hue < 302))
    put("purple", (hue >= 302) & (hue < 340))
    put("pink", ((hue >= 340) | (hue < 14)) & (light > 42))
    put("pink", ((hue >= 318) & (hue < 340)) & (light > 58))
    put("pink", (hue < 42) & (light > 62))
    warm = (hue >= 30) & (hue < 95)
    put("brown", warm & (light <= 58) & (chroma < 48) & ((hue >= 45) | (chroma < 28)))
    put("beige", warm & (light > 58) & (chroma < 30) & (hue >= 45))
    put("green", (hue >= 95) & (hue < 108) & (chroma < 40))
    put("navy", (hue >= 250) & (hue < 310) & (light < 30) & (chroma < 36))
    pale = chroma < torch.where(light < 25, 7.0, torch.where(light > 70, 9.0, 8.0))
    put("grey", pale)
    put("black", (pale & (light < 30)) | (light < 9) | ((light < 20) & (chroma < 8)))
    put("white", (light > 74) & (chroma < 10))
    return names
