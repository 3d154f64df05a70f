"""Random numbers for captured passes: drawn before each replay into tensors that keep their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stepvar.core.noise import Noise

Draw = Callable[[Noise], Tensor]


class NoiseTape:
    """A noise source that notes what is asked of it, and can later fill the same requests with other numbers.

    A graph must not draw by itself: it would repeat its numbers. So the first generation, which runs eagerly, is
    recorded; :meth:`allocate` then makes a tensor for each request, outside the memory that a graph reuses; a captured
    pass reads these; and before a replay :meth:`fill` draws new numbers into them.

    Attributes:
        nbytes: what a captured generation with these requests holds on the device; 0: not known.
        choice: what the method decided in the generation that was recorded; None: nothing was left to decide.
    """

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.nbytes = 0
        self.choice: str | None = None
        self._reused: set[int] = set()
        self._requests: dict[int, list[tuple[Draw, torch.Size]]] = {}
        self._tensors: dict[int, list[Tensor]] | None = None
        self._place: dict[int, int] = {}

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device, name: str | None = None) -> Tensor:
        size = tuple(shape)
        return self._answer(scale, lambda noise: noise.exponential(scale, size, device, name))

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        if self._tensors is not None:
            return drawn if scale in self._reused else self._next(scale)
        numbers = self.noise.soft(scale, drawn)
        if numbers is drawn:  # the source takes those of the symbols again, and so does a replay
            self._reused.add(scale)
            return drawn
        size, device = drawn.shape, drawn.device
        return self._noted(scale, lambda noise: noise.soft(scale, torch.empty(size, device=device)), numbers)

    def normal(self, scale: int, turn: int | str, shape: Sequence[int], device: torch.device) -> Tensor:
        size = tuple(shape)
        return self._answer(scale, lambda noise: noise.normal(scale, turn, size, device))

    def allocate(self, device: torch.device) -> None:
        """Ends the recording, if it has not ended: from now on every request is answered with a tensor of its own."""
        if self._tensors is not None:
            return
        self._tensors = {
            scale: [torch.empty(size, device=device) for _, size in requests]
            for scale, requests in self._requests.items()
        }

    def free(self) -> NoiseTape:
        """Drops the tensors and keeps the requests."""
        self._tensors, self._place = None, {}
        return self

    def fill(self, scale: int, noise: Noise) -> None:
        """Draws new numbers for a pass, in the order in which they were asked for."""
        assert self._tensors is not None
        for tensor, (draw, _) in zip(self._tensors.get(scale, ()), self._requests.get(scale, ()), strict=True):
            tensor.copy_(draw(noise), non_blocking=True)

    def _answer(self, scale: int, draw: Draw) -> Tensor:
        return self._noted(scale, draw, draw(self.noise)) if self._tensors is None else self._next(scale)

    def _noted(self, scale: int, draw: Draw, numbers: Tensor) -> Tensor:
        self._requests.setdefault(scale, []).append((draw, numbers.shape))
        return numbers

    def _next(self, scale: int) -> Tensor:
        assert self._tensors is not None
        place = self._place.get(scale, 0)
        self._place[scale] = place + 1
        return self._tensors[scale][place]
