"""Checkpoints: names on the hub, local folders and files of every published layout, and their conversion."""

from stepvar.checkpoints.assign import fill_module
from stepvar.checkpoints.convert import convert_model
from stepvar.checkpoints.folders import read_config, save_model, save_weights
from stepvar.checkpoints.loading import LoadedModel, load_model
from stepvar.checkpoints.reading import read_state
from stepvar.checkpoints.sources import EMBEDDED, find_model

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
