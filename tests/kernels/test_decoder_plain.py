"""The plain paths of the decoder's operations and of fp8."""

import torch
import torch.nn.functional as F

from stepvar.kernels import decoder, fp8
from stepvar.kernels.norm import Norm


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_a_fused_residual_block_is_the_block() -> None:
    """Biases left out of the convolutions and added later change nothing but the order of sums."""
    x, (first, second) = random(2, 32, 6, 5), random(2, 32, 32, 3, 3, seed=1) / 17
    weights, biases, conv_biases = random(2, 32, seed=2), random(2, 32, seed=3), random(2, 32, seed=4)

    def norm(x: torch.Tensor, index: int) -> torch.Tensor:
        return F.silu(F.group_norm(x, 8, weights[index], biases[index], 1e-6))

    inner = F.conv2d(norm(x, 0), first, conv_biases[0], padding=1)
    expected = x + F.conv2d(norm(inner, 1), second, conv_biases[1], padding=1)

    def fused(x: torch.Tensor, moments: decoder.Moments, index: int, bias: torch.Tensor | None) -> torch.Tensor:
        return decoder.apply_group_norm(x, moments, weights[index], biases[index], 1e-6, conv_bias=bias)

    inner = F.conv2d(fused(x, decoder.group_moments(x, 8), 0, None), first, None, padding=1)
    inner = fused(inner, decoder.group_moments(inner, 8, conv_biases[0]), 1, conv_biases[0])
    got, moments = decoder.add_bias_residual(F.conv2d(inner, second, None, padding=1), conv_biases[1], x, 8)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    variance, mean = torch.var_mean(expected.unflatten(1, (8, -1)).flatten(2), 2, correction=0)
    torch.testing.assert_close(moments, (mean, variance), rtol=1e-5, atol=1e-5)


def test_upsampling() -> None:
    x = random(2, 3, 4, 5)
    assert torch.equal(decoder.upsample_nearest2x(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_quantised_rows_keep_three_digits_of_a_mantissa() -> None:
    x = random(3, 5, 64) * torch.tensor([1e-3, 1.0, 1e4])[:, None, None]
    rows = fp8.quantise_rows(x)
    assert rows.values.dtype == fp8.FP8 and rows.scale.shape == (3, 5, 1)
    assert torch.equal(rows.values.float().abs().amax(-1), torch.full((3, 5), fp8.MAX))
    # Half a step of four bits, and half of the smallest step next to zero.
    error, bound = (rows.dequantise() - x).abs(), x.abs() * 2**-4 + rows.scale * 2**-10
    assert (error <= bound * 1.001).all()


def test_a_row_of_zeros_stays_zero() -> None:
    assert not fp8.quantise_rows(torch.zeros(2, 16)).dequantise().any()


def test_a_product_in_fp8() -> None:
    x, weight, bias = random(2, 3, 64), random(32, 64, seed=1), random(32, seed=2)
    rows, quantised = fp8.quantise_rows(x), fp8.quantise_rows(weight)
    product = fp8.fp8_linear(rows, quantised, bias, torch.float32)
    exact = rows.dequantise().double() @ quantised.dequantise().double().t() + bias.double()
    torch.testing.assert_close(product.double(), exact, rtol=1e-5, atol=1e-5)
    wide = F.linear(x, weight, bias)
    assert 1e-3 < (product - wide).norm() / wide.norm() < 0.05


def test_what_is_quantised_behind_an_operation_is_its_outcome() -> None:
    x, up = random(2, 3, 64), random(2, 3, 64, seed=1)
    for got, expected in (
        (fp8.gelu_quantised(x), F.gelu(x, approximate="tanh")),
        (fp8.swiglu_quantised(x, up), F.silu(x) * up),
        (fp8.add_norm_quantised(x, up, None, Norm("layer"))[1], F.layer_norm(x + up, (64,), eps=1e-6)),
    ):
        quantised = fp8.quantise_rows(expected)
        assert torch.equal(got.values.float(), quantised.values.float()) and torch.equal(got.scale, quantised.scale)


def test_only_hopper_multiplies_fp8() -> None:
    assert not fp8.has_fp8_products(torch.device("cpu"))
