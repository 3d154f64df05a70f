"""The fields of requests, those of OpenAI's API and our own; their types only, see :mod:`.requests` for limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from stepvar.core.values import nearest, shown
from stepvar.errors import UsageError

MOST_SCALES = 1000
"""Numbers of a list: more than any model has scales."""


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, which true and false are not")
    return value


def _no_long_list(value: Any) -> Any:
    """Before each of its values is looked at: half a million wrong ones fit into a request, each an error."""
    if isinstance(value, list) and len(value) > MOST_SCALES:
        raise ValueError(f"a number, or at most {MOST_SCALES}, one per scale")
    return value


Whole = Annotated[int, BeforeValidator(_no_flag)]
Number = Annotated[float, BeforeValidator(_no_flag)]
PerScale = Annotated[Number | list[Number], Field(union_mode="left_to_right"), BeforeValidator(_no_long_list)]

Ignored = Annotated[Any, Field(description="Taken and ignored.")]


class Fields(BaseModel):
    """What every request takes. A field that is null counts as left out; an unknown one is an error."""

    model_config = ConfigDict(protected_namespaces=())

    prompt: str = Field(description="What to generate; for class-conditional models a class.")
    model: str | None = Field(None, description="Name of the model, as /v1/models has it.")
    seed: Whole | None = Field(None, description="Image i uses seed + i; chosen at random and reported without it.")
    method: str | None = Field(None, description="A method by name, as 'stepvar methods' has it, alone or with '+'.")
    keep: PerScale | None = Field(None, description="Share of tokens kept at the late scales.")
    speedup: Number | None = Field(None, description="How many times as fast as dense, in place of keep.")
    guidance_scale: PerScale | None = Field(None, description="Classifier-free guidance; 1 turns it off.")
    negative_prompt: str | None = Field(None, description="What guidance leads away from.")
    user: Ignored = None
    safety_identifier: Ignored = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name in given:
            if name not in cls.model_fields:
                near = nearest(str(name), cls.model_fields)
                raise UsageError(f"{shown(name)}: is not a field of this request{near}")
        return {name: value for name, value in given.items() if value is not None}


class ImageFields(Fields):
    """What both image requests take."""

    n: Whole = Field(1, description="Number of images.")
    size: str = Field("auto", description="Width x height in pixels, such as '1024x1024', or 'auto': the model's own.")
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] = "auto"
    response_format: Literal["b64_json", "url"] = Field(
        "b64_json", description="'url' gives a data: URL; nothing is kept on the server."
    )
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Whole | None = Field(None, description="0 to 100, the quality of JPEG and WebP.")
    background: Literal["auto", "opaque"] = "auto"
    stream: bool = Field(False, description="Answer with server-sent events.")
    partial_images: Whole = Field(0, description="With stream: pictures on the way, at most one per scale.")
    moderation: Ignored = None
    style: Ignored = None


class ImageRequest(ImageFields):
    """``POST /v1/images/generations``."""


class EditRequest(ImageFields):
    """``POST /v1/images/edits``; the image comes as a file of the form."""

    input_fidelity: Ignored = None


class VideoRequest(Fields):
    """``POST /v1/videos``; an image to begin with comes as a file of the form."""

    seconds: Number | None = Field(None, description="Length of the video; the model's usual one without it.")
    size: str = "auto"
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] = "auto"


FIELDS = frozenset({*EditRequest.model_fields, *VideoRequest.model_fields, "image", "input_reference"})
"""What an error may name as its field."""
