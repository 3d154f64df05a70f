"""Teaches the text encoder to read captions of clips: ``python -m training.video.text --out runs/video --minutes 1``.

Before any clip is seen, one learned query per attribute must tell from the encoder's features what the caption says.
Cheap on a CPU.
"""

from __future__ import annotations

import random
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.checkpoints import save_weights
from stepvar.evaluation.scenes.clips.judge import HEADS
from stepvar.text import WordEncoder
from training.loop import command_line, write_card
from training.text import word_numbers
from training.video.captions import paraphrase_clip, parse_clip, sample_training_clip
from training.video.judge import UNSPOKEN, labels_of
from training.video.presets import VideoPreset
from training.video.stage import Options, Stage

PEAK_LR = 1e-3
CAPTIONS = 256


class Reader(nn.Module):
    """The encoder with a probe that exists only here."""

    def __init__(self, preset: VideoPreset) -> None:
        super().__init__()
        self.text = WordEncoder(**preset.text)
        width = preset.text["width"]
        self.queries = nn.Parameter(torch.randn(len(HEADS), width))
        self.heads = nn.ModuleList(nn.Linear(width, words) for words in HEADS.values())

    def forward(self, words: Tensor, lengths: list[int]) -> list[Tensor]:
        """words (B, L) -> per attribute the logits (B, classes)."""
        features = self.text(words, lengths)
        place = torch.arange(words.shape[1], device=words.device)
        mask = (place < torch.tensor(lengths, device=words.device)[:, None])[:, None, :]
        pooled = F.scaled_dot_product_attention(
            self.queries.expand(len(words), -1, -1), features, features, attn_mask=mask
        )
        return [head(pooled[:, index]) for index, head in enumerate(self.heads)]


def batch(text: WordEncoder, rng: random.Random, count: int) -> tuple[Tensor, list[int], Tensor]:
    """Word numbers (B, L), lengths, and what the captions say (B, attributes)."""
    captions = [paraphrase_clip(sample_training_clip(rng), rng) for _ in range(count)]
    words, lengths = word_numbers(text, captions)
    said = [parse_clip(line) for line in captions]
    return words, lengths, labels_of([clip for clip in said if clip is not None])


def _values(right: Tensor) -> dict[str, float]:
    return {"right": float(right)}


def train(options: Options) -> bool:
    """Trains, or goes on; writes ``text.safetensors`` and its card. Says whether it is finished."""
    torch.manual_seed(options.seed)
    reader = Reader(options.preset).to(options.device)
    stage = Stage("text", reader, options, PEAK_LR, decay=0.01)
    rng, right = random.Random(options.seed + stage.progress.step), torch.zeros(())
    while stage.running:
        words, lengths, wanted = batch(reader.text, rng, CAPTIONS)
        wanted = wanted.to(options.device)
        said = reader(words.to(options.device), lengths)
        spoken = wanted != UNSPOKEN
        losses = [
            F.cross_entropy(logits, wanted[:, index], ignore_index=UNSPOKEN, reduction="sum")
            for index, logits in enumerate(said)
        ]
        stage.minimise((torch.stack(losses) / spoken.sum(0).clamp(min=1)).sum(), len(words))
        hits = torch.stack([logits.argmax(-1) for logits in said], dim=1) == wanted
        right = hits[spoken].float().mean()
        stage.say(partial(_values, right))
    averaged = stage.averaged()
    assert isinstance(averaged, Reader)
    save_weights(options.out / "text.safetensors", averaged.text.state_dict(), torch.float32)
    card = {"attributes_right": float(right)} | stage.info(options) | {"command": command_line("video.text")}
    write_card(options.out / "text.json", card)
    print(f"text encoder: {100 * float(right):.1f} % of the attributes read right", flush=True)
    return stage.close()


if __name__ == "__main__":
    train(Options.parse(__doc__, 1.0))
