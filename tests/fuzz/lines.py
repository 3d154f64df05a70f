"""Command lines by chance: options of every command with good, odd and hostile values."""

# ruff: noqa: SIM905 - lists of a hundred words are read more easily without quotes

from __future__ import annotations

import random
from pathlib import Path

NUMBERS = [*"0 1 2 -1 0.5 1.5 nan inf -inf 1e39 1e-300 ² ٣ 0x10".split(), "9" * 400, "", " "]
WORDS = [*"x none true -- - %s {} é図 \udcff".split(), "", " ", "\x1b[31mred\x07", "a" * 3000, "a\nb", "\t"]
PATHS = [
    *"a.png b.PNG c.jpg d.webp e.gif f.mp4 g.bmp a.json page.html folder folder/ folder/x.png gone/x.png".split(),
    *"old.png OLD.png old.txt link.png loop.png pipe.png locked.png a.png/b.png .png . .. / ~".split(),
    *"/dev/null /dev/full /dev/zero run run/report.html prompts.txt rows.jsonl deep.json é図.png \udcff.png".split(),
    *("", "x" * 250 + ".png", "x" * 255 + ".png", "x" * 300, "new\nline.png"),
]
METHODS = "stepvar dense random skip-last fastvar stepvar+drop-guidance stepvar:x os:system + a+b".split()
SETTINGS = "keep=0.5 last=1 keep = keep= last=1.5 scope=block drop-guidance.last=2 x=1 keep=nan".split()
PROMPTS = ["a red circle on sand", "a blue star on snow", "hello", *WORDS]
MODELS = [*("MODEL",) * 3, "nope", "", "scenes", "run", "old.png", "/dev/null", "FoundationVision/nope", "\udcff"]

OPTIONS: dict[str, dict[str, list[str]]] = {
    "generate": {
        "--model": MODELS,
        "--variant": WORDS,
        "--seed": NUMBERS,
        "--out": PATHS,
        "--method": METHODS,
        "--keep": NUMBERS,
        "--last": NUMBERS,
        "--set": SETTINGS,
        "--temperature": NUMBERS,
        "--guidance-scale": [*NUMBERS, "1,2"],
        "--top-k": NUMBERS,
        "--top-p": NUMBERS,
        "--aspect-ratio": ["3:2", "1:1", "0:1", *WORDS, *NUMBERS],
        "--resolution": ["0.06M", *WORDS],
        "--num-images": ["1", "2", "0", "-1", "2147483648", "9" * 30],
        "--seconds": NUMBERS,
        "--image": PATHS,
        "--video": PATHS,
        "--quality": NUMBERS,
        "--report": PATHS,
        "--preview": PATHS,
        "--prompts": [*PATHS, "scenes:2"],
        "--from": PATHS,
        "--device": ["cpu", "cuda:9", *WORDS],
        "--dtype": ["float32", "int8", *WORDS],
        "--tile": NUMBERS,
        "--force": [],
        "--quiet": [],
    },
    "info": {"": PATHS},
    "report": {"": PATHS, "--out": PATHS, "--force": []},
    "convert": {"": [*MODELS, *PATHS], " ": PATHS, "--dtype": WORDS, "--variant": WORDS, "--tokenizer": PATHS},
    "verify": {"": PATHS, "--dtype": WORDS},
    "eval": {"--out": PATHS, "--model": MODELS[3:], "--prompts": [*PATHS, "scenes:0", "scenes:x"], "--seeds": NUMBERS},
}

GOOD = dict(
    pair.split()
    for pair in (
        "--seed 1|--keep 0.5|--last 2|--set scope=block|--guidance-scale 2|--temperature 0.9|--top-k 3|--top-p 0.5|"
        "--aspect-ratio 3:2|--resolution 0.06M|--num-images 2|--method stepvar|--device cpu|--dtype float32|--tile 8|"
        "--quality 50"
    ).split("|")
)
"""Values that most lines have, so that some get as far as writing files."""


def command_line(number: int, model: Path) -> list[str]:
    """The arguments of one line; the same number gives the same ones."""
    chance = random.Random(number)
    command = chance.choice(["generate"] * 7 + [*OPTIONS])
    options = OPTIONS[command]
    words = [command]
    for name in chance.sample(list(options), min(len(options), chance.choice([1, 2, 2, 3, 4, 6]))):
        values = options[name]
        words += [name] if name.strip() else []
        good = f"r{number}.png" if values is PATHS and name in ("--out", "--report", "--preview") else GOOD.get(name)
        words += [good if good is not None and chance.random() < 0.7 else chance.choice(values)] if values else []
    if command == "generate" and chance.random() < 0.85:
        words += [chance.choice(PROMPTS[:2] if chance.random() < 0.7 else PROMPTS)]
    if command == "generate" and "--model" not in words:
        words += ["--model", "MODEL"]
    if command == "eval" and "--model" not in words:
        words += ["--model", "nope"]
    if command == "eval" and "scenes" in words:  # a model that there is: all of its prompts take minutes
        words += ["--limit", "1"]
    return [str(model) if word == "MODEL" else word for word in words]
