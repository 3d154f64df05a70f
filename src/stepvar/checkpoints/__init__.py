"""Checkpoints: names on the hub, local folders and files of every published layout, and their conversion."""

from stepvar.checkpoints.loading import LoadedModel, fill_module, load_model
from stepvar.checkpoints.reading import read_state
from stepvar.checkpoints.saving import convert_model, save_model, save_weights
from stepvar.checkpoints.sources import EMBEDDED, find_model, read_config

__all__ = [
    "EMBEDDED",
    "LoadedModel",
    "convert_model",
    "fill_module",
    "find_model",
    "load_model",
    "read_config",
    "read_state",
    "save_model",
    "save_weights",
]
