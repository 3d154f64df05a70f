"""A small network that says what is in a clip and how it moves, and the rules that compare it to what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stepvar.errors import UsageError

from ..grammar import BACKGROUNDS
from ..judge import WORDS, Residual, StoredJudge, down, resized
from .grammar import MOTIONS, SPEEDS, Clip

HEADS: dict[str, int] = {
    **{name: len(words) for name, words in WORDS.items()},
    "background": len(BACKGROUNDS),
    "motion": len(MOTIONS),
    "speed": len(SPEEDS),
    "rolling": 2,
}
"""What is said of a clip, and among how many words."""

ATTRIBUTES: tuple[str, ...] = (*HEADS, "everything")
"""The keys of :func:`judge_clips`."""

FRAMES = 9
SIDE = 96


class ClipJudge(StoredJudge):
    """Reads clips (B, 3, T, H, W) in [-1, 1] of any size and length.

    It sees 9 frames, evenly spread, each resized to a short side of 96 pixels. In each frame an attention query finds
    the object; what is found there, averaged over the frames, says the object's attributes, and its sequence how the
    object moves.
    """

    form = "stepvar-clip-judge-1"

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse, hidden = 24, 48, 80, 96
        self.trunk = nn.Sequential(
            down(3, fine, 5),
            down(fine, middle, 3),
            Residual(middle),
            down(middle, coarse, 3),
            Residual(coarse),
        )
        self.query = nn.Conv2d(coarse + 2, 1, 1)
        self.say = nn.Sequential(nn.Linear(coarse, hidden), nn.GELU())
        self.attributes = nn.ModuleDict({name: nn.Linear(hidden, len(words)) for name, words in WORDS.items()})
        self.scenery = nn.Linear(coarse, len(BACKGROUNDS))
        self.watch = nn.Linear(coarse, 48)
        self.follow = nn.Sequential(
            nn.Conv1d(50, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(hidden, hidden, 3, padding=1),
            nn.GELU(),
        )
        self.moves = nn.ModuleDict(
            {name: nn.Linear(2 * hidden + 2 * FRAMES, HEADS[name]) for name in ("motion", "speed", "rolling")}
        )

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Logits (B, words) under the names of :data:`HEADS`, and ``attention`` (B, 9, h, w), the log-probability of
        the object's place in each frame.

        Raises:
            UsageError: for another shape of input.
        """
        if clips.ndim != 5 or clips.shape[1] != 3:
            raise UsageError(f"the judge of clips reads (B, 3, T, H, W), not {tuple(clips.shape)}")
        features = self.trunk(resized(watched(clips), SIDE).contiguous(memory_format=torch.channels_last))
        attention, place, found = (value.unflatten(0, (-1, FRAMES)).squeeze(2) for value in self.find(features))
        said = self.say(found).mean(1)
        logits = {name: head(said).float() for name, head in self.attributes.items()}
        logits["background"] = self.scenery(features.flatten(2).mean(-1).unflatten(0, (-1, FRAMES)).mean(1)).float()
        seen = torch.cat((self.watch(found), 4.0 * place.to(features.dtype)), dim=-1)
        moving = self.follow(seen.transpose(1, 2))
        # Places relative to their mean: a motion is the same wherever it happens.
        relative = 4.0 * (place - place.mean(1, keepdim=True)).flatten(1)
        moving = torch.cat((moving.mean(-1), moving.amax(-1), relative.to(moving.dtype)), dim=-1)
        logits |= {name: head(moving).float() for name, head in self.moves.items()}
        logits["attention"] = attention.unflatten(2, features.shape[2:])
        return logits


def watched(clips: Tensor) -> Tensor:
    """The frames that the judge sees of clips (B, 3, T, H, W): (9 B, 3, H, W)."""
    count = clips.shape[2]
    if count != FRAMES:
        moments = torch.linspace(0, count - 1, FRAMES, device=clips.device).round().long()
        clips = clips.index_select(2, moments)
    return clips.float().transpose(1, 2).flatten(0, 1)


def words_of(clip: Clip) -> dict[str, int | None]:
    """The class number of each attribute under the names of :data:`HEADS`; None where nothing can be seen or said.

    Whether it rolls is only asked of what moves sideways and does not look the same from every side.
    """
    item = clip.item
    round_and_plain = item.shape in (None, "circle", "ring") and item.texture in (None, "plain")
    spoken = {
        **{name: (words, getattr(item, name)) for name, words in WORDS.items()},
        "background": (BACKGROUNDS, clip.background),
        "motion": (MOTIONS, clip.motion),
        "speed": (SPEEDS, clip.speed),
    }
    codes = {name: None if word is None else words.index(word) for name, (words, word) in spoken.items()}
    return codes | {"rolling": int(clip.rolling) if clip.motion in ("left", "right") and not round_and_plain else None}


def judge_clips(logits: Mapping[str, Tensor], clips: Sequence[Clip]) -> list[dict[str, bool | None]]:
    """Compare logits of :class:`ClipJudge` to what was asked for; one copy from the device for all of them.

    Keys are :data:`ATTRIBUTES`; ``None`` where the clip does not speak of it. ``everything`` is right when all that
    is spoken of is.

    Raises:
        UsageError: when there are not as many clips as there were in the batch.
    """
    if len(logits["motion"]) != len(clips):
        raise UsageError(f"{len(logits['motion'])} clips were judged and {len(clips)} asked for: give as many")
    seen = torch.stack([logits[name].argmax(-1) for name in HEADS], dim=-1).tolist()
    verdicts = []
    for clip, row in zip(clips, seen, strict=True):
        wanted = words_of(clip)
        verdict: dict[str, bool | None] = {
            name: None if wanted[name] is None else wanted[name] == found
            for name, found in zip(HEADS, row, strict=True)
        }
        verdict["everything"] = all(right for right in verdict.values() if right is not None)
        verdicts.append(verdict)
    return verdicts
