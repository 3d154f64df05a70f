"""Every kernel compiles for the GPUs that are supported; that needs none."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.kernel_cases import GROUPS, Inputs
from stepvar.kernels import fp8, ops
from stepvar.kernels.sparse_attention import KeyLists, attend_to_lists, attend_with_mass


class NoGPU:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@pytest.fixture(params=[80, 90])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
    """Makes every launch compile and not run; names and code of what was compiled."""
    found = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        found.append((self.__name__, kernel.asm["ptx"]))
        return kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(ops, "is_interpreted", lambda: True)
    if request.param < 89:
        monkeypatch.setattr(fp8, "use_triton", lambda *tensors: False)  # such GPUs know no fp8
    monkeypatch.setattr(driver, "_active" if hasattr(driver, "_active") else "active", NoGPU(request.param))
    found.append((f"sm_{request.param}", ""))
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run here")
def test_all_kernels_compile(compiled: list[tuple[str, str]]) -> None:
    target, _ = compiled.pop()
    for group in GROUPS:
        for case in group(Inputs(torch.device("cpu"), small=True)):
            case.run()
    q, k, v = torch.zeros(3, 1, 2, 70, 16, dtype=torch.bfloat16)
    places = torch.zeros(1, 1, 2, 5, dtype=torch.int32)
    attend_with_mass(q, k, v, 64)
    attend_to_lists(q, k, v, KeyLists(places, 64, None, 5))
    names = {name for name, _ in compiled}
    expected = {"_add_norm", "_attention_inputs", "_swiglu", "_texture", "_gather", "_exponential"}
    expected |= {"_attend_to_lists", "_mass", "_moments", "_combine", "_normalise", "_upsample"}
    assert names >= expected | ({"_quantise"} if target == "sm_90" else set())
    assert all(f".target {target}" in code for _, code in compiled)
    # An approximate logarithm would be 0 for numbers near 1, and a class with probability 0 could be drawn.
    assert not any("lg2.approx" in code for name, code in compiled if name == "_exponential")
