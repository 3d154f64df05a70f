"""What a pickle would build, found out from its operations, before anything is built."""

from __future__ import annotations

import pickletools
from typing import IO, Any

DEEPEST = 32
"""Tuples in tuples; ``torch.save`` writes a few. To hash one may take twice as long with every level."""
MOST_OPERATIONS = 20_000_000


def depth_of_tuples(file: IO[bytes]) -> int:
    """How deep tuples lie in tuples at most in the next pickle of a file.

    Raises:
        ValueError: if it is no pickle, or has more operations than any checkpoint.
    """
    marks: list[int] = []
    stack: list[int] = []  # of every value the depth; what is no tuple has none
    memo: dict[Any, int] = {}
    deepest = 0

    def pop(count: int) -> list[int]:
        taken = stack[len(stack) - count :] if count else []
        del stack[len(stack) - count :]
        return taken

    for number, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if number > MOST_OPERATIONS:
            raise ValueError(f"a pickle of more than {MOST_OPERATIONS} operations")
        name = operation.name
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1] if stack else 0
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument, 0))
        elif name == "DUP":
            stack.append(stack[-1] if stack else 0)
        else:
            before = operation.stack_before
            if pickletools.markobject in before:
                inside = pop(len(stack) - (marks.pop() if marks else 0))
                pop(min(len(stack), before.index(pickletools.markobject)))
            else:
                inside = pop(min(len(stack), len(before)))
            made = 1 + max(inside, default=0) if "TUPLE" in name else 0
            deepest = max(deepest, made)
            stack.extend(made for _ in operation.stack_after)
    return deepest
