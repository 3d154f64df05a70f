"""From prompts to images and videos."""

from stepvar.pipeline.pipeline import Pipeline as Pipeline
