"""Where and in what precision goldens are run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stepvar.errors import UsageError


@dataclass(frozen=True)
class Setup:
    """A device and a precision."""

    device: torch.device
    dtype: torch.dtype

    @property
    def exact(self) -> bool:
        """Whether whole numbers have to agree: in lower precision a bit whose logits are close may flip."""
        return self.dtype == torch.float32


def make_setup(device: str | torch.device, dtype: torch.dtype) -> Setup:
    """Checks that the device exists and the precision is one that there are bounds for.

    Raises:
        UsageError: otherwise.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UsageError(f"dtype={dtype}: must be float32, bfloat16 or float16")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device={str(device)!r}: cannot be used ({reason}); try 'cpu'") from None
    return Setup(torch.device(device), dtype)
