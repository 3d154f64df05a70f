"""The two ways to compute a causal convolution are one."""

import torch

from stepvar.models.infinity_star.tokenizer import VideoTokenizer
from stepvar.models.infinity_star.video_layers import CausalConv, Past
from training.video.convolution import FoldedConv, fold_convolutions, folded, whole
from training.video.presets import PRESETS
from training.video.tokenizer import channels_last, encode


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


def test_a_tokenizer_with_folded_convolutions_is_the_same_with_the_same_weights() -> None:
    torch.manual_seed(0)
    config = PRESETS["tiny"].model.tokenizer
    own, other = VideoTokenizer(config), VideoTokenizer(config)
    fold_convolutions(other)
    assert not any(isinstance(module, CausalConv) for module in other.modules())
    assert sum(isinstance(module, FoldedConv) for module in other.modules()) > 4
    assert list(own.state_dict()) == list(other.state_dict())
    other.load_state_dict(own.state_dict())
    videos = torch.randn(1, 3, 9, 32, 32)
    with torch.inference_mode():
        features = encode(own, videos)
        torch.testing.assert_close(encode(other, videos), features, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(other.decode(features), own.decode(features), atol=1e-4, rtol=1e-4)
        # In chunks, too, which hand frames to each other.
        torch.testing.assert_close(other.decode(features, chunk=1), own.decode(features), atol=1e-4, rtol=1e-4)
