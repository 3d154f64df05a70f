"""Weights of a model with fewer bits per token, for one with more that does the same to begin with.

A code is ``d ** -0.5`` with the sign of its bit: with more bits, codes and latents are smaller and keep their signs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stepvar.models.infinity.tokenizer import BitTokenizer
from stepvar.models.infinity.transformer import InfinityTransformer


@torch.no_grad()
def widened_tokenizer(state: Mapping[str, Tensor], tokenizer: BitTokenizer) -> Mapping[str, Tensor]:
    """Weights that give the same copies.

    The decoder does not see the new bits yet; the encoder's weights for them are those that ``tokenizer`` has.
    """
    weight, bias, first = "encoder.conv_out.conv.weight", "encoder.conv_out.conv.bias", "decoder.conv_in.conv.weight"
    own, old = tokenizer.config.code_bits, len(state[bias])
    if old >= own:
        return state
    shrunk = (old / own) ** 0.5
    wide = {name: tokenizer.state_dict()[name].clone() for name in (weight, bias, first)}
    wide[weight][:old], wide[bias][:old] = state[weight] * shrunk, state[bias] * shrunk
    wide[first].zero_()
    wide[first][:, :old] = state[first] / shrunk
    return {**state, **wide}


@torch.no_grad()
def widened_transformer(state: Mapping[str, Tensor], transformer: InfinityTransformer) -> Mapping[str, Tensor]:
    """Weights that give the same logits of the old bits, and of the new ones, which are not read yet, even chances.

    Of models whose tokens are single cells (``patchify`` is off): the bits of a token then end with the new ones.
    """
    weight, bias, inputs = "head.weight", "head.bias", "word_embed.weight"
    own, old = transformer.word_embed.in_features, state[inputs].shape[1]
    if old >= own:
        return state
    wide = {name: torch.zeros_like(transformer.get_parameter(name)) for name in (weight, bias, inputs)}
    wide[weight][: 2 * old], wide[bias][: 2 * old] = state[weight], state[bias]
    wide[inputs][:, :old] = state[inputs] * (own / old) ** 0.5
    return {**state, **wide}
