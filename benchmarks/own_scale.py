"""What pruning does where a scale attends to itself alone: ``python -m benchmarks.own_scale``.

In most Switti models no keys are kept, so the tokens that stay see nothing of those that leave, nor of coarser scales;
in the others they still see all coarser scales. Both forms run here with the same weights on the same accumulated
latents, and the last scale is pruned. Reported is how far the features behind the blocks are from dense ones, as a
share of their size. The tokens that are kept are the same in every row, StepVAR's.

The models are random, of 8 blocks. "broad": all weights are independent, and attention is spread over the map, as far
as normalised queries and keys allow. "narrow": keys are made by the weights of the queries, so tokens attend to those
that are like them. Random models show what is lost, not how much a trained model minds.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command_line
from stepvar.conformance.weights import INFINITY_RULE
from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.stack import Sublayer, SublayerRef
from stepvar.core.tokens import TokenMap, gather_tokens
from stepvar.methods import Method, StepVAR
from stepvar.methods.contract import hooks_of
from stepvar.methods.pruning import PruningState
from stepvar.models.switti import PooledCondition, Switti, SwittiConfig
from stepvar.models.switti.config import PATCH_NUMS
from stepvar.models.var.config import VQConfig
from stepvar.text import PooledFeatures
from stepvar.utils.device import full_precision
from stepvar.utils.files import write_text

CONFIG = SwittiConfig(
    depth=8,
    width=256,
    heads=4,
    patch_nums=PATCH_NUMS[512],
    text_channels=64,
    pooled_channels=64,
    tokenizer=VQConfig(base_channels=32),
)
FORMS = {"own scale": False, "cached": True}
WEIGHTS = ("broad", "narrow")
KEEPS = (0.5, 0.25)


@dataclass
class FixedState(PruningState):
    """The scores of each pass, as the first selection made them."""

    scores: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Fixed(StepVAR):
    """StepVAR that keeps the same tokens in all blocks and sub-layers of a pass."""

    def start(self, plan: Plan) -> FixedState:
        return FixedState(sources=self.sources(plan))

    def score(self, tokens: TokenMap, step: Step, state: Any) -> Tensor:
        if step.index not in state.scores:
            state.scores[step.index] = super().score(tokens, step, state)
        scores: Tensor = state.scores[step.index]
        return scores


@dataclass(frozen=True)
class QueriesOnly(Fixed):
    """Prunes queries, and all products but those of keys and values: kept tokens attend to every token of the scale.

    Each sub-layer restores the whole map, from which the next block makes all keys and values. For its result only:
    here the other tokens' queries are computed, too, and thrown away.
    """

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        return step.grid.size

    def run_sublayer(self, run: Sublayer, tokens: TokenMap, ref: SublayerRef, step: Step, state: Any) -> Tensor:
        if ref.name != "self" or self.count_at(step) == step.grid.size:
            return super().run_sublayer(run, tokens, ref, step, state)
        selection = self.select(tokens, self.count_at(step), step, state)
        return self.restoration.restore(gather_tokens(run(tokens), selection.kept), selection, step, None)


@dataclass(frozen=True)
class Case:
    """A way to prune, and the share of a block's products that it computes at a share of kept tokens."""

    label: str
    method: Callable[[float], Method[Any]]
    products: Callable[[float], float] = lambda keep: keep


SUBLAYER: dict[str, Any] = {"scope": "sublayer", "propagate": "update", "last": 1}
KEY_VALUE = 2 / 14
"""Share of the products of a token in a block that make keys and values: 2 C^2 of 14 C^2."""


def queries_only(keep: float) -> float:
    """Products where keys and values of all tokens are made."""
    return KEY_VALUE + (1 - KEY_VALUE) * keep


CASES = (
    Case("whole stack (the default)", lambda keep: Fixed(keep=keep, last=1)),
    Case("whole stack, anchors", lambda keep: Fixed(keep=keep, last=1, restore="anchors")),
    Case("every sub-layer", lambda keep: Fixed(keep=keep, **SUBLAYER)),
    Case("every sub-layer, anchors", lambda keep: Fixed(keep=keep, restore="anchors", **SUBLAYER)),
    Case("queries only", lambda keep: QueriesOnly(keep=keep, **SUBLAYER), queries_only),
    Case("queries only, anchors", lambda keep: QueriesOnly(keep=keep, restore="anchors", **SUBLAYER), queries_only),
)


def random_model(weights: str, cached: bool, config: SwittiConfig = CONFIG) -> Switti:
    """A model with weights by the rule of the goldens: gates are open and every part matters."""
    model = Switti(replace(config, cached=cached)).eval().requires_grad_(False)
    for name, tensor in model.transformer.state_dict().items():
        tensor.copy_(INFINITY_RULE(name, tuple(tensor.shape), 0))
    if weights == "narrow":
        for block in model.transformer.ordered_blocks:
            joint = block.attn.to_qkv
            width = joint.in_features
            joint.weight[width : 2 * width] = joint.weight[:width]
            joint.bias[width : 2 * width] = joint.bias[:width]
    return model


def latents(model: Switti, images: int) -> list[Tensor]:
    """An accumulated latent (B, d, H, W) for each scale: smooth, with detail in one quarter of the map."""
    channels, side = model.config.tokenizer.channels, model.config.patch_nums[-1]
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(images, channels, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    detail = torch.randn(images, channels, side, side, generator=generator)
    detail[:, :, side // 2 :], detail[..., side // 2 :] = 0, 0
    scales = len(model.config.patch_nums)
    return [smooth + scale / scales * detail for scale in range(scales)]


def texts(config: SwittiConfig, images: int) -> PooledCondition:
    """Other features for every image."""
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.randn(images, 12, config.text_channels, generator=generator)
    return PooledCondition(
        PooledFeatures.of(embeddings, torch.randn(images, config.pooled_channels, generator=generator))
    )


@torch.inference_mode()
def last_features(model: Switti, method: Method[Any], images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the last scale features behind the blocks (B, N, C), most likely indices (B, N), and kept tokens (B, K)."""
    schedule = model.schedule()
    count = len(schedule)
    settings = Settings(schedule, (1.0,) * count, (1.0,) * count)
    plan = method.plan(settings, model.info, images)
    state, method_state = model.start(texts(model.config, images), plan), method.start(plan)
    for step, latent in zip(plan.steps, latents(model, images), strict=True):
        if not step.is_last and not step.is_read:
            continue  # nothing that it leaves is seen later
        state.latent = latent
        blocks = model.blocks(state, step, hooks_of(method, step, method_state))
        tokens = method.run_stack(blocks, model.embed(state, step), step, method_state)
    kept = method_state.selections.get(plan.steps[-1].index, ())
    everything = torch.arange(tokens.grid.size).expand(images, -1)
    return tokens.features, model.predict(state, tokens, step).argmax(-1), kept[0] if kept else everything


def relative(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the error as a share of that of the value."""
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def measure(images: int, config: SwittiConfig = CONFIG) -> list[dict[str, Any]]:
    """A row for each way to prune, each share of kept tokens and each kind of weights."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for weights in WEIGHTS:
        for form, cached in FORMS.items():
            model = random_model(weights, cached, config)
            dense, indices, _ = last_features(model, Method(), images)
            for keep in KEEPS:
                for case in CASES:
                    features, drawn, kept = last_features(model, case.method(keep), images)
                    row = rows.setdefault(
                        (weights, keep, case.label),
                        {"weights": weights, "keep": keep, "case": case.label, "products": case.products(keep)},
                    )
                    row[form] = {
                        "kept": relative(gather_tokens(features, kept), gather_tokens(dense, kept)),
                        "all": relative(features, dense),
                        "indices": float((drawn != indices).float().mean()),
                    }
                    print(f"{weights}, {form}, keep {keep}, {case.label}: {row[form]}", flush=True)
    return list(rows.values())


def markdown(result: dict[str, Any]) -> str:
    """One row per way to prune, the two forms beside each other, for the first kind of weights."""
    lines = [
        "| kept | pruned | products | own scale: kept tokens, all tokens, codes that differ | cached |",
        "|---|---|---|---|---|",
    ]
    for row in (row for row in result["rows"] if row["weights"] == WEIGHTS[0]):
        cells = [f"{100 * row['keep']:.0f} %", row["case"], f"{100 * row['products']:.0f} %"]
        for form in FORMS:
            cells.append(", ".join(f"{100 * row[form][name]:.1f} %" for name in ("kept", "all", "indices")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with full_precision():
        rows = measure(arguments.images)
    info = {"command": command_line(__spec__), "device": "cpu", "machine": platform.machine()}
    result = {"info": info | {"torch": torch.__version__}, "rows": rows}
    print(markdown(result))
    if arguments.out is not None:
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
