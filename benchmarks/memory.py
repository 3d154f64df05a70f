"""The memory that a dry run finds beside what a GPU took: ``python -m benchmarks.memory --models 2b,0.7b,480p``.

Models have random weights, which take as much memory as others. What stands beside the dry run is the peak of PyTorch's
allocator during one generation from text features to pixels; it includes what kernels work in.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.workload import random_pipeline
from stepvar.methods import make_method
from stepvar.models.registry import families_of_variant
from stepvar.utils.files import write_text

TEXT = 128
GUIDANCE = 3.0
GIB = 2**30


def measure(variant: str, method_name: str, device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """One generation of a released size; bytes."""
    family = families_of_variant(variant)[0]
    pipe = random_pipeline(family, family.variants[variant].config, device, dtype, variant)
    method, settings = make_method(method_name), pipe.settings(guidance_scale=GUIDANCE)
    expected = pipe.dry_run(method.plan(settings, pipe.model.info, 1), method, TEXT)
    wanted = {name: given for name, given in vars(pipe.inputs.example(TEXT)).items() if given is not None}
    output = pipe(**wanted, method=method, guidance_scale=GUIDANCE, seed=0, output_type="pt", progress=False)
    measured = output.report.peak_memory
    row = {"model": variant, "method": method_name, "dry_run": expected.peak, "measured": measured}
    return row | {"ratio": expected.peak / measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="2b,0.7b,480p", help="released sizes, separated by commas")
    parser.add_argument("--methods", default="dense,stepvar")
    parser.add_argument("--device", default="cuda", help="a GPU: the CPU has no allocator that knows its peak")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device, rows = torch.device(arguments.device), []
    if device.type != "cuda":
        parser.error("--device: must be a GPU, cuda")
    print("| model | method | dry run | measured | ratio |\n|---|---|---|---|---|")
    for variant in arguments.models.split(","):
        for method in arguments.methods.split(","):
            row = measure(variant, method, device, getattr(torch, arguments.dtype))
            sizes = (f"{row[name] / GIB:.2f} GiB" for name in ("dry_run", "measured"))  # type: ignore[operator]
            print(f"| {variant} | {method} | {' | '.join(sizes)} | {row['ratio']:.3f} |", flush=True)
            rows.append(row)
            torch.cuda.empty_cache()
    if arguments.out:
        info = {"machine": torch.cuda.get_device_name(device), "torch": torch.__version__, "dtype": arguments.dtype}
        write_text(arguments.out, json.dumps({"info": info, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
