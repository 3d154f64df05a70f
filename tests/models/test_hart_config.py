"""What checkpoints of HART say of themselves, and what they hold."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stepvar.errors import CheckpointError
from stepvar.models.hart import HART, RELEASED, HARTConfig
from tests.checkpoint_writer import published_hart
from tests.helpers import TINY_HART


def test_names_of_the_released_weights() -> None:
    path = Path(__file__).parents[1] / "goldens" / "hart_inferred_keys.json"
    listed = json.loads(path.read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = HART(RELEASED)
    for part, entry in (("transformer", "transformer_inferred_config"), ("tokenizer", "vae")):
        own = {name: list(tensor.shape) for name, tensor in getattr(model, part).state_dict().items()}
        constants = ("lvl_1L", "attn_bias_for_masking", "quantize.ema_vocab_hit_SV")
        assert own == {name: shape for name, shape in listed[entry].items() if name not in constants}


def test_released_size() -> None:
    with torch.device("meta"):
        model = HART(RELEASED)
    head = sum(p.numel() for p in model.transformer.diffloss.parameters())
    assert sum(p.numel() for p in model.transformer.parameters()) == pytest.approx(732.6e6, rel=1e-4)
    assert head == pytest.approx(36.6e6, rel=5e-3)
    assert sum(p.numel() for p in model.tokenizer.parameters()) == pytest.approx(108.9e6, rel=1e-3)
    assert model.schedule().size == 9451 and RELEASED.ffn_width == 4096 and model.schedule().name == "1024x1024"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {}),
        ({"shared_aln": False}, {"modulation": "none"}),
        ({"disable_aln": False}, {"modulation": "own"}),
        ({"disable_aln": False, "sep_aln_pooling_mode": "avg"}, {"modulation": "own", "pooling": "mean"}),
        ({"mlp_type": "gpt2", "mlp_ratio": 3}, {"feed_forward": "gelu", "mlp_ratio": 3}),
        ({"attn_type": "gpt2", "use_context_norm": False}, {"positions": "learned", "context_norm": False}),
        ({"attn_l2_norm": True, "use_timestep_embed": False}, {"unit_attention": True, "levels": "table"}),
    ],
    ids=str,
)
def test_published_configurations(change: dict[str, Any], expected: dict[str, Any]) -> None:
    config = HARTConfig.published(*published_hart(**change))
    assert config == replace(TINY_HART, **expected)
    assert HARTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert asdict(config) == config.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_cross_attn": True}, "use_cross_attn=True is not supported"),
        ({"sampler": "ddim"}, "sampler='ddim' is not supported; only 'iddpm'"),
        ({"attn_type": "mamba"}, "attn_type='mamba' is not supported; only llama, gpt2"),
        ({"num_heads": 5}, "heads=5: width=48"),
        ({"num_sampling_steps": "1"}, "diffusion_steps=1: must be between 2 and 1000"),
        ({"attn_type": "gpt2"}, "context_norm: is not possible with learned positions"),
        ({"quantizer_type": "fsq"}, "quantizer_type='fsq' is not supported"),
        ({"using_znorm": True}, "using_znorm=True is not supported"),
        ({"share_quant_resi": 1}, "share_quant_resi=1 is not supported"),
        ({"patch_nums": [2, 4]}, "patch_nums"),
    ],
)
def test_what_is_not_supported(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        HARTConfig.published(*published_hart(**change))
    transformer, tokenizer = published_hart()
    del transformer["depth"]
    with pytest.raises(CheckpointError, match="lacks depth"):
        HARTConfig.published(transformer, tokenizer)
