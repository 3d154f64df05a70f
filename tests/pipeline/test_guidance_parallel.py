"""``parallel="guidance"`` with real processes, which talk through gloo."""

from __future__ import annotations

import os
import signal
import socket
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from stepvar import Pipeline
from stepvar.core.plan import Step
from stepvar.errors import StepvarError, UsageError
from stepvar.pipeline.parallel import GuidanceProcesses

PROMPT = "a large red circle left of a small blue square on grass"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _generate(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipe = Pipeline.from_pretrained("scenes", parallel="guidance")
    assert pipe.processes is not None
    seen: list[int] = []

    def note(step: Step, state: object) -> None:
        seen.append(step.index)

    outputs = [pipe(PROMPT, seed=3, method="stepvar", output_type="pt", callback_on_scale_end=note, progress=False)]
    outputs.append(pipe(PROMPT, method="drop-guidance", output_type="pt", progress=False))
    errors = []
    other = f"a {('red', 'blue')[rank]} circle on sand"
    wrong: list[tuple[str, dict[str, Any]]] = [(PROMPT, {"guidance_scale": 1.0}), (other, {}), (PROMPT, {"speedup": 2})]
    for prompt, arguments in wrong:
        with pytest.raises(UsageError) as caught:
            pipe(prompt, progress=False, **arguments)
        errors.append(str(caught.value))
    found = {
        "images": [out.images for out in outputs],
        "seeds": [list(out.seeds or ()) for out in outputs],
        "branches": [[scale.branches for scale in out.report.scales] for out in outputs],
        "flops": [out.report.flops for out in outputs],
        "engine": outputs[0].report.engine,
        "seen": seen,
        "errors": errors,
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    pipe.close()
    assert not dist.is_initialized()


def _lose_the_other(rank: int, port: int, folder: str, where: str) -> None:
    """Generates, and loses the second process before the next call, or in the middle of it."""
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipe = Pipeline.from_pretrained("scenes", parallel="guidance")
    assert pipe.processes is not None

    def die(step: Step, state: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    pipe.processes.wait()
    if rank == 1 and where == "between":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1:
        generate: Any = pipe.engine.generate

        def generate_and_die(*arguments: Any) -> Any:  # its own callback is called in the first process alone
            return generate(*arguments[:-1], die)

        pipe.engine.generate = generate_and_die  # type: ignore[method-assign, assignment]
    with pytest.raises(StepvarError) as caught:
        pipe(PROMPT, seed=3, progress=False)
    Path(folder, "said").write_text(str(caught.value))
    pipe.close()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["between", "within"])
def test_a_process_that_is_left_alone_says_so_in_one_line(where: str, tmp_path: Path) -> None:
    context = get_context("spawn")
    port = free_port()
    both = [context.Process(target=_lose_the_other, args=(rank, port, str(tmp_path), where)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, -signal.SIGKILL]
    said = (tmp_path / "said").read_text()
    assert said.startswith("parallel='guidance': the other process is gone") and "begin again, start them" in said


NCCL = """NCCL error in: ProcessGroupNCCL.cpp:3690, invalid usage (run with NCCL_DEBUG=WARN for details)
ncclInvalidUsage: This usually reflects invalid usage of NCCL library.
Last error:
Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 50000
"""


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (dist.DistBackendError(NCCL), StepvarError, "the exchange failed: Duplicate GPU .* 50000; both must begin"),
        (RuntimeError("[pair.cc:534] Connection closed by peer\n"), StepvarError, r"which it shows\); both must begin"),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError, "^CUDA out of memory$"),
    ],
)
def test_what_fails_in_an_exchange_is_said_in_one_line(
    raised: RuntimeError, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    known = {"is_initialized": True, "get_world_size": 2, "get_rank": 0, "new_group": None}
    for name, value in known.items():
        monkeypatch.setattr(dist, name, lambda *_, value=value, **__: value)
    for name in ("all_gather", "broadcast", "barrier"):
        monkeypatch.setattr(dist, name, fail)
    processes = GuidanceProcesses(torch.device("cpu"))
    values = torch.zeros(2)
    calls = (lambda: processes.gather(values), lambda: processes.broadcast(values, 1), lambda: processes.agree((), ""))
    for call in (*calls, processes.wait):
        with pytest.raises(kind, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_processes_return_the_image_of_one(tmp_path: Path) -> None:
    spawn(_generate, args=(free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    pipe = Pipeline.from_pretrained("scenes")
    seeds = [3, first["seeds"][1][0]]
    for index, method in enumerate(("stepvar", "drop-guidance")):
        one = pipe(PROMPT, seed=seeds[index], method=method, output_type="pt", progress=False)
        torch.testing.assert_close(first["images"][index], one.images, atol=1e-3, rtol=0)
        assert first["branches"][index] == [scale.branches for scale in one.report.scales]
        assert first["flops"][index] == one.report.flops
    assert first["seeds"] == second["seeds"]
    assert second["images"] == [[], []]
    assert first["seen"] and not second["seen"]
    assert first["engine"] == "eager, guidance branches in two processes"
    unguided, different, speedup = first["errors"]
    assert "guidance scale 1" in unguided
    assert "same arguments" in different
    assert "measured in one process" in speedup
    assert second["errors"] == first["errors"]


def test_one_process_is_told_how_to_start_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UsageError, match="this is the only one; start them with 'torchrun --nproc-per-node 2"):
        Pipeline.from_pretrained("scenes", parallel="guidance")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="needs two processes, one for each guidance branch, and there are 4"):
        Pipeline.from_pretrained("scenes", parallel="guidance")
    assert not dist.is_initialized()


def test_other_words_and_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="parallel='tensor': must be guidance, or None"):
        Pipeline.from_pretrained("scenes", parallel="tensor")  # type: ignore[arg-type]
