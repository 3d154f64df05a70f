"""From words to a scale schedule and to the settings of a dense generation."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from stepvar.core.arguments import AspectRatio, SamplingArguments, parse_aspect_ratio
from stepvar.core.plan import Settings
from stepvar.core.tokens import ScaleSchedule
from stepvar.core.values import Range, number, text, whole_number
from stepvar.core.words import NO_WORDS, accepts
from stepvar.errors import UsageError
from stepvar.models.family import Family
from stepvar.models.shapes import check_ratio, warn_if_larger


def sampling_names() -> dict[str, None]:
    """Names of the arguments that say how to sample."""
    return dict.fromkeys(field.name for field in fields(SamplingArguments))


class Schedules:
    """What a generation with given arguments runs."""

    model: Any
    defaults: dict[str, Any]
    family: Family

    @property
    def _fps(self) -> float:
        """Frames per second of generated videos; of no meaning for images."""
        return getattr(self.model.config, "fps", 1.0)

    @accepts(NO_WORDS)
    def schedule(
        self,
        aspect_ratio: AspectRatio | None = None,
        resolution: str | None = None,
        seconds: float | None = None,
    ) -> ScaleSchedule:
        """The scale schedule that a generation with these arguments runs.

        Raises:
            UsageError: for an aspect ratio far from every published one, or another argument that cannot be used.
        """
        return self._schedule(aspect_ratio, resolution, seconds)

    def _schedule(
        self,
        aspect_ratio: AspectRatio | None,
        resolution: str | None,
        seconds: float | None,
        usual: float | None = None,
    ) -> ScaleSchedule:
        """As :meth:`schedule`.

        Args:
            usual: width over height where none was asked for, of an image that is cut to whatever is near; None: the
                model's own.
        """
        if resolution is not None:
            resolution = text("resolution", resolution)
        given = aspect_ratio
        if given is None:
            given = self.defaults.get("aspect_ratio", "1:1") if usual is None else usual
        seconds = self._seconds(seconds)
        if seconds is not None and not self.family.video:
            raise UsageError(f"seconds={seconds:g}: this model generates images; leave it out")
        wanted, extra = 1 / parse_aspect_ratio(given), (seconds,) if self.family.video else ()
        schedule: ScaleSchedule = self.model.schedule(wanted, resolution, *extra)
        if aspect_ratio is not None:
            check_ratio(self.model, schedule, aspect_ratio)
        if resolution is not None:
            warn_if_larger(schedule, self.model.schedule(wanted, None, *extra))
        return schedule

    def _seconds(self, seconds: float | None, num_frames: int | None = None) -> float | None:
        """The length of a video, by either of its arguments; None: the usual one."""
        if num_frames is None:
            return None if seconds is None else number("seconds", seconds, Range(0, 3600))
        if seconds is not None:
            raise UsageError("seconds and num_frames: give one of them")
        frames = whole_number("num_frames", num_frames, Range(1, 10**6))
        if not self.family.video:
            raise UsageError(f"num_frames={frames}: this model generates images; leave it out")
        return (frames - 1) / self._fps

    @accepts(NO_WORDS, sampling_names)
    def settings(
        self,
        *,
        aspect_ratio: AspectRatio | None = None,
        resolution: str | None = None,
        seconds: float | None = None,
        **arguments: Any,
    ) -> Settings:
        """The settings of a dense generation, from words alone: what a method's ``plan`` starts from.

        Args:
            arguments: those of :class:`~stepvar.core.arguments.SamplingArguments`.

        Raises:
            UsageError: for an argument that cannot be used.
        """
        return self._settings(self._schedule(aspect_ratio, resolution, seconds), SamplingArguments(**arguments))

    def _settings(self, schedule: ScaleSchedule, arguments: SamplingArguments) -> Settings:
        family, depth = self.family, self.model.config.depth
        return arguments.settings(
            schedule,
            self.defaults,
            depth,
            family.guidance_schedule,
            family.relative_scales,
            family.filtered_soft_codes,
        )
