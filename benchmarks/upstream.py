"""Time of the published code of Infinity, and of FastVAR for it, beside this library: one device, one process.

``python -m benchmarks.upstream --model 2b --code CLONE [--fastvar CLONE]`` takes clones of FoundationVision/Infinity
and csguoh/FastVAR; neither is part of this repository. Theirs and ours have the same random weights, text features,
sampling settings and precision, and are interleaved round by round. What their code needs and a machine may lack is
replaced; the replacements are printed. ``--check`` compares greedy images. ``--device cpu --tiny --dtype float32``
tries it all without a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command_line, engine
from benchmarks.stand_ins import importable, stand_ins
from benchmarks.workload import random_pipeline
from stepvar.core.report import peak_memory, start_clock
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.run import interleaved
from stepvar.methods import make_method
from stepvar.models.infinity.config import InfinityConfig, TokenizerConfig
from stepvar.models.registry import FAMILIES
from stepvar.pipeline import Pipeline
from stepvar.utils.files import write_text

TINY = InfinityConfig(
    depth=4,
    width=64,
    heads=2,
    block_chunks=2,
    tokenizer=TokenizerConfig(code_bits=8, multipliers=(1, 1)),
    text_channels=128,
    text_maxlen=32,
)
"""For trying this file out. FastVAR's fixed constants need the full schedule, and four blocks to prune one."""

Call = Callable[[int], engine.Run]


class Published:
    """A published implementation with the weights of one of ours, set up as by its own script for inference."""

    def __init__(self, code: Path, pipe: Pipeline, resolution: str | None) -> None:
        self.config, self.device, self.half = pipe.model.config, pipe.device, pipe.dtype != torch.float32
        self.dtype, self.defaults = pipe.dtype, pipe.defaults
        self.scale: int | None = None
        self.running: dict[Any, Callable[[], Callable[[], float]]] = {}
        self.read: dict[Any, Callable[[], float]] = {}
        with importable(code), torch.no_grad():
            scales = import_module("infinity.utils.dynamic_resolution").dynamic_resolution_h_w[1.0]
            self.schedule = [(1, h, w) for _, h, w in scales[resolution or self.config.resolution]["scales"]]
            self.vae = self._build_tokenizer(import_module("infinity.models.bsq_vae.vae").vae_model)
            self.model = self._build_transformer(import_module("infinity.models.infinity").Infinity).to(self.device)
        for theirs, ours in ((self.vae, pipe.model.tokenizer), (self.model, pipe.model.transformer)):
            loaded = theirs.load_state_dict(dict(ours.state_dict()), strict=False)
            if loaded.unexpected_keys:
                raise RuntimeError(f"weights without a place in the published model: {loaded.unexpected_keys[:5]}")
        if self.half:
            for block in self.model.unregistered_blocks:
                block.to(self.dtype)
        self.model.eval().requires_grad_(False)
        self.model.rng = torch.Generator(device=self.device)
        self._watch()

    def _build_tokenizer(self, vae_model: Any) -> Any:
        tokenizer, levels = self.config.tokenizer, list(self.config.tokenizer.multipliers)
        bits = tokenizer.code_bits
        vae = vae_model({}, "dynamic", bits, 2**bits, True, tokenizer.stride, levels, levels)
        return vae.to(self.device)

    def _build_transformer(self, build: Any) -> Any:
        config = self.config
        return build(
            vae_local=self.vae,
            text_channels=config.text_channels,
            text_maxlen=config.text_maxlen,
            depth=config.depth,
            embed_dim=config.width,
            num_heads=config.heads,
            mlp_ratio=4,
            drop_path_rate=0.1,
            block_chunks=config.block_chunks,
            raw_scale_schedule=None,
            shared_aln=True,
            fused_norm=True,
            customized_flash_attn=False,
            use_flex_attn=False,
            checkpointing="full-block",
            pad_to_multiplier=128,
            add_lvl_embeding_only_first_block=int(not config.level_every_chunk),
            use_bit_label=1,
            rope2d_each_sa_layer=1,
            rope2d_normalized_by_hw=2,
            pn=config.resolution,
            apply_spatial_patchify=int(config.patchify),
            inference_mode=True,
            train_h_div_w_list=[1.0],
        )

    def _watch(self) -> None:
        """Clocks at the places where those of our report stand: before the first scale, each scale, the decoder."""
        embed, decode = self.model.add_lvl_embeding, self.vae.decode
        self.model.shared_ada_lin.register_forward_hook(lambda *_: self._stop("prepare", "loop"))

        def add_lvl_embeding(feature: Tensor, scale_ind: int, *given: Any, **more: Any) -> Tensor:
            if scale_ind != self.scale:
                self._stop(self.scale, scale_ind)
                self.scale = scale_ind
            return embed(feature, scale_ind, *given, **more)

        def timed_decode(latent: Tensor) -> Tensor:
            self._stop(self.scale, None)
            self._stop("loop", "decode")
            pixels = decode(latent)
            self._stop("decode", None)
            return pixels

        self.model.add_lvl_embeding, self.vae.decode = add_lvl_embeding, timed_decode

    def _stop(self, name: Any, following: Any) -> None:
        """Stops a clock and starts the next."""
        if name in self.running:
            self.read[name] = self.running.pop(name)()
        if following is not None:
            self.running[following] = start_clock(self.device)

    def run(self, features: Sequence[Tensor], seed: int, guidance: float, **sampling: Any) -> dict[str, Any]:
        """One generation: times in milliseconds, and pixels (B, h, w, RGB) as uint8."""
        self.running.clear()
        self.read.clear()
        self.scale, scales = None, len(self.schedule)
        options = {"temperature": 0.5, "top_k": 900, "top_p": 0.97} | self.defaults | sampling
        synchronize(self.device)
        start = time.perf_counter()
        self._stop(None, "prepare")
        lengths = [len(one) for one in features]
        text = torch.cat([one.to(self.device, torch.float32) for one in features])
        ends = F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0)).to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, dtype=self.dtype, enabled=self.half):
            _, _, images = self.model.autoregressive_infer_cfg(
                vae=self.vae,
                scale_schedule=self.schedule,
                label_B_or_BLT=(text, lengths, ends, max(lengths)),
                B=len(features),
                g_seed=seed,
                cfg_list=[guidance] * scales,
                tau_list=[options["temperature"]] * scales,
                top_k=options["top_k"],
                top_p=options["top_p"],
                cfg_insertion_layer=[0],
                vae_type=self.config.tokenizer.code_bits,
                returns_vemb=1,
                ret_img=True,
                inference_mode=True,
            )
        pixels = images.cpu().numpy()[..., ::-1]  # theirs are BGR
        whole = time.perf_counter() - start
        times = {name: 1e3 * read() for name, read in self.read.items()}
        passes = [round(milliseconds, 2) for name, milliseconds in times.items() if isinstance(name, int)]
        stages = {name: times[name] for name in ("prepare", "loop", "decode")}
        stages |= {"whole": 1e3 * whole, "peak": peak_memory(self.device) / 2**30}
        return stages | {"scales": passes, "engine": "published code", "pixels": pixels}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tried(what: str, call: Callable[[], Any]) -> Any:
    """The result, or None and the error in print: one part that fails must not cost the others."""
    try:
        return call()
    except Exception as error:
        traceback.print_exc()
        print(f"{what} failed: {type(error).__name__}: {error}", flush=True)
        return None


def published(name: str, code: Path, pipe: Pipeline, arguments: argparse.Namespace, words: list[str]) -> Call | None:
    """A published implementation as something to time; None where it does not run."""
    made = tried(f"building {name}", lambda: Published(code, pipe, arguments.resolution))
    if made is None:
        return None

    def call(index: int, **sampling: Any) -> dict[str, Any]:
        features = engine.inputs_of(pipe, arguments.batch, index)["prompt_embeds"]
        return made.run(features, index, arguments.guidance, **sampling)

    if tried(f"{name} as published", lambda: call(0)) is None:
        # The one thing of theirs that depends on the compiler of the machine: torch.compile of the modulated norm.
        torch.compiler.set_stance("force_eager")
        if tried(f"{name} without torch.compile", lambda: call(0)) is None:
            return None
        words.append(f"torch.compile, for {name} and what follows: not compiled, because that failed")
    return call


def greedy(pipe: Pipeline, method: Any, arguments: argparse.Namespace, index: int) -> Any:
    """Our pixels where the likelier value of every bit is taken."""
    inputs = engine.inputs_of(pipe, arguments.batch, index)
    options = {"resolution": arguments.resolution} if arguments.resolution else {}
    scale = arguments.guidance
    made = pipe(**inputs, method=method, guidance_scale=scale, top_k=1, output_type="np", progress=False, **options)
    return to_bytes(made.images)


def to_bytes(images: Any) -> Any:
    """Pixels as numbers of 0 to 255."""
    images = np.asarray(images, dtype=np.float64)
    return np.round(255 * images) if images.max() <= 1 else images


def check(name: str, call: Any, pipe: Pipeline, arguments: argparse.Namespace) -> None:
    """Prints how far a published implementation's greedy image is from ours, and how far one of other text is."""
    method = make_method("fastvar" if name == "FastVAR" else "dense")
    theirs = to_bytes(call(0, top_k=1)["pixels"])
    ours, other = (greedy(pipe, method, arguments, index) for index in (0, 1))
    near, far = (float(np.abs(theirs - pixels).mean()) for pixels in (ours, other))
    print(f"{name}, greedy: mean difference of pixels {near:.3f} of 255 from ours, {far:.3f} from ours of other text")


def measure(calls: dict[engine.Cell, Call], rounds: int) -> list[engine.Run]:
    """Medians over the rounds of everything, interleaved; what fails is printed and left out."""
    rows: dict[engine.Cell, engine.Run] = {}
    for cell, call in calls.items():  # the first call runs eagerly, the second is captured
        if tried(", ".join(cell), partial(lambda call: (call(0), call(1)), call)) is not None:
            rows[cell] = {"code": cell[0], "method": cell[1]}
    runs: dict[engine.Cell, list[engine.Run]] = {cell: [] for cell in rows}
    for _, cell, found in interleaved(list(rows), range(rounds), lambda cell, number: calls[cell](2 + number)):
        runs[cell].append({name: value for name, value in found.items() if name != "pixels"})
    return [row | engine.summary(runs[cell]) for cell, row in rows.items()]


def collect(pipe: Pipeline, arguments: argparse.Namespace, words: list[str]) -> dict[engine.Cell, Call]:
    """Everything to time: the published implementations that run, then ours by engine and method."""
    calls: dict[engine.Cell, Call] = {}
    for name, method, clone in (("Infinity", "dense", arguments.code), ("FastVAR", "fastvar", arguments.fastvar)):
        if clone is None:
            continue
        code = clone if (clone / "infinity").is_dir() else clone / "Infinity"
        call = published(name, code, pipe, arguments, words)
        if call is None:
            continue
        calls[(name, method)] = call
        if arguments.check:
            tried(f"check of {name}", partial(check, name, call, pipe, arguments))
    ours = engine.Cells(pipe, arguments)
    for cell in ((name, label) for name in ours.engines for label in ours.methods):
        calls[(f"ours, {cell[0]}", cell[1])] = partial(ours.run, cell)
    return calls


def markdown(result: dict[str, Any]) -> str:
    """The rows in ms, and how many times as fast as the published code each is."""
    lines = ["| code | method | loop | decode | whole | times as fast | spread |", "|---" * 7 + "|"]
    slowest = result["rows"][0]["whole"]
    for row in result["rows"]:
        times = " | ".join(f"{row[name]:.0f}" for name in ("loop", "decode", "whole"))
        fast = f"{slowest / row['whole']:.1f}x"
        lines.append(f"| {row['code']} | {row['method']} | {times} | {fast} | {100 * row['spread']:.0f} % |")
    words = "; ".join(result["stand_ins"])
    return "\n".join(lines) + f"\n\nWhat stands in for what their code needs: {words}.\n"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="2b", help="variant of Infinity")
    parser.add_argument("--code", type=Path, required=True, help="clone of FoundationVision/Infinity")
    parser.add_argument("--fastvar", type=Path, help="clone of csguoh/FastVAR; one image of 1024x1024 with guidance")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--resolution", help="name of a schedule; default: the model's own")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--engines", nargs="+", choices=engine.ENGINES, default=["eager", "graphs"])
    parser.add_argument("--methods", nargs="+", default=["dense", "stepvar"])
    parser.add_argument("--tiny", action="store_true", help="a tiny model instead, to try this out")
    parser.add_argument("--check", action="store_true", help="compare greedy images with ours, too")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args(given)
    warnings.filterwarnings("ignore", message=".*(autocast|CUDA is not available).*")
    family, device, dtype = FAMILIES["infinity"], torch.device(arguments.device), getattr(torch, arguments.dtype)
    variant = family.variants[arguments.model]
    if arguments.fastvar is not None and "fastvar" not in arguments.methods:
        arguments.methods.append("fastvar")
    config = TINY if arguments.tiny else variant.config
    pipe = random_pipeline(family, config, device, dtype, arguments.model, **variant.defaults)
    _, words = stand_ins()
    info = provenance(device, command_line(__spec__)) | {"dtype": arguments.dtype}
    rows = measure(collect(pipe, arguments, words), arguments.rounds)
    columns = ("code", "method", *engine.TIMES, "spread", "ran")
    print(info, "", " | ".join(columns), sep="\n")
    for row in rows:
        print(" | ".join(str(row[name]) for name in columns))
        print("    scales:", " ".join(f"{value:.1f}" for value in row["scales"]))
    print("stands in for what their code needs:", *words, sep="\n- ")
    if arguments.out is not None:
        write_text(arguments.out, json.dumps({"info": info, "stand_ins": words, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
