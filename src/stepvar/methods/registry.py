"""The methods by name, alone and together: ``stepvar``, ``fastvar:hart``, ``stepvar+drop-guidance``.

A class joins with the decorator :func:`register`. Another package offers its methods with an entry point of the group
``stepvar.methods``; a class that is registered nowhere is found by its path, ``package.module:Class``.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from stepvar.core.values import nearest, shown
from stepvar.errors import UsageError
from stepvar.methods.base import Method
from stepvar.methods.compose import Compose

ENTRY_POINTS = "stepvar.methods"
"""The group of entry points by which other packages offer methods; an entry point is named like its method."""

METHODS: dict[str, type[Method]] = {}
"""The registered methods by name, without those of entry points that nobody has asked for yet."""

AUTO = "auto"
"""The name that no method has: a speed-up chooses one; see :mod:`stepvar.cost.auto`."""

MethodClass = TypeVar("MethodClass", bound=type[Method])


def register(method: MethodClass) -> MethodClass:
    """Class decorator that makes a method known by its name.

    Raises:
        UsageError: for what is not a complete method, or a name that another class has.
    """
    check_class(method)
    METHODS[method.name] = method
    return method


def check_class(method: Any) -> type[Method]:
    """The class, if it is a complete method whose name is its own.

    Raises:
        UsageError: if it is not.
    """
    if not (inspect.isclass(method) and issubclass(method, Method)):
        raise UsageError(f"method {method!r}: must be a class that derives from stepvar.methods.Method")
    where = f"{method.__module__}:{method.__qualname__}"
    if "__dataclass_params__" not in vars(method):
        raise UsageError(f"method {where}: its fields are its settings; decorate it with @dataclass(frozen=True)")
    name, settings = vars(method).get("name"), [field.name for field in fields(method)]
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or "name" in settings:
        own = "give it one of its own in lower case, such as name: ClassVar[str] = 'my-method'"
        raise UsageError(f"method {where}: name={name!r}; {own}")
    if name == AUTO:
        raise UsageError(f"method {where}: name={name!r} is reserved; give it another")
    if missing := sorted(getattr(method, "__abstractmethods__", ())):
        raise UsageError(f"method {name!r}: {where} does not define {' and '.join(missing)}()")
    other = METHODS.get(name)
    # The same class again is a module that was reloaded or a cell that was run again.
    if other is not None and where != f"{other.__module__}:{other.__qualname__}":
        raise UsageError(f"method {name!r}: {other.__module__}:{other.__qualname__} has this name; rename {where}")
    return method


def all_methods() -> Mapping[str, type[Method]]:
    """Every method by name, with those of other packages; an entry point that cannot be used is a warning."""
    for entry in entry_points(group=ENTRY_POINTS):
        _load(entry)
    return METHODS


def summary_of(method: type[Method]) -> str:
    """What a method does: the first line of its docstring."""
    return inspect.cleandoc(method.__doc__ or "").partition("\n")[0].replace("``", "")


def _load(entry: EntryPoint) -> None:
    """Registers the method of an entry point."""
    if entry.name in METHODS and METHODS[entry.name].__module__ == entry.module:
        return
    try:
        method = check_class(entry.load())
        if method.name != entry.name:
            raise UsageError(f"its class has the name {method.name!r}; give both the same")
        register(method)
    except Exception as error:  # whatever another package does, the methods here go on
        said = f"method {entry.name!r} of the entry point {entry.value} is left out: {_one_line(error)}"
        warnings.warn(said, stacklevel=2)


def find_method(name: str) -> type[Method]:
    """The class that is registered by a name, here or by another package.

    Raises:
        UsageError: if there is none, naming those that exist.
    """
    if name == AUTO:
        raise UsageError(f"method {name!r}: is chosen for a speed-up; give one, too, such as 1.5, or name a method")
    if name not in METHODS:
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            _load(entry)
    if name not in METHODS and "=" in name:
        raise UsageError(f"method {name!r}: a name takes no settings; give StepVAR(keep=0.4), or make_method with them")
    if name not in METHODS:
        known, near = ", ".join(all_methods()), nearest(name, all_methods())
        raise UsageError(f"method {name!r}: unknown; choose one of {known}, or give package.module:Class{near}")
    return METHODS[name]


def import_method(path: str) -> type[Method]:
    """The class of a path ``package.module:Class``.

    Raises:
        UsageError: if it cannot be imported, or is no complete method.
    """
    module_name, _, class_name = path.partition(":")
    try:
        method = getattr(import_module(module_name), class_name)
    except Exception as error:  # a module may fail in any way
        raise UsageError(f"method {path!r}: cannot be imported: {_one_line(error)}") from error
    return check_class(method)


def is_offered(method: type[Method]) -> bool:
    """Whether every process finds the class by its name: one of this package, or of an entry point."""
    if method.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return True
    return any(entry.module == method.__module__ for entry in entry_points(group=ENTRY_POINTS, name=method.name))


def code_digest(method: Method) -> str | None:
    """Stands for the code of a method of another package, which may change while its settings stay; else None."""
    parts = method.parts if isinstance(method, Compose) else (method,)
    own = {type(part) for part in parts if type(part).__module__.partition(".")[0] != __name__.partition(".")[0]}
    files = sorted({file for cls in own if (file := inspect.getsourcefile(cls)) is not None})
    if not files:
        return None
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()[:16]


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


class NamedMethod(NamedTuple):
    """A method as it is named: its class, and the settings of the preset that was named with it."""

    method: type[Method]
    preset: Mapping[str, Any]


def parse_names(names: str) -> list[NamedMethod]:
    """The methods of a name: one, or several joined by ``+``; each may have a preset behind a colon.

    Raises:
        UsageError: for an unknown method or preset, naming those that exist.
    """
    return [_parse_name(name.strip()) for name in names.split("+")]


def _parse_name(name: str) -> NamedMethod:
    words = name.split(":")
    size = 2 if is_class_path(name) else 1
    path, preset = ":".join(words[:size]), ":".join(words[size:])
    method = import_method(path) if size == 2 else find_method(path)
    if len(words) == size:
        return NamedMethod(method, {})
    if preset not in method.presets:
        has = f"it has {', '.join(method.presets)}" if method.presets else "it has none"
        raise UsageError(f"preset {preset!r}: not one of method {path!r}; {has}")
    return NamedMethod(method, method.presets[preset])


def is_class_path(name: str) -> bool:
    """Whether a name is the path of a class, ``package.module:Class``; presets are in lower case."""
    return name.partition(":")[2][:1].isupper()


def assign_settings(parts: Sequence[NamedMethod], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Which part each setting belongs to: ``last``, or ``drop-guidance.last`` where several parts have it.

    Raises:
        UsageError: for a setting that no part has, or that several have.
    """
    owned: list[dict[str, Any]] = [{} for _ in parts]
    known = {part.method.name: [field.name for field in fields(part.method)] for part in parts}
    for setting, value in settings.items():
        owner, _, key = setting.rpartition(".")
        if owner and owner not in known:
            raise UsageError(f"{setting}: {owner!r} is not one of the methods given: {', '.join(known)}")
        found = [name for name, keys in known.items() if owner in ("", name) and key in keys]
        if not found:
            near = nearest(key, [name for keys in known.values() for name in keys])
            raise UsageError(f"{setting}: not a setting of {', or of '.join(starmap(_describe, known.items()))}{near}")
        if len(found) > 1:
            choices = " or ".join(f"{name}.{key}" for name in found)
            raise UsageError(f"{setting}: several of the methods have it; say which: {choices}")
        owned[list(known).index(found[0])][key] = value
    return owned


def _describe(name: str, settings: Sequence[str]) -> str:
    has = f"its settings are {', '.join(settings)}" if settings else "it has no settings"
    return f"method {name!r}; {has}"


def build(parts: Sequence[NamedMethod], owned: Sequence[Mapping[str, Any]]) -> Method:
    """The method of these parts with their settings; those of a preset hold where no other is given."""
    methods = [part.method(**{**part.preset, **own}) for part, own in zip(parts, owned, strict=True)]
    return methods[0] if len(methods) == 1 else Compose(*methods)


def make_method(name: str, **settings: Any) -> Method:
    """Builds a method from its name and settings.

    Args:
        name: a method, a method with a preset (``"fastvar:hart"``), a class by its path (``"package.module:Class"``),
            or several of these (``"stepvar+drop-guidance"``).
        settings: by name, or as ``**{"drop-guidance.last": 2}`` where several methods have one of that name.

    Raises:
        UsageError: for an unknown name, preset or setting, naming those that exist.
    """
    parts = parse_names(name)
    return build(parts, assign_settings(parts, settings))


def as_method(method: Method | str | None) -> Method:
    """The method that an argument says: a method, its name, or None for dense generation.

    Raises:
        UsageError: for anything else, or an unknown name.
    """
    if method is None:
        return Method()
    if isinstance(method, str):
        return make_method(method)
    if not isinstance(method, Method):
        raise UsageError(f"method={shown(method)}: give a method such as StepVAR(), or its name")
    for part in method.parts if isinstance(method, Compose) else (method,):
        if type(part) is not Method:
            check_class(type(part))  # one without a name of its own would be reported as another
    return method
