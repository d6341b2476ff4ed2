"""Settings: every option is told once, in a class, with its name, type, default, allowed values and one sentence.

`conf/` is written from these classes (`python -m scripts.write_conf`), and so is what `acdc --help` says.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar

from acdc.errors import ConfigError

T = TypeVar("T")
S = TypeVar("S", bound="Settings")

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    type(None): "null",
    dict: "a mapping of names to values",
    list: "a list",
}


@dataclass(frozen=True)
class Option:
    """What is said of an option besides its name, type and default.

    Attributes
    ----------
    about : what it does, in a sentence that stands behind it in `conf/` and in the help.
    choices : the values that are allowed; of a list, the values of its items. Empty allows every value of the type.
    least, most : bounds that are allowed themselves.
    above, below : bounds that are not.
    """

    about: str = ""
    choices: tuple[object, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def problem(self, value: object) -> tuple[object, str] | None:
        """What is wrong with a value of the right type, and what is allowed; None if nothing is wrong.

        Of a list, the first item that is wrong.
        """
        if isinstance(value, list):
            return next((problem for item in value if (problem := self.problem(item))), None)
        if value is None:
            return None
        if self.choices and value not in self.choices:
            *others, last = map(shown, self.choices)
            if len(others) < 2:
                return value, f"is not known: {f'choose {others[0]} or {last}' if others else f'give {last}'}"
            return value, f"is not known: choose one of {', '.join([*others, last])}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        inside = (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        return None if inside else (value, f"is not allowed: give {self._range()}")

    def _range(self) -> str:
        low = f"{self.least} or more" if self.least is not None else f"more than {self.above}"
        if self.most is None and self.below is None:
            return low
        if self.least is not None and self.most is not None:
            return f"a number from {self.least} to {self.most}"
        if self.above is not None and self.below is not None:
            return f"a number between {self.above} and {self.below}"
        return f"{low}, and {f'at most {self.most}' if self.most is not None else f'less than {self.below}'}"


def option(
    default: T,
    about: str,
    choices: Sequence[object] = (),
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> T:
    """The default of a field of `Settings`, with what is said of the option; see `Option`."""
    given: Any = {"default_factory": default.copy} if isinstance(default, (list, dict)) else {"default": default}
    made: T = field(metadata={"option": Option(about, tuple(choices), least, most, above, below)}, **given)
    return made


@dataclass(frozen=True)
class Settings:
    """A group's settings: the fields of a subclass are its options. The key of a field `from_` is `from`, which Python
    keeps for itself.

    Attributes
    ----------
    GROUP : the name of the group, for messages such as `method.threshold=abc is not allowed`.

    Raises
    ------
    ConfigError
        A value of the wrong type, or one that is not allowed.
    """

    GROUP: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for key, known in options(type(self)).items():
            where = f"{self.GROUP}.{key}".lstrip(".")
            value = _value(known.type, getattr(self, known.field.name), where)
            object.__setattr__(self, known.field.name, value)
            if problem := known.option.problem(value):
                given, allowed = problem
                raise ConfigError(f"{where}={shown(given)} {allowed}{known.words()}")

    @classmethod
    def summary(cls) -> str:
        """What the settings are of, in one sentence: the first paragraph of the class's docstring."""
        return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


@dataclass(frozen=True)
class Known:
    """An option of a class of settings: its field, its type, and what is said of it."""

    field: Field[Any]
    type: Any
    option: Option

    def words(self) -> str:
        """The words that are allowed beside numbers, such as `auto` and null, as the end of a sentence."""
        parts = typing.get_args(self.type)
        words = [word for part in parts if typing.get_origin(part) is Literal for word in typing.get_args(part)]
        words += ["null"] * (type(None) in parts)
        return "".join(f", or {word}" for word in words)

    @property
    def default(self) -> Any:
        made = self.field.default_factory
        return made() if callable(made) else self.field.default


def options(cls: type[Settings]) -> dict[str, Known]:
    """The options of a class by key. What a subclass does not say of one is taken from the class it extends."""
    hints = typing.get_type_hints(cls)
    told: dict[str, Option] = {}
    for base in reversed(cls.__mro__):
        for name, one in getattr(base, "__dataclass_fields__", {}).items():
            told[name] = one.metadata.get("option") or told.get(name) or Option()
    return {f.name.removesuffix("_"): Known(f, hints[f.name], told[f.name]) for f in fields(cls)}


def as_mapping(settings: Any) -> dict[str, Any]:
    """The settings as the mapping that `from_mapping` reads."""
    return {f.name.removesuffix("_"): getattr(settings, f.name) for f in fields(settings)}


def from_mapping(cls: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Settings from plain values, such as those of a YAML file or of keywords.

    Parameters
    ----------
    where : what the options are called in messages; empty is the group's name.

    Raises
    ------
    ConfigError
        A key that does not exist, or a value of the wrong type or that is not allowed.
    """
    known = options(cls)
    where = where or cls.GROUP
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}.{key} does not exist; {where} has {', '.join(known)}")
    given = {known[key].field.name: _value(known[key].type, value, f"{where}.{key}") for key, value in values.items()}
    return cls(**given)


def shown(value: object) -> str:
    """A value as it stands on a command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(shown, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _value(hint: Any, value: Any, where: str) -> Any:
    """The value as its type has it (a whole number may stand for a float); ConfigError if it is of another type."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    choices = typing.get_args(hint) if union else (hint,)
    for choice in choices:
        kind = typing.get_origin(choice) or choice
        if kind is list and isinstance(value, (list, tuple)):
            (item,) = typing.get_args(choice)
            return [_value(item, v, f"{where}[{i}]") for i, v in enumerate(value)]
        if kind is Literal:
            if value in typing.get_args(choice):
                return value
        elif kind is float:
            # Written so that NaN and whole numbers beyond all floats are refused too.
            if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
                return float(value)
        elif kind is dict and isinstance(value, Mapping):
            return dict(value)
        elif isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
    words = [
        shown(word)
        for choice in choices
        for word in (
            typing.get_args(choice)
            if typing.get_origin(choice) is Literal
            else (_WORDS.get(typing.get_origin(choice) or choice, "another value"),)
        )
    ]
    raise ConfigError(f"{where}={shown(value)} is not allowed: give {' or '.join(words)}")
