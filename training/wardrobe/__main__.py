"""Trains "wardrobe": ``python -m training.wardrobe --photographs FOLDER --out runs/wardrobe --stage tokenizer``.

Then ``--stage transformer``. ``--stage decoder`` trains the decoder of the tokenizer in ``--init`` alone, and does not
touch the codes that a transformer was trained on. Stopped and started again, a stage goes on where it was; with
``--init`` it starts from the weights of an earlier run. Several GPUs: ``torchrun --nproc-per-node 8 -m
training.wardrobe ... --compile``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from training.parallel import Group
from training.wardrobe.parts import split_file
from training.wardrobe.presets import PRESETS
from training.wardrobe.stage import PULL, Options


def parse(arguments: list[str] | None = None) -> tuple[str, Options]:
    """The stage and its options."""
    parser = argparse.ArgumentParser(prog="python -m training.wardrobe", description=__doc__)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of photographs with their CSV file")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="folders of photographs without captions")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=("tokenizer", "decoder", "transformer"), required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of the whole stage, over all starts")
    parser.add_argument("--init", type=Path, help="folder of an earlier run to go on from")
    parser.add_argument("--preset", choices=PRESETS, default="wardrobe")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the networks (CUDA)")
    parser.add_argument("--lite0", type=Path, help="file of EfficientNet-Lite0's early layers; else its package")
    parser.add_argument("--most", type=int, help="read no more photographs than this")
    parser.add_argument("--peak", type=float, help="highest learning rate; lower than the default behind --init")
    parser.add_argument("--pull", type=float, default=PULL, help="most of the discriminator's share; 0: without it")
    parser.add_argument("--squares", type=float, help="a tokenizer's weight of squared errors; default: the stage's")
    parser.add_argument("--batch", type=int, help="pictures per step of the tokenizer; default: the preset's")
    parser.add_argument("--wait-for", type=Path, help="compile, and read the photographs when this file is there")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    group, preset = Group.join(), PRESETS[given.preset]
    options = Options(
        preset=replace(preset, tokenizer_batch=given.batch or preset.tokenizer_batch),
        photographs=given.photographs,
        out=given.out,
        minutes=given.minutes,
        device=group.device(torch.device(given.device)),
        more=tuple(given.more),
        init=given.init,
        lite0=given.lite0,
        compiled=given.compile,
        most=given.most,
        peak=given.peak,
        pull=given.pull,
        squares=given.squares,
        wait_for=given.wait_for,
        seed=given.seed,
        group=group,
    )
    return given.stage, options


def main(arguments: list[str] | None = None) -> None:
    stage, options = parse(arguments)
    torch.set_num_threads(1)  # readers and processes are many; on a GPU the CPU only hands out work
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = False  # half a minute of trials for nothing, when every shape is new
    if stage == "tokenizer":
        from training.wardrobe.tokenizer import TokenizerTrainer

        TokenizerTrainer(options).run()
    elif stage == "decoder":
        from training.wardrobe.decoder import DecoderTrainer

        DecoderTrainer(options).run()
    else:
        from training.wardrobe.transformer import TransformerTrainer

        TransformerTrainer(options).run()
    if options.group.leads:
        for path in sorted(options.out.glob("*.safetensors")):
            split_file(path, options.out / "parts")
    options.group.leave()


if __name__ == "__main__":
    main()
