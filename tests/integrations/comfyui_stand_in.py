"""What our nodes use of ComfyUI's Python interface, for tests where ComfyUI is not installed.

The parameters are those of ComfyUI 0.3.64; ``test_comfyui_server.py`` compares them with a ComfyUI that is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

_COMMON = ("id", "display_name", "optional", "tooltip", "lazy")
_WIDGET = ("default", "socketless", "force_input")
INPUTS: dict[str, tuple[str, ...]] = {
    "Boolean": (*_COMMON, *_WIDGET, "label_on", "label_off"),
    "Int": (*_COMMON, *_WIDGET, "min", "max", "step", "control_after_generate", "display_mode"),
    "Float": (*_COMMON, *_WIDGET, "min", "max", "step", "round", "display_mode"),
    "String": (*_COMMON, *_WIDGET, "multiline", "placeholder", "dynamic_prompts"),
    "Combo": (
        *_COMMON,
        "default",
        "socketless",
        "options",
        "control_after_generate",
        "upload",
        "image_folder",
        "remote",
    ),
    "Image": (*_COMMON, "extra_dict"),
}
"""The parameters of each type's ``Input``; custom types have those of ``Image``."""
OUTPUT = ("id", "display_name", "tooltip", "is_output_list")
SCHEMA = (
    *("node_id", "display_name", "category", "inputs", "outputs", "hidden", "description", "is_input_list"),
    *("is_output_node", "is_deprecated", "is_experimental", "is_api_node", "not_idempotent", "enable_expand"),
)


@dataclass
class Declared:
    """An input or output as a schema declares it."""

    kind: str
    given: dict[str, Any]

    @property
    def id(self) -> str:
        return self.given["id"]


def _constructor(kind: str, parameters: tuple[str, ...]) -> Callable[..., Declared]:
    def make(*args: Any, **kwargs: Any) -> Declared:
        given = dict(zip(parameters, args, strict=False)) | kwargs
        if unknown := given.keys() - set(parameters):
            raise TypeError(f"{kind}: no parameter {', '.join(unknown)}")
        return Declared(kind, given)

    return make


def _io_type(kind: str, parameters: tuple[str, ...]) -> SimpleNamespace:
    return SimpleNamespace(Input=_constructor(kind, parameters), Output=_constructor(kind, OUTPUT))


class NodeOutput:
    def __init__(self, *args: Any) -> None:
        self.args = args


class Cancelled(Exception):
    """What ComfyUI raises in a node when the run is cancelled."""


@dataclass
class ComfyUI:
    """The modules, and what nodes did with them."""

    models: Path
    shown: list[tuple[int, int, Any]] = field(default_factory=list)
    cancel_after: int | None = None

    def modules(self) -> dict[str, ModuleType]:
        """By the name under which nodes import them."""
        types = {kind: _io_type(kind, parameters) for kind, parameters in INPUTS.items()}
        io = SimpleNamespace(
            **types,
            Custom=lambda kind: _io_type(kind, INPUTS["Image"]),
            Schema=lambda **given: _checked_schema(given),
            ComfyNode=object,
            NodeOutput=NodeOutput,
        )
        outer = self

        class ProgressBar:
            def __init__(self, total: int) -> None:
                self.total = total

            def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
                outer.shown.append((value, total or self.total, preview))
                if value == outer.cancel_after:
                    raise Cancelled

        management = {"get_torch_device": lambda: torch.device("cpu"), "unload_all_models": lambda: None}
        contents: dict[str, dict[str, Any]] = {
            "comfy": {},
            "comfy.model_management": management,
            "comfy.utils": {"ProgressBar": ProgressBar},
            "comfy_api": {},
            "comfy_api.latest": {"io": io, "ComfyExtension": object},
            "folder_paths": {
                "models_dir": str(self.models),
                "add_model_folder_path": lambda name, path: None,
                "get_folder_paths": lambda name: [str(self.models / name)],
            },
        }
        made = {name: ModuleType(name) for name in contents}
        for name, content in contents.items():
            vars(made[name]).update(content)
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(made[parent], last, made[name])
        return made


def _checked_schema(given: dict[str, Any]) -> SimpleNamespace:
    if unknown := given.keys() - set(SCHEMA):
        raise TypeError(f"Schema: no parameter {', '.join(unknown)}")
    ids = [one.id for one in given["inputs"]]
    if len(set(ids)) != len(ids):
        raise ValueError(f"input ids must be unique: {ids}")
    return SimpleNamespace(**given)
