"""The kernels on a GPU at the sizes of the released models, against the same formulas in float64."""

import pytest
import torch

from benchmarks.kernel_cases import GROUPS, Inputs, flattened
from benchmarks.kernels import BOUNDS, relative_error
from benchmarks.quantization import check_products
from stepvar.kernels import ops
from stepvar.kernels.fp8 import has_fp8_products
from stepvar.kernels.linear import LAYERS, QUANTIZATIONS, Quantization

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("group", GROUPS)
def test_errors_are_those_of_rounding(group) -> None:
    device = torch.device("cuda")
    assert ops.use_triton(torch.zeros(1, device=device)), "the kernels do not run here"
    with torch.inference_mode():
        for case in group(Inputs(device, small=False)):
            assert relative_error(case.run(), case.reference()) <= BOUNDS[case.rounds_to], case.name


@pytest.mark.parametrize("group", GROUPS)
def test_a_graph_replays_them_to_the_bit(group) -> None:
    with torch.inference_mode():
        for case in group(Inputs(torch.device("cuda"), small=True)):
            expected = [tensor.clone() for tensor in flattened(case.run())]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outcome = case.run()
            graph.replay()
            torch.cuda.synchronize()
            for got, wanted in zip(flattened(outcome), expected, strict=True):
                assert torch.equal(got, wanted), case.name


def test_the_product_with_gelu_is_fused() -> None:
    """One kernel for product, bias and activation."""
    x, weight, bias = (torch.randn(shape, device="cuda").bfloat16() for shape in ((64, 256), (512, 256), (512,)))
    with torch.inference_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        ops.linear_gelu(x, weight, bias)
        torch.cuda.synchronize()
    kernels = [event.name for event in profile.events() if "memcpy" not in event.name.lower()]
    assert not any("elementwise" in name for name in kernels), kernels


def test_products_of_quantised_layers_are_right_from_one_row_up() -> None:
    if not has_fp8_products(torch.device("cuda")):
        pytest.skip("needs products in fp8")
    with torch.inference_mode():
        assert not [*check_products(torch.device("cuda"))]


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_a_graph_replays_quantised_layers_to_the_bit(kind: Quantization) -> None:
    if kind == "fp8" and not has_fp8_products(torch.device("cuda")):
        pytest.skip("needs products in fp8")
    layer = LAYERS[kind](torch.nn.Linear(256, 512, device="cuda", dtype=torch.bfloat16).requires_grad_(False))
    x = torch.randn(2, 33, 256, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        expected, graph = layer(x), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outcome = layer(x)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(outcome, expected)
