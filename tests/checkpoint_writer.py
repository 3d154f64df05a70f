"""Small checkpoints in the layouts of the published ones: names, nesting, shards and constants are theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from stepvar.models.hart import HARTConfig
from stepvar.models.infinity import InfinityConfig
from stepvar.models.infinity import checkpoint as infinity
from stepvar.models.infinity_star import InfinityStarConfig
from stepvar.models.infinity_star import checkpoint as infinity_star
from stepvar.models.registry import FAMILIES
from stepvar.models.star import STARConfig
from stepvar.models.star import checkpoint as star
from stepvar.models.switti import SwittiConfig
from stepvar.models.var import VARConfig, VQConfig
from stepvar.models.var import checkpoint as var
from stepvar.models.var.config import PATCH_NUMS
from tests.helpers import (
    TINY,
    TINY_HART,
    TINY_STAR,
    TINY_STAR_T2I,
    TINY_VAR,
    make_hart,
    make_model,
    make_star,
    make_star_t2i,
    make_switti,
    make_var,
)

Layout = Literal["flat", "legacy", "trainer", "ema", "safetensors", "shards", "bin shards"]
Style = Literal["wrapped", "plain"]

INFINITY_LAYOUTS: tuple[Layout, ...] = ("flat", "legacy", "trainer", "ema", "safetensors", "shards", "bin shards")


@dataclass(frozen=True)
class Release:
    """Files that were written, and what has to be found in them.

    Attributes:
        folder: with the files' published names in it.
        transformer, tokenizer: the files, or the folder of shards.
        model: with the weights of the files in float32, by the rule.
    """

    folder: Path
    transformer: Path
    tokenizer: Path
    model: Any


def write_infinity(
    folder: Path,
    config: InfinityConfig = TINY,
    variant: str = "2b",
    layout: Layout = "flat",
    style: Style = "wrapped",
    dtype: torch.dtype = torch.float32,
    spelling: int = 0,
) -> Release:
    """Writes a transformer and a tokenizer as the variant's files are called, and a ``config.json`` with the sizes.

    Args:
        style: of the tokenizer's names: with or without the level around convolutions and norms.
        spelling: which of the tokenizer's file names to use.
    """
    model, released = make_model(config), infinity.VARIANTS[variant]
    folder.mkdir(parents=True, exist_ok=True)
    state = _stored(model.transformer.state_dict(), dtype)
    state |= {"lvl_1L": torch.zeros(1, 5, dtype=torch.int64), "Infinity_visible_kvlen": torch.ones(3)}
    transformer = folder / released.transformer[0]
    if layout == "safetensors":
        transformer = transformer.with_suffix(".safetensors")
    write_state(transformer, state, layout)
    codes = _stored(model.tokenizer.state_dict(), dtype)
    codes = codes if style == "wrapped" else {_plain(name): tensor for name, tensor in codes.items()}
    mask = 2 ** torch.arange(config.tokenizer.code_bits)
    tokenizer = folder / released.tokenizer[spelling]
    torch.save({"vae": codes | {"quantizer.lfq.mask": mask, "quantize.lfq.mask": mask}}, tokenizer)
    write_sizes(folder, "infinity", config)
    return Release(folder, transformer, tokenizer, model)


def write_var(
    folder: Path, config: VARConfig = TINY_VAR, variant: str = "d16", dtype: torch.dtype = torch.float32
) -> Release:
    """Likewise for VAR, with the constants that its files hold."""
    model, released = make_var(config), var.VARIANTS[variant]
    folder.mkdir(parents=True, exist_ok=True)
    levels = torch.cat([torch.full((side * side,), level) for level, side in enumerate(config.patch_nums)])[None]
    bias = torch.zeros(1, 1, levels.shape[1], levels.shape[1])
    bias.masked_fill_(levels[:, None, :, None] < levels[:, None, None, :], -torch.inf)
    derived = {"lvl_1L": levels, "attn_bias_for_masking": bias}
    transformer, tokenizer = folder / released.transformer[0], folder / released.tokenizer[0]
    torch.save(_stored(model.transformer.state_dict(), dtype) | derived, transformer)
    hits = {"quantize.ema_vocab_hit_SV": torch.zeros(len(config.patch_nums), config.tokenizer.vocabulary)}
    torch.save(_stored(model.tokenizer.state_dict(), dtype) | hits, tokenizer)
    write_sizes(folder, "var", config)
    return Release(folder, transformer, tokenizer, model)


def write_star(
    folder: Path,
    config: InfinityStarConfig = TINY_STAR,
    variant: str = "480p",
    layout: Layout = "shards",
    dtype: torch.dtype = torch.float32,
) -> Release:
    """Likewise for InfinityStar: a folder of shards, and a tokenizer with parts that nothing runs."""
    model, released = make_star(config), infinity_star.VARIANTS[variant]
    folder.mkdir(parents=True, exist_ok=True)
    transformer, tokenizer = folder / released.transformer[0], folder / released.tokenizer[0]
    if "shards" not in layout:
        transformer = transformer.with_suffix(".safetensors" if layout == "safetensors" else ".pth")
    state = _stored(model.transformer.state_dict(), dtype) | {"sos_token": torch.zeros(1, 1, config.width)}
    write_state(transformer, state, layout)
    codes = _stored(model.tokenizer.state_dict(), dtype)
    unused = {f"proj_{name}_two.{kind}": torch.zeros(3) for name in ("up", "down") for kind in ("weight", "bias")}
    unused |= {
        f"{module}.lfq_{kind}.mask": 2 ** torch.arange(4)
        for module in ("quantizer", "quantize")
        for kind in ("semantic", "detail")
    }
    averaged = {name: torch.full_like(tensor, 7) for name, tensor in codes.items()}
    torch.save({"vae": codes | unused, "ema": averaged}, tokenizer)
    write_sizes(folder, "infinity_star", config)
    return Release(folder, transformer, tokenizer, model)


HartLayout = Literal["averaged", "averaged in part", "whole", "shards", "safetensors"]

HART_LAYOUTS: tuple[HartLayout, ...] = ("averaged", "averaged in part", "whole", "shards", "safetensors")


def write_hart(folder: Path, config: HARTConfig = TINY_HART, layout: HartLayout = "averaged") -> Release:
    """Two folders as the release has them, each with a configuration of its own.

    Args:
        layout: of the transformer: averaged weights beside others, all or some of them, or one set in one file or
            several.
    """
    model = make_hart(config)
    transformer, tokenizer = folder / "llm", folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    state = _stored(model.transformer.state_dict(), torch.float32)
    state |= {"lvl_1L": torch.zeros(1, 5, dtype=torch.int64), "attn_bias_for_masking": torch.zeros(1, 1, 5, 5)}
    base = {name: tensor + 7 for name, tensor in state.items()}
    if layout == "shards":
        _write_shards(transformer, state, "safetensors")
    else:
        transformer.mkdir()
    if layout == "averaged":
        save_file(base, transformer / "model.safetensors")
        torch.save(state, transformer / "ema_model.bin")
    if layout == "averaged in part":
        averaged = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
        save_file(base | {name: state[name] for name in state.keys() - averaged}, transformer / "model.safetensors")
        torch.save(averaged, transformer / "ema_model.bin")
    if layout == "whole":
        torch.save(state, transformer / "pytorch_model.bin")
    if layout == "safetensors":
        save_file(state, transformer / "model.safetensors")
    codes = {f"vae.{name}": tensor for name, tensor in _stored(model.tokenizer.state_dict(), torch.float32).items()}
    codes |= {"vae.quantize.ema_vocab_hit_SV": torch.zeros(5, 48), "disc.main.0.weight": torch.zeros(3)}
    save_file(codes, tokenizer / "model.safetensors")
    for part, values in zip((transformer, tokenizer), published_hart(config), strict=True):
        (part / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return Release(folder, transformer, tokenizer, model)


def write_star_t2i(
    folder: Path, config: STARConfig = TINY_STAR_T2I, variant: str = "d30-1024-sampler", name: str = ""
) -> Release:
    """A training checkpoint of STAR, and VAR's tokenizer.

    Args:
        name: of the transformer's file; "": the published one.
    """
    model, released = make_star_t2i(config), star.VARIANTS[variant]
    folder.mkdir(parents=True, exist_ok=True)
    transformer = folder / (name or released.transformer[0])
    tokenizer = folder / released.tokenizer[0]
    state = model.transformer.state_dict() | {"class_emb.weight": torch.zeros(11, config.width)}
    torch.save({"epoch": 2, "trainer": {"var_wo_ddp": state, "var_opt": {"step": 3}}}, transformer)
    hits = {"quantize.ema_vocab_hit_SV": torch.zeros(len(config.patch_nums), config.tokenizer.vocabulary)}
    torch.save(model.tokenizer.state_dict() | hits, tokenizer)
    write_sizes(folder, "star", config)
    return Release(folder, transformer, tokenizer, model)


def published_hart(config: HARTConfig = TINY_HART, **change: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the configuration files of a release say of a model of the released flavour.

    Args:
        change: other entries, of either file.
    """
    codes = config.tokenizer
    tokenizer = {
        "model_type": "hart_autoencoder_with_disc",
        "vocab_size": codes.vocabulary,
        "z_channels": codes.channels,
        "ch": codes.base_channels,
        "ch_mult": list(codes.multipliers),
        "quantizer_type": "var_hybrid",
        "using_znorm": False,
        "share_quant_resi": codes.convs,
    }
    transformer = {
        "model_type": "hart_transformer_t2i",
        "depth": config.depth,
        "embed_dim": config.width,
        "num_heads": config.heads,
        "patch_nums": list(config.patch_nums),
        "context_token": config.context_tokens,
        "context_dim": config.context_channels,
        "mlp_ratio": config.mlp_ratio,
        "attn_type": "llama",
        "mlp_type": "llama",
        "disable_aln": True,
        "shared_aln": True,
        "use_timestep_embed": True,
        "use_context_norm": True,
        "attn_l2_norm": False,
        "diff_width": config.diffusion_width,
        "diff_depth": config.diffusion_depth,
        "num_sampling_steps": str(config.diffusion_steps),
    }
    for name, value in change.items():
        (tokenizer if name in tokenizer else transformer)[name] = value
    return transformer, tokenizer


SMALL_SWITTI = SwittiConfig(
    depth=1,
    width=64,
    heads=1,
    patch_nums=PATCH_NUMS[256],
    tokenizer=VQConfig(vocabulary=48, channels=6, base_channels=32, multipliers=(1, 2)),
)
"""What a published configuration file can say."""


def write_switti(folder: Path, config: SwittiConfig = SMALL_SWITTI, name: str = "Switti") -> Release:
    """Two folders as the repositories of a release are called, with the constants that its files hold."""
    model = make_switti(config)
    transformer, tokenizer = folder / name, folder / "VQVAE-Switti"
    levels = torch.cat([torch.full((side * side,), level) for level, side in enumerate(config.patch_nums)])[None]
    seen = levels[:, :, None] >= levels[:, None, :] if config.cached else levels[:, :, None] == levels[:, None, :]
    constants = {
        "lvl_1L": levels,
        "attn_bias_for_masking": torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[None],
    }
    hits = {"quantize.ema_vocab_hit_SV": torch.zeros(14, config.tokenizer.vocabulary)}
    for path, module, extra in ((transformer, model.transformer, constants), (tokenizer, model.tokenizer, hits)):
        path.mkdir(parents=True)
        save_file(_stored(module.state_dict(), torch.float32) | extra, path / "model.safetensors")
    for path, values in zip((transformer, tokenizer), published_switti(config), strict=True):
        (path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return Release(folder, transformer, tokenizer, model)


def published_switti(config: SwittiConfig = SMALL_SWITTI) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the original's constructors, as its configuration files hold them."""
    codes = config.tokenizer
    transformer = {
        "depth": config.depth,
        "rope": True,
        "rope_theta": 10000,
        "rope_size": 128,
        "use_swiglu_ffn": True,
        "use_ar": config.cached,
        "use_crop_cond": config.crop_condition,
        "reso": 256,
    }
    tokenizer = {
        "vocab_size": codes.vocabulary,
        "z_channels": codes.channels,
        "ch": codes.base_channels,
        "ch_mult": list(codes.multipliers),
        "test_mode": True,
        "share_quant_resi": 4,
        "reso": 1024,
    }
    return transformer, tokenizer


def write_sizes(folder: Path, family: str, config: Any) -> None:
    """The file that tells that the checkpoint beside it is smaller than the released one."""
    assert family in FAMILIES
    text = json.dumps({"family": family, "model": config.to_dict()})
    (folder / "config.json").write_text(text, encoding="utf-8")


def write_state(path: Path, state: dict[str, Tensor], layout: Layout) -> None:
    """Writes a state dict in one of the published layouts."""
    other = {name: torch.full_like(tensor, 7) for name, tensor in state.items()}
    nested: dict[str, Any] = {"gpt_fsdp": state, "opt": {"step": 3}}
    if layout == "flat":
        torch.save(state, path)
    elif layout == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif layout == "trainer":
        torch.save({"trainer": nested | {"gpt_ema_fsdp": None}, "epoch": 1}, path)
    elif layout == "ema":
        torch.save({"trainer": nested | {"gpt_fsdp": other, "gpt_ema_fsdp": state}, "epoch": 1}, path)
    elif layout == "safetensors":
        save_file(state, path)
    else:
        _write_shards(path, state, "bin" if layout == "bin shards" else "safetensors")


def _write_shards(folder: Path, state: Mapping[str, Tensor], kind: str) -> None:
    folder.mkdir()
    stem, count = ("pytorch_model" if kind == "bin" else "model"), 3
    places = {name: f"{stem}-{1 + index % count:05}-of-{count:05}.{kind}" for index, name in enumerate(sorted(state))}
    for shard in set(places.values()):
        held = {name: state[name] for name in places if places[name] == shard}
        if kind == "bin":
            torch.save(held, folder / shard)
        else:
            save_file(held, folder / shard)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index), encoding="utf-8")


def _stored(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def _plain(name: str) -> str:
    """Without the innermost level around convolutions and norms."""
    *path, wrapper, last = name.split(".")
    assert wrapper in ("conv", "norm")
    return ".".join((*path, last))
