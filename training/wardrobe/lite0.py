"""The early layers of EfficientNet-Lite0 as a file, for machines without its package.

``python -m training.wardrobe.lite0 --early FILE`` writes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import save_file

from stepvar.evaluation.metrics.lite0 import Lite0, load_lite0, package_weights

__all__ = ["EARLY", "Lite0", "load_lite0"]

EARLY = 5
"""Blocks of the early layers: down to an eighth of the resolution."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--early", type=Path, required=True, help="file to write the early layers to")
    names = Lite0(EARLY).state_dict()
    weights = package_weights()
    kept = {name: weights[name].half().contiguous() for name in names if not name.endswith("num_batches_tracked")}
    save_file(kept, parser.parse_args().early)


if __name__ == "__main__":
    main()
