"""What ``stepvar generate`` is asked for: prompts, as arguments or from a file, and the images that they are about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar.errors import UsageError

if TYPE_CHECKING:
    from stepvar.pipeline import Pipeline


@dataclass(frozen=True)
class Batch:
    """Prompts that are generated at once.

    Attributes:
        image: what they are about, if an image was given.
        place: where a prompt of a file stands in it, for errors; of prompts that are arguments empty.
    """

    prompts: list[str]
    image: Path | None = None
    place: str = ""


def read_batches(prompts: list[str] | None, file: str | None, image: Path | None) -> list[Batch]:
    """What is generated at once; a line of a file may name another image than the one given for all."""
    if (prompts is None) == (file is None):
        raise UsageError(
            "prompts and PROMPT: give one of them"
            if file is not None
            else "Missing argument 'PROMPT...', or --prompts; see 'stepvar generate --help'"
        )
    if prompts is not None:
        return [Batch(prompts, image)]
    from stepvar.evaluation.prompts import load_prompts

    return [
        Batch([prompt.text], prompt.image or image, ", ".join(filter(None, [file, prompt.place])))
        for prompt in load_prompts(str(file)).prompts
    ]


def check_images(model: str, variant: str | None, batches: list[Batch]) -> None:
    """Refuses images that are missing or cannot be read before the model's weights are."""
    from stepvar.checkpoints.sources import find_outline
    from stepvar.media.images import read_image

    for path in dict.fromkeys(batch.image for batch in batches if batch.image is not None):
        read_image(path, "image")
    if any(batch.image is None for batch in batches) and find_outline(model, variant).family.edits:
        raise UsageError("image: this model changes an image; give it with --image, or with each prompt of a file")


def check_prompts(pipe: Pipeline, batches: list[Batch], suffix: str | None) -> None:
    """Fails now rather than in the middle of the work if a line of a file cannot be generated."""
    from stepvar.models.inputs import GenerationInputs

    for batch in batches:
        if not batch.place:
            continue
        wanted: dict[str, Any] = {pipe.inputs.argument: batch.prompts, "prompt_suffix": suffix}
        wanted |= {"image": batch.image} if pipe.family.edits else {}
        try:
            pipe.inputs.prepare(GenerationInputs(**wanted), 1)
        except UsageError as error:
            raise UsageError(f"{batch.place}: {error}") from None
