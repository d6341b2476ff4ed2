"""From plain mappings (YAML, overrides) to the settings dataclasses, with errors that say what is allowed."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from acdc.errors import ConfigError

T = TypeVar("T")

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    type(None): "null",
    dict: "a mapping of names to values",
}


def as_mapping(settings: Any) -> dict[str, Any]:
    """The settings as the mapping that `from_mapping` reads."""
    return {f.name.removesuffix("_"): getattr(settings, f.name) for f in fields(settings)}


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of a settings dataclass. The key of a field `from_` is `from`, which Python keeps for itself.

    Parameters
    ----------
    where: the group's name, for messages such as `method.threshold=abc is not allowed`.

    Raises
    ------
    ConfigError: a key that does not exist, or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    names = {f.name.removesuffix("_"): f.name for f in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise ConfigError(f"{where}.{key} does not exist; {where} has {', '.join(names)}")
    return cls(**{names[key]: _value(hints[names[key]], value, f"{where}.{key}") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    choices = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    for choice in choices:
        if typing.get_origin(choice) is list and isinstance(value, (list, tuple)):
            (item,) = typing.get_args(choice)
            return [_value(item, v, f"{where}[{i}]") for i, v in enumerate(value)]
        if choice is float:
            # Written so that NaN and whole numbers beyond all floats are refused too.
            if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
                return float(value)
        elif typing.get_origin(choice) is dict and isinstance(value, Mapping):
            return dict(value)
        elif isinstance(choice, type) and isinstance(value, choice) and (choice is bool or not isinstance(value, bool)):
            return value
    expected = " or ".join(_WORDS.get(typing.get_origin(c) or c, "a list") for c in choices)
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    raise ConfigError(f"{where}={shown} is not allowed: give {expected}")
