"""Settings become a plan: how many tokens and keys every pass has follows from them and the method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from stepvar.core.guidance import branches_for
from stepvar.core.plan import Plan, Settings, Step

TokensAt = Callable[[Step, int, int], int]
"""How many tokens run through a block at a pass: (step, layer, depth) -> count."""

CachedTokens = Callable[[Step, int, int, int], int]
"""How many keys of a block stay in the cache behind a pass: (step, layer, depth, keys that are there) -> count."""

KeysPerQuery = Callable[[Step, int, int, int], int]
"""How many keys a token of a block attends to, on average: (step, layer, depth, keys that are there) -> count."""


def resolve(
    settings: Settings,
    samples: int,
    depth: int,
    tokens_at: TokensAt | None = None,
    cached_tokens: CachedTokens | None = None,
    keys_per_query: KeysPerQuery | None = None,
) -> Plan:
    """The plan of a generation.

    Args:
        samples: number of images.
        depth: number of blocks of the model.
        tokens_at: how many tokens a method lets run through each block; None: all of them.
        cached_tokens: how many keys a method lets stay in the cache behind each pass; None: all of them.
        keys_per_query: how many keys a token attends to where a method's attention is sparse; None: all of them.
    """
    steps = (_row(settings, index, samples) for index in settings.passes)
    count = tokens_at or (lambda step, layer, depth: step.grid.size)
    counted: Iterable[Step]
    counted = (replace(step, tokens=tuple(count(step, layer, depth) for layer in range(depth))) for step in steps)
    if cached_tokens is not None:
        counted = _with_dropped(counted, depth, cached_tokens)
    rows = tuple(counted)
    if keys_per_query is not None:
        rows = tuple(_with_keys(Plan(settings, samples, depth, rows), keys_per_query))
    return Plan(settings, samples, depth, tuple(_with_groups(rows, settings.groups)))


def _with_keys(plan: Plan, keys_per_query: KeysPerQuery) -> Iterator[Step]:
    """The passes with how many keys a token attends to."""
    for step in plan.steps:
        counts = (keys_per_query(step, layer, plan.depth, keys) for layer, keys in enumerate(plan.attended(step)))
        yield replace(step, keys_per_query=tuple(counts)) if step.computed else step


def _with_groups(steps: Sequence[Step], groups: Sequence[Sequence[int]]) -> Iterator[Step]:
    """The passes, the first of each group with all that are run of it."""
    by_index = {step.index: step for step in steps}
    found = [tuple(by_index[index] for index in group if index in by_index) for group in groups]
    first = {group[0].index: group for group in found if len(group) > 1}
    for step in steps:
        yield replace(step, together=first[step.index]) if step.index in first else step


def _with_dropped(steps: Iterable[Step], depth: int, cached_tokens: CachedTokens) -> Iterator[Step]:
    """The passes with what leaves the cache behind each."""
    held = [0] * depth
    for step in steps:
        if step.computed:
            seen = [before + own for before, own in zip(held, step.tokens, strict=True)]
            held = [cached_tokens(step, layer, depth, keys) for layer, keys in enumerate(seen)]
            step = replace(step, dropped=tuple(keys - stay for keys, stay in zip(seen, held, strict=True)))
        yield step


def _row(settings: Settings, index: int, samples: int) -> Step:
    """One pass, as far as it follows from the settings alone."""
    schedule, computed, readers = settings.schedule, settings.computed, settings.readers
    branches = settings.branches.get(index, branches_for(1.0))
    top_k = settings.top_k
    return Step(
        index=index,
        grid=schedule[index],
        clip=schedule.clip(index),
        scale=schedule.scale(index),
        scales_from_end=schedule.scales_from_end(index),
        samples=samples,
        branches=len(branches),
        first_row=samples if branches == branches_for(0.0) else 0,
        guidance=settings.guidance[index],
        temperature=settings.temperature[index],
        top_k=top_k if isinstance(top_k, int) else top_k[index],
        relative_scale=settings.smooth[index] if settings.smooth else None,
        forced=index in settings.forced,
        computed=index in computed,
        attends_to=tuple(earlier for earlier in computed if earlier < index and index in readers[earlier]),
        is_read=not set(computed).isdisjoint(readers[index]),
        is_context=schedule.kv_scope == "clip" and index not in settings.clips[-1],
        is_last=index == settings.passes[-1],
        settings=settings,
    )
