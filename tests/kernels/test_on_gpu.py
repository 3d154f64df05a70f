"""The kernels on a GPU at the sizes of the released models, against the same formulas in float64."""

import pytest
import torch

from benchmarks.kernels import BOUNDS, GROUPS, Inputs, flattened, relative_error
from stepvar.kernels import ops

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
