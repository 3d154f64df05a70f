"""What generates the rows of a batch job: a pipeline in a process of its own, on one GPU or on the CPU."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepvar.errors import StepvarError, UsageError
from stepvar.serving.batch.folder import Result
from stepvar.serving.batch.rows import Row

if TYPE_CHECKING:
    from stepvar.methods import Method
    from stepvar.pipeline import Pipeline

WORDS = ("negative_prompt", "prompt_suffix")
"""Arguments of a call that say nothing of how to sample."""


@dataclass(frozen=True)
class Setup:
    """What a worker needs to begin; it is sent to its process.

    Attributes:
        load: arguments of ``Pipeline.from_pretrained``.
        settings: arguments of each call.
        suffix: the ending of the files.
        quality: of lossy formats; None: that of the format.
        tile, sliced: how the pipeline decodes.
        threads: of PyTorch on the CPU; None: as many as it takes.
    """

    load: dict[str, Any]
    method: Method
    settings: dict[str, Any]
    suffix: str
    quality: int | None = None
    tile: int | None = None
    sliced: bool = False
    threads: int | None = None


class Generator:
    """Generates rows, several at once where they have the same settings; a row that cannot be is told from the others.

    Args:
        pipe: made of ``setup.load``.
    """

    def __init__(self, setup: Setup, pipe: Pipeline) -> None:
        self.setup, self.pipe = setup, pipe

    @classmethod
    def load(cls, setup: Setup) -> Generator:
        """Loads the pipeline, and checks what all rows share.

        Raises:
            UsageError, CheckpointError: if that cannot be used.
        """
        import torch

        from stepvar.pipeline import Pipeline

        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        pipe = Pipeline.from_pretrained(**setup.load)
        pipe.sliced = setup.sliced
        if setup.tile is not None:
            pipe.enable_vae_tiling(setup.tile)
        sampling = {name: value for name, value in setup.settings.items() if name not in WORDS}
        settings = pipe.settings(**sampling)
        setup.method.plan(settings, pipe.model.info, 1)
        return cls(setup, pipe)

    def run(self, rows: Sequence[Row]) -> list[Result]:
        """What becomes of some rows."""
        groups: dict[Any, list[Row]] = {}
        for row in rows:
            together = (row.aspect_ratio, row.guidance_scale, row.negative_prompt is None)
            # What a method decides by the image, it would decide for all.
            groups.setdefault(together if self.setup.method.static else row.id, []).append(row)
        return [result for group in groups.values() for result in self._together(group)]

    def _together(self, rows: Sequence[Row]) -> list[Result]:
        try:
            return self._generate(rows)
        except Exception as error:  # whatever goes wrong with a row is its own affair
            if len(rows) > 1:
                return [result for row in rows for result in self._together([row])]
            said = str(error) if isinstance(error, StepvarError) else f"{type(error).__name__}: {error}"
            return [Result(rows[0], facts={"error": " ".join(said.split())[:1000]})]

    def _generate(self, rows: Sequence[Row]) -> list[Result]:
        from stepvar.media.saving import save_result

        start, first, setup = time.perf_counter(), rows[0], self.setup
        own: dict[str, Any] = {self.pipe.inputs.argument: [row.prompt for row in rows]}
        own["seed"] = [row.seed for row in rows]
        if first.negative_prompt is not None:
            own["negative_prompt"] = [row.negative_prompt for row in rows]
        own |= {
            name: value for name in ("aspect_ratio", "guidance_scale") if (value := getattr(first, name)) is not None
        }
        output = self.pipe(**{**setup.settings, **own}, method=setup.method, progress=False)
        results = []
        with tempfile.TemporaryDirectory(prefix="stepvar-") as folder:
            path = Path(folder) / f"result{setup.suffix}"
            made = zip(rows, output.videos or output.images, output.metadata, output.warnings, strict=True)
            for row, one, texts, said in made:
                save_result(one, path, texts, setup.quality)
                facts = {"width": one.size[0], "height": one.size[1]} | ({"warnings": said} if said else {})
                results.append(Result(row, path.read_bytes(), setup.suffix, facts))
                path.unlink()
        seconds = round((time.perf_counter() - start) / len(rows), 3)
        for result in results:
            result.facts["seconds"] = seconds
        return results


class Actor:
    """A generator as Ray Data calls it: batches of columns in, batches of columns out.

    If it cannot begin, every call says why: an exception would reach the job in Ray's words, many pages of them.
    """

    def __init__(self, setup: Setup) -> None:
        self.generator: Generator | None = None
        self.failure: tuple[str, bool] | None = None
        try:
            self.generator = Generator.load(setup)
        except StepvarError as error:
            self.failure = str(error), isinstance(error, UsageError)
        except Exception as error:
            self.failure = f"batch: a worker cannot begin ({type(error).__name__}: {error})", False

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if self.generator is None:
            return {"result": np.array([json.dumps({"failure": self.failure})], dtype=object), "data": [b""]}
        results = self.generator.run([unpack_row(text) for text in batch["row"]])
        data = np.empty(len(results), dtype=object)
        data[:] = [result.data for result in results]
        words = [json.dumps([asdict(result.row), result.suffix, result.facts]) for result in results]
        return {"result": np.array(words, dtype=object), "data": data}


def pack_row(row: Row) -> str:
    """A row as a text, whose columns every version of Arrow takes."""
    return json.dumps(asdict(row))


def unpack_row(text: str) -> Row:
    return Row(**json.loads(text))


def unpack_result(found: Mapping[str, Any]) -> Result:
    """A result from a row of a dataset.

    Raises:
        StepvarError: if its worker could not begin.
    """
    told = json.loads(found["result"])
    if isinstance(told, dict):
        message, wrong_usage = told["failure"]
        raise (UsageError if wrong_usage else StepvarError)(message)
    row, suffix, facts = told
    return Result(Row(**row), bytes(found["data"]), suffix, facts)
