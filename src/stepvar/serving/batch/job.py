"""A batch job on Ray Data: rows through a pool of actors, results into a folder as they come."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from stepvar.errors import StepvarError
from stepvar.serving.batch.folder import BatchFolder, Result
from stepvar.serving.batch.rows import Row
from stepvar.serving.batch.worker import Actor, Setup, pack_row, unpack_result
from stepvar.serving.cluster import cluster
from stepvar.utils.progress import bar
from stepvar.utils.require import require

MOST_BLOCKS = 4096
"""Pieces that a job is handed out in at most; a worker that dies takes no more than one with it."""


@dataclass(frozen=True)
class Workers:
    """Who generates.

    Attributes:
        count: actors, each with a pipeline of its own.
        gpus: of each: 1, or 0 for the CPU.
        batch: rows that each generates at once.
    """

    count: int
    gpus: int = 0
    batch: int = 1


@dataclass(frozen=True)
class Summary:
    """How a job ended: rows that are done now, that failed, and that were done before.

    Attributes:
        failure: where and why the first of the failed ones did.
    """

    done: int
    failed: int
    skipped: int
    failure: str | None = None


def run_job(rows: Sequence[Row], folder: BatchFolder, setup: Setup, workers: Workers, quiet: bool = False) -> Summary:
    """Generates the rows that are not in the folder yet.

    Raises:
        UsageError: if Ray is not installed, or has not as many GPUs or CPUs as there are workers.
        StepvarError: if the workers cannot begin, or are lost.
    """
    todo = [row for row in rows if row.id not in folder.done]
    skipped = len(rows) - len(todo)
    good = [row for row in todo if row.error is None]
    done, failed = 0, [Result(row, facts={"error": row.error}) for row in todo if row.error is not None]
    for result in failed:
        folder.add(result)
    if good:
        with (
            bar("rows", len(good), shown=not quiet, time_left=True) as tick,
            closing(_results(good, setup, workers)) as found,
        ):
            try:
                for result in found:
                    folder.add(result)
                    if result.data:
                        done += 1
                    else:
                        failed.append(result)
                    tick()
            finally:
                folder.flush()
    failure = f"{failed[0].row.place}: {failed[0].facts['error']}" if failed else None
    return Summary(done, len(failed), skipped, failure)


def _results(rows: Sequence[Row], setup: Setup, workers: Workers) -> Generator[Result, None, None]:
    """What becomes of the rows, in the order in which they end."""
    option = "gpus" if workers.gpus else "workers"
    with cluster(option, workers.count, workers.gpus, "batch jobs"):
        data = require("ray.data", "batch", "batch jobs")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its own settings
            context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # every batch comes back as soon as it is generated
        batches = -(-len(rows) // workers.batch)
        actors = min(workers.count, batches)
        dataset = data.from_items(
            [{"row": pack_row(row)} for row in rows], override_num_blocks=min(batches, MOST_BLOCKS)
        ).map_batches(
            Actor,
            batch_size=workers.batch,
            compute=data.ActorPoolStrategy(size=actors),
            fn_constructor_args=(setup,),
            num_gpus=workers.gpus or None,
            num_cpus=None if workers.gpus else 1,
        )
        try:
            for found in dataset.iter_rows():
                yield unpack_result(found)
        except (StepvarError, OSError):
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:500]
            raise StepvarError(
                f"batch: a worker was lost ({type(error).__name__}: {said}); start again to go on"
            ) from error


def check_ray() -> None:
    """Fails now rather than after the work if Ray is not there.

    Raises:
        UsageError: if it is not installed.
    """
    require("ray.data", "batch", "batch jobs")
