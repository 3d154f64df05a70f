"""Looking into a generation without touching it: a model and a method that write down what passes through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from stepvar.methods.base import Method, RunBlocks, Site
from stepvar.models.infinity import Infinity, TextCondition
from stepvar.models.infinity.model import BlockRun, InfinityState
from stepvar.plan import Plan, Step
from stepvar.tokens import TokenMap

Record = dict[str, Tensor]
"""What was seen, by the names that goldens use."""


@dataclass(frozen=True)
class RecordBlocks(Method):
    """Dense generation that notes the features behind every block and behind the whole stack.

    Where guidance mixes the branches behind a block, the block's features are those in front of the mixing.
    """

    record: Record

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step) -> TokenMap:
        tokens = run(tokens)
        self.record[f"hidden_{step.index}"] = tokens.features
        return tokens

    def run_sublayer(self, run: Callable[[TokenMap], Tensor], tokens: TokenMap, site: Site, step: Step) -> Tensor:
        update = run(tokens)
        if site.sublayer == "ffn":
            self.record[f"blockout_s{step.index}_l{site.layer}"] = tokens.features + update
        return update


class RecordingModel:
    """An Infinity model that notes its condition, and the tokens, logits and bits of every scale."""

    def __init__(self, model: Infinity, record: Record) -> None:
        self.model, self.record = model, record

    def start(self, condition: TextCondition, plan: Plan, method: Method) -> InfinityState:
        state = self.model.start(condition, plan, method)
        self.record["cond_BD"] = state.condition.pooled
        return state

    def embed(self, state: InfinityState, step: Step) -> TokenMap:
        if step.index:
            # A copy: at full size these are the latent picture itself, to which the loop adds in place.
            self.record[f"tokens_in_{step.index}"] = self.model.next_tokens(state.latent, step).clone()
        return self.model.embed(state, step)

    def blocks(self, state: InfinityState, step: Step, method: Method) -> BlockRun:
        return self.model.blocks(state, step, method)

    def predict(self, state: InfinityState, tokens: TokenMap, step: Step) -> Tensor:
        logits = self.model.predict(state, tokens, step)
        self.record[f"logits_{step.index}"] = logits.flatten(2)
        return logits

    def accumulate(self, state: InfinityState, symbols: Tensor, step: Step) -> None:
        self.record[f"bits_{step.index}"] = frames_last(self.model.latent_bits(symbols, step))
        self.model.accumulate(state, symbols, step)

    def decode(self, state: InfinityState) -> Tensor:
        return self.model.decode(state)


def frames_last(bits: Tensor) -> Tensor:
    """Bits (B, d, h, w) -> (B, 1, h, w, d), the layout of the goldens."""
    return bits.movedim(1, -1).unsqueeze(1)
