"""Looking into a generation without touching it: a model and a method that write down what passes through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.tokens import TokenMap
from stepvar.methods.base import Method, ModelInfo, RunBlocks, SublayerRef
from stepvar.models.base import Condition_contra, NextScaleModel, RunState

Record = dict[str, Tensor]
"""What was seen, by the names that goldens use."""


@dataclass(frozen=True)
class RecordBlocks(Method):
    """A method that notes the features behind every block and behind the whole stack, and what another method keeps.

    Where guidance mixes the branches behind a block, the block's features are those in front of the mixing.

    Attributes:
        record: where it is noted.
        method: the method that acts; dense if none is given.
    """

    record: Record
    method: Method = field(default_factory=Method)

    def edit(self, plan: Plan) -> Plan:
        return self.method.edit(plan)

    def check(self, plan: Plan, info: ModelInfo) -> None:
        self.method.check(plan, info)

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        return self.method.tokens_at(step, layer, depth)

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step) -> TokenMap:
        tokens = self.method.run_stack(run, tokens, step)
        self.record[f"hidden_{step.index}"] = tokens.features
        return tokens

    def run_sublayer(self, run: Callable[[TokenMap], Tensor], tokens: TokenMap, ref: SublayerRef, step: Step) -> Tensor:
        known = len(step.selections)
        update = self.method.run_sublayer(run, tokens, ref, step)
        if len(step.selections) > known:
            short = {"self": "sa", "cross": "ca", "ffn": "ffn"}[ref.name]
            self.record[f"kept_s{step.index}_l{ref.layer}_{short}"] = step.selections[-1]
        if ref.name == "ffn":
            self.record[f"blockout_s{step.index}_l{ref.layer}"] = tokens.features + update
        return update


class LatentState(RunState, Protocol):
    """A state with a latent picture."""

    latent: Tensor


State = TypeVar("State", bound=LatentState)


class RecordableModel(NextScaleModel[Condition_contra, State], Protocol[Condition_contra, State]):
    """A model that says what its next tokens are made of."""

    def next_tokens(self, latent: Tensor, step: Step) -> Tensor: ...


class RecordingModel(Generic[Condition_contra, State]):
    """A model that notes the tokens and logits of every scale; its subclasses note what only a family has."""

    def __init__(self, model: RecordableModel[Condition_contra, State], record: Record) -> None:
        self.model, self.record = model, record

    @property
    def info(self) -> ModelInfo:
        return self.model.info

    def start(self, condition: Condition_contra, plan: Plan, method: Method) -> State:
        return self.model.start(condition, plan, method)

    def embed(self, state: State, step: Step) -> TokenMap:
        if step.index:
            # A copy: at full size these are the latent picture itself, to which the loop adds in place.
            self.record[f"tokens_in_{step.index}"] = self.model.next_tokens(state.latent, step).clone()
        return self.model.embed(state, step)

    def blocks(self, state: State, step: Step, method: Method) -> RunBlocks:
        return self.model.blocks(state, step, method)

    def predict(self, state: State, tokens: TokenMap, step: Step) -> Tensor:
        logits = self.model.predict(state, tokens, step)
        self.record[f"logits_{step.index}"] = logits.flatten(2)
        return logits

    def accumulate(self, state: State, symbols: Tensor, step: Step, weights: Tensor | None = None) -> None:
        self.model.accumulate(state, symbols, step, weights)

    def refine(self, state: State, tokens: TokenMap, symbols: Tensor, step: Step, noise: Noise) -> None:
        self.model.refine(state, tokens, symbols, step, noise)

    def decode(self, state: State) -> Tensor:
        return self.model.decode(state)
