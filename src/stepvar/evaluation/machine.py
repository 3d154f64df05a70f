"""What results belong to: the machine, the versions and the command."""

from __future__ import annotations

import platform

import torch

from stepvar import __version__
from stepvar.utils.device import device_name


def provenance(device: torch.device, command: str) -> dict[str, str]:
    """For people: what a page says under its title, and what is kept with results."""
    machine = device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        machine += f" ({platform.machine()}), {threads} thread{'s' if threads > 1 else ''}"
    return {
        "machine": machine,
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "torch": torch.__version__,
        "stepvar": __version__,
        "command": command,
    }
