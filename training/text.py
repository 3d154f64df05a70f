"""Teaches the text encoder to read: ``python -m training.text --out runs/scenes --minutes 2``.

Before any image is seen, the encoder learns from captions alone what stands where: from its features, one learned
query per place (leftmost, rightmost, topmost, bottommost) must tell the shape, colour, texture and size of the object
there. The transformer then starts from features in which attributes are already bound to places. Cheap on a CPU.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stepvar.checkpoints import save_weights
from stepvar.evaluation.scenes.grammar import Scene
from stepvar.evaluation.scenes.judge import RELATION_SLOTS, SLOTS, WORDS
from stepvar.text import WordEncoder
from training.captions import paraphrase, parse, sample_training_scene
from training.loop import Progress, command_line, learning_rate, write_card
from training.presets import PRESETS, Preset

PEAK_LR = 1e-3
UNSPOKEN = -100


def targets(scene: Scene) -> Tensor:
    """(4 places, 4 attributes) class numbers of what a caption says; ``UNSPOKEN`` where it says nothing."""
    table = torch.full((len(SLOTS), len(WORDS)), UNSPOKEN)
    if len(scene.objects) == 1:
        places = {slot: scene.objects[0] for slot in range(len(SLOTS))}
    elif scene.relation is not None:
        places = dict(zip(RELATION_SLOTS[scene.relation], scene.objects, strict=True))
    else:
        places = {}
    for slot, item in places.items():
        for column, (name, words) in enumerate(WORDS.items()):
            word = getattr(item, name)
            if word is not None:
                table[slot, column] = words.index(word)
    return table


class Reader(nn.Module):
    """The encoder with a probe that exists only here."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.text = WordEncoder(**preset.text)
        width = preset.text["width"]
        self.queries = nn.Parameter(torch.randn(len(SLOTS), width))
        self.heads = nn.ModuleList(nn.Linear(width, len(words)) for words in WORDS.values())

    def forward(self, words: Tensor, lengths: list[int]) -> list[Tensor]:
        """words (B, L) -> per attribute the logits (B, 4, classes) of each place."""
        features = self.text(words, lengths)
        place = torch.arange(words.shape[1], device=words.device)
        mask = (place < torch.tensor(lengths, device=words.device)[:, None])[:, None, :]
        queries = self.queries.expand(len(words), -1, -1)
        pooled = F.scaled_dot_product_attention(queries, features, features, attn_mask=mask)
        return [head(pooled) for head in self.heads]


def word_numbers(text: WordEncoder, captions: Sequence[str]) -> tuple[Tensor, list[int]]:
    """Word numbers (B, L) of captions, padded, and the length of each."""
    rows = [torch.tensor(text.tokens(line)) for line in captions]
    return pad_sequence(rows, batch_first=True, padding_value=text.end), [len(row) for row in rows]


def batch(text: WordEncoder, rng: random.Random, count: int) -> tuple[Tensor, list[int], Tensor]:
    """Word numbers (B, L), lengths, and targets (B, 4, 4)."""
    captions = [paraphrase(sample_training_scene(rng), rng) for _ in range(count)]
    words, lengths = word_numbers(text, captions)
    said = [parse(line) for line in captions]
    return words, lengths, torch.stack([targets(scene) for scene in said if scene is not None])


def train(preset: Preset, out: Path, minutes: float, device: torch.device, seed: int = 0) -> float:
    """Trains, writes ``text.safetensors``, returns the share of attributes read right in the last batches."""
    torch.manual_seed(seed)
    rng, reader = random.Random(seed), Reader(preset).to(device)
    optimiser = torch.optim.AdamW(reader.parameters(), lr=PEAK_LR, weight_decay=0.01)
    progress, right = Progress(minutes), 0.0
    while progress.fraction < 1:
        words, lengths, wanted = batch(reader.text, rng, 256)
        wanted = wanted.to(device)
        said = reader(words.to(device), lengths)
        losses = [F.cross_entropy(s.transpose(1, 2), wanted[..., i], ignore_index=UNSPOKEN) for i, s in enumerate(said)]
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(progress.fraction, PEAK_LR)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        optimiser.step()
        progress.step += 1
        progress.seen += len(words)
        spoken = torch.stack([wanted[..., i] != UNSPOKEN for i in range(len(said))])
        hits = torch.stack([s.argmax(-1) == wanted[..., i] for i, s in enumerate(said)])
        now = float(hits[spoken].float().mean())
        right = now if progress.step == 1 else 0.95 * right + 0.05 * now
        progress.say(lambda value=right: {"right": value})  # type: ignore[misc]
    out.mkdir(parents=True, exist_ok=True)
    save_weights(out / "text.safetensors", reader.text.state_dict(), torch.float32)
    card = {"attributes_right": right, "captions": progress.seen, "minutes": minutes}
    write_card(out / "text.json", card | {"command": command_line("text")})
    print(f"text encoder: {100 * right:.1f} % of the attributes read right", flush=True)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", choices=PRESETS, default="scenes")
    arguments = parser.parse_args()
    train(PRESETS[arguments.preset], arguments.out, arguments.minutes, torch.device(arguments.device))


if __name__ == "__main__":
    main()
