"""Instructions and images as conditions of a VAREdit model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.media.images import as_picture
from stepvar.media.squares import padded_square
from stepvar.models.infinity.inputs import TextInputProcessor, TextInputs
from stepvar.models.inputs import VIDEO_ONLY, EncodedInputs, GenerationInputs
from stepvar.models.varedit.model import EditCondition, VAREdit
from stepvar.text import TextEncoder
from stepvar.utils.ambient import stated_formats

NO_IMAGE = "image: this model changes an image; give one (image=, --image) with the instruction"
LARGEST = 8192
"""Pixels of the longest side: the square that an image is padded to is held in memory."""


@dataclass(frozen=True)
class EncodedImage:
    """An image that is encoded already.

    Attributes:
        latent: (1, d, H, W), what the tokenizer's encoder gives for its square.
        image: what it shows.
    """

    latent: Tensor
    image: Image.Image


Source = Image.Image | EncodedImage


@dataclass(frozen=True)
class EditInputs(TextInputs):
    """Instructions, each followed ``times`` times, and the image that each is about.

    Attributes:
        model: whose encoder reads the images.
        images: one per prompt.
    """

    model: VAREdit
    images: Sequence[Source]

    @property
    def sources(self) -> list[Image.Image]:
        pictures = [one if isinstance(one, Image.Image) else one.image for one in self.images]
        return [picture for picture in pictures for _ in range(self.times)]

    def encode(self, schedule: ScaleSchedule, generators: Sequence[Generator]) -> EncodedInputs:
        encoded: dict[int, EncodedImage] = {}
        for one in self.images:  # one image may serve all prompts
            if id(one) not in encoded:
                encoded[id(one)] = encode_image(self.model, one, schedule)
        latents = [encoded[id(one)].latent for one in self.images for _ in range(self.times)]
        text = self.condition()
        return EncodedInputs(EditCondition(text.prompts, text.negative, torch.cat(latents)))


class EditInputProcessor(TextInputProcessor):
    """Takes instructions as :class:`TextInputProcessor` takes prompts, and one image for all of them, or one each."""

    def __init__(self, encoder: TextEncoder | None, model: VAREdit) -> None:
        super().__init__(encoder, model.config.text_channels)
        self.model = model

    def prepare(self, inputs: GenerationInputs, times: int) -> EditInputs:
        inputs.refuse([name for name in VIDEO_ONLY if name != "image"], "it to a model that generates videos")
        text = self.prepare_text(inputs, times)
        images = self.read_images(inputs.image)
        if len(images) not in (1, len(text.prompts)):
            raise UsageError(f"image: {len(images)} given for {len(text.prompts)} prompts; give one, or one each")
        images = images * len(text.prompts) if len(images) == 1 else images
        return EditInputs(text.encoder, text.prompts, times, text.negatives, self.model, images)

    def read_images(self, given: Any) -> list[Source]:
        """One image or several, checked."""
        if given is None:
            raise UsageError(NO_IMAGE)
        several = given if isinstance(given, (list, tuple)) else [given]
        if not several:
            raise UsageError("image: an empty list; give one, or one per prompt")
        side = self.model.config.stride * self.model.schedule(1.0)[-1].w
        images = [one if isinstance(one, EncodedImage) else as_picture(one, "image") for one in several]
        for one in images:
            check_size(one.image if isinstance(one, EncodedImage) else one, side, self.model.config.stride)
        return images

    def example(self, tokens: int = 16, schedule: ScaleSchedule | None = None) -> GenerationInputs:
        grid, config = (schedule or self.model.schedule(1.0)).grids[-1], self.model.config
        latent = torch.zeros(1, *config.latent_size(grid))
        image = Image.new("RGB", (config.stride * grid.w, config.stride * grid.h))
        return GenerationInputs(prompt_embeds=torch.zeros(1, tokens, self.channels), image=EncodedImage(latent, image))


def check_size(image: Image.Image, side: int, stride: int) -> None:
    """Refuses an image too large to be padded, or so narrow that it would be less than a token of its square.

    Args:
        side: of the square in pixels, of which a token covers ``stride``.

    Raises:
        UsageError: naming its size and the limit.
    """
    shorter, longer = sorted(image.size)
    size = f"image of {image.size[0]}x{image.size[1]} pixels"
    if shorter < stride:
        raise UsageError(f"{size}: too small; each side must have at least {stride}")
    if longer > LARGEST:
        raise UsageError(f"{size}: too large; each side may have at most {LARGEST}, so make it smaller first")
    if shorter * side < longer * stride:
        raise UsageError(
            f"{size}: too narrow; one side may be at most {side // stride} times the other, so cut it first"
        )


@stated_formats()
@torch.inference_mode()
def encode_image(model: VAREdit, image: Source, schedule: ScaleSchedule) -> EncodedImage:
    """An image as the encoder of a model sees it, padded to the square of a schedule."""
    if isinstance(image, EncodedImage):
        return image
    pixels = pixels_of([padded_square(image, model.config.stride * schedule.grids[-1].w)])
    with model.on_device("encoder"):
        return EncodedImage(model.tokenizer.encode_latent(pixels.to(model.device)), image)


def pixels_of(squares: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size as pixels (B, 3, H, W) in [-1, 1]."""
    levels = torch.from_numpy(np.stack([np.asarray(square) for square in squares]))
    return 2 * (levels.permute(0, 3, 1, 2).contiguous().float() / 255) - 1
