"""The tasks, one file each. `load(name)` gives the module with its `Settings` and `build`.

A task that needs its own model names it as `MODEL`.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from acdc.errors import ConfigError


def names() -> list[str]:
    """Every task there is."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base" and not m.name.startswith("_"))


def load(name: str) -> ModuleType:
    """The module of a task; ConfigError if there is none of that name."""
    if name not in names():
        raise ConfigError(f"task={name} does not exist; choose one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
