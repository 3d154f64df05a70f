"""Videos against the dense video of the same seed: flicker, and which way things move.

Videos are (B, 3, F, H, W) in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STILL = 0.01
"""Change from frame to frame, as a share of the full range, up to which a place of the dense video stands still."""

NOISE = 0.02
"""Change from frame to frame that is not taken for motion."""

SHORTEST_WAY = 0.05
"""Way of an object over the whole video, as a share of the short side, below which it is not called a motion."""


@dataclass(frozen=True)
class Flicker:
    """How much changes from frame to frame where the dense video stands still.

    Attributes:
        own: (B,) mean absolute change, in levels of 255; NaN where nothing stands still.
        dense: the same of the dense video, which flickers a little, too.
        still: (B,) share of the places that stand still.
    """

    own: Tensor
    dense: Tensor
    still: Tensor

    @property
    def excess(self) -> Tensor:
        """What a method adds."""
        return self.own - self.dense


def flicker(videos: Tensor, reference: Tensor, still: float = STILL) -> Flicker:
    """Flicker of videos, measured where the reference stands still.

    A place stands still between two frames if the reference changes by no more than ``still`` in the mean over the
    channels and the 5x5 pixels around it.

    Raises:
        ValueError: for videos of one frame, or of another shape than the reference.
    """
    if videos.shape != reference.shape or videos.shape[2] < 2:
        raise ValueError(
            f"shapes {tuple(videos.shape)} and {tuple(reference.shape)}: must be equal, of 2 frames or more"
        )
    dense = changes(reference)
    around = F.avg_pool2d(dense, 5, stride=1, padding=2, count_include_pad=False)
    mask = (around <= still).float()
    count = mask.sum(dim=(1, 2, 3))

    def mean(change: Tensor) -> Tensor:
        return 255 * (change * mask).sum(dim=(1, 2, 3)) / count

    return Flicker(mean(changes(videos)), mean(dense), mask.mean(dim=(1, 2, 3)))


def changes(videos: Tensor) -> Tensor:
    """Absolute change from each frame to the next, mean over channels: (B, F - 1, H, W)."""
    return (videos[:, :, 1:] - videos[:, :, :-1]).abs().mean(dim=1)


def motion(videos: Tensor) -> Tensor:
    """How what moves moves in front of a background that stands still: (B, 2), pixels per frame right and down.

    Between two frames, places change at both ends of a moving thing, so that their centre is the thing's own, however
    slowly it goes (in front of a median over the frames a slow one would stand in its own way). A line is laid
    through these centres. Changes of the whole picture, as by flicker, are taken off first.

    Raises:
        ValueError: for videos of less than 3 frames.
    """
    if videos.shape[2] < 3:
        raise ValueError(f"{videos.shape[2]} frames: motion takes 3 or more")
    change = changes(videos.float())
    floor = NOISE + 3 * change.flatten(2).median(dim=2).values
    weight = (change - floor[..., None, None]).clamp(min=0)
    mass = weight.sum(dim=(2, 3))
    rows, columns = (torch.arange(side, dtype=torch.float32, device=videos.device) for side in videos.shape[-2:])
    total = mass.clamp(min=1e-6)
    centres = torch.stack(((weight.sum(2) @ columns) / total, (weight.sum(3) @ rows) / total), dim=-1)  # B, F-1, 2
    # Weighted least squares of the centres over time.
    share = (mass / mass.sum(dim=1, keepdim=True).clamp(min=1e-6)).unsqueeze(-1)
    times = torch.arange(mass.shape[1], dtype=torch.float32, device=videos.device)[:, None]
    times = times - (share * times).sum(dim=1, keepdim=True)
    return (share * times * centres).sum(dim=1) / (share * times.square()).sum(dim=1).clamp(min=1e-6)


def directions(videos: Tensor, shortest: float = SHORTEST_WAY) -> list[str | None]:
    """The side to which what moves goes: left, right, up or down; None where its centre stays.

    Args:
        shortest: way over the whole video, as a share of the short side, from which on it counts.
    """
    way = motion(videos) * (videos.shape[2] - 1) / min(videos.shape[-2:])
    found: list[str | None] = []
    for right, down in way.tolist():
        if max(abs(right), abs(down)) < shortest:
            found.append(None)
        elif abs(right) >= abs(down):
            found.append("right" if right > 0 else "left")
        else:
            found.append("down" if down > 0 else "up")
    return found
