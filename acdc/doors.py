"""Doors: where tasks, metrics, ablations, methods and model families are found by name, built in or of one's own.

A thing is found in this order: built in; under an entry point of an installed package (`acdc.tasks`, `acdc.metrics`,
`acdc.ablations`, `acdc.methods`, `acdc.families`); by `_target_: module.Class`, which stands in a configuration.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from acdc.errors import ConfigError, ExtensionError
from acdc.settings import Settings, as_mapping, from_mapping

T = TypeVar("T", bound=Settings)
TARGET = "_target_"
_loaded: dict[tuple[str, str], type[Settings]] = {}  # by group of entry points and name


@dataclass(frozen=True)
class Door(Generic[T]):
    """Where the classes of one group are found.

    Attributes
    ----------
    base : the class that each of them extends. Its abstract methods are what a class has to have.
    built_in : `module:Class` by name.
    entry_points : the group of entry points under which installed packages name theirs.
    what : what one is called in messages.
    """

    base: type[T]
    built_in: Mapping[str, str]
    entry_points: str
    what: str

    @property
    def group(self) -> str:
        return self.base.GROUP

    def names(self) -> list[str]:
        """Every name there is, built in and installed, whether or not it can be loaded."""
        return [*self.built_in, *(name for name in self._installed() if name not in self.built_in)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def load(self, name: str, where: str = "") -> type[T]:
        """The class of that name.

        Parameters
        ----------
        where : what was given, for messages; empty is `group=name`.

        Raises
        ------
        ConfigError
            There is none of that name.
        ExtensionError
            An installed package names one that cannot be used.
        """
        if (self.entry_points, name) in _loaded:
            return cast("type[T]", _loaded[self.entry_points, name])
        where = where or f"{self.group}={name}"
        installed = self._installed()
        if name in self.built_in:
            module, _, attribute = self.built_in[name].partition(":")
            found: Any = getattr(importlib.import_module(module), attribute)
        elif name in installed:
            point = installed[name]
            found = self._checked(_imported(point.module, point.attr, where), where, point.value)
        else:
            raise ConfigError(f"{where} does not exist; choose one of {', '.join(self.names())}")
        _loaded[self.entry_points, name] = found
        return cast("type[T]", found)

    def target(self, path: str) -> type[T]:
        """The class that a `_target_` names; a module of one's own is found from the folder one stands in.

        Raises
        ------
        ExtensionError
            There is no such class, its module cannot be imported, or it lacks what it has to have.
        """
        where = f"{self.group}.{TARGET}={path}"
        module, _, attribute = path.rpartition(".")
        if not module or not all(part.isidentifier() for part in path.split(".")):
            raise ExtensionError(f"{where} is not allowed: give MODULE.CLASS")
        return self._checked(_imported(module, attribute, where), where, path)

    def settings(self, values: Mapping[str, Any]) -> T:
        """The settings that a configuration's group says: its `_target_`'s, or those of its `name`.

        Raises
        ------
        ConfigError, ExtensionError
            As `load`, `target` and `from_mapping`.
        """
        rest = {key: value for key, value in values.items() if key != TARGET}
        if values.get(TARGET) is not None:
            return from_mapping(self.target(str(values[TARGET])), rest)
        return from_mapping(self.load(str(values.get("name"))), rest)

    def chosen(self, asked: str | T, given: Mapping[str, Any] | None = None) -> T:
        """One of the group in Python: by its name and options, or as it is.

        Raises
        ------
        ConfigError
            No such name or option.
        """
        if not isinstance(asked, str):
            if not isinstance(asked, self.base):
                what = type(asked).__name__
                raise ConfigError(f"{self.group} is of type {what}: give a name, or {self.what} of your own")
            return asked
        cls = self.load(asked)
        allowed = [f.name for f in fields(cls)]
        if unknown := sorted(set(given or {}) - set(allowed)):
            raise ConfigError(f"{self.group}={asked} has no option {unknown[0]}: choose from {', '.join(allowed)}")
        return cls(**(given or {}))

    def as_mapping(self, settings: T) -> dict[str, Any]:
        """What `settings` reads: the options, and a `_target_` where the name alone does not lead to the class."""
        cls, name = type(settings), str(getattr(settings, "name", ""))
        is_named = name in self.names() and self.load(name) is cls
        target = {} if is_named else {TARGET: f"{cls.__module__}.{cls.__qualname__}"}
        return target | as_mapping(settings)

    def is_built_in(self, path: str) -> bool:
        """Whether a `_target_` is one of the built-in classes."""
        return path in {where.replace(":", ".") for where in self.built_in.values()}

    def broken(self) -> Iterator[tuple[str, str]]:
        """Names of installed things that cannot be used, and why."""
        for name in self._installed():
            try:
                self.load(name)
            except ExtensionError as error:
                yield name, str(error)

    def _installed(self) -> dict[str, EntryPoint]:
        return installed(self.entry_points)

    def _checked(self, found: Any, where: str, path: str) -> type[T]:
        """The same, if it is a class that can be used; ExtensionError in one line if not."""
        base = f"{self.base.__module__}.{self.base.__name__}"
        if not isinstance(found, type) or not issubclass(found, self.base):
            what = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
            raise ExtensionError(f"{where}: {path} is {what}, and {self.what} is a class that extends {base}")
        if lacking := sorted(getattr(found, "__abstractmethods__", ())):
            raise ExtensionError(f"{where}: {path} lacks {', '.join(lacking)}, which {self.what} has (see {base})")
        if inspect.get_annotations(found) and "__dataclass_fields__" not in vars(found):
            raise ExtensionError(
                f"{where}: {path} has options, so it has to be a dataclass: add @dataclass(frozen=True)"
            )
        assert is_dataclass(found)
        return found


def installed(group: str) -> dict[str, EntryPoint]:
    """What installed packages name under a group of entry points."""
    return {point.name: point for point in entry_points(group=group)}


def _imported(module: str, attribute: str, where: str) -> Any:
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # behind what is installed, so that a file here shadows nothing
    try:
        found = importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            why = f"there is no module {error.name} here or among the installed packages"
        else:
            why = f"importing {module} raises {type(error).__name__}: {error}"
        raise ExtensionError(f"{where} cannot be loaded: {why}") from error
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise ExtensionError(f"{where} cannot be loaded: {module} has no {attribute}") from None
    return found
