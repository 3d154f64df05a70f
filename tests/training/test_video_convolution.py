"""The two ways to compute a causal convolution are one."""

import torch

from stepvar.models.infinity_star.video_layers import CausalConv, Past
from training.video.convolution import folded, whole
from training.video.tokenizer import channels_last


def test_folded_and_whole_convolutions_are_equal_with_their_gradients() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, 7, 8).contiguous(memory_format=torch.channels_last_3d)
    layer = CausalConv(5, 4)
    channels_last(layer)
    weight, bias = layer.conv.weight, layer.conv.bias
    assert bias is not None
    results = []
    for way in (whole, folded):
        leaf = x.clone().requires_grad_()
        out = way(leaf, weight, bias)
        results.append([out, *torch.autograd.grad(out.square().sum(), (leaf, weight, bias))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)
    past = Past()
    torch.testing.assert_close(layer(x, past), whole(past.extend(layer, x), weight, bias))
