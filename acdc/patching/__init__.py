"""Interventions on activations: one file each; an `Experiment` and settings in, a table of effects out."""

from __future__ import annotations

import importlib
from dataclasses import fields
from types import ModuleType
from typing import Any

from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.process import undisturbed

METHODS = ("activation", "path", "ablation", "direct", "attribution", "tracing", "sae")


def load(name: str) -> ModuleType:
    """The module of a kind of patching, with its `Settings`, `check` and `patch`."""
    if name not in METHODS:
        raise ConfigError(f"patch={name} does not exist; choose one of {', '.join(METHODS)}")
    return importlib.import_module(f"{__name__}.{name}")


@undisturbed
def patch(experiment: Experiment, name: str = "activation", **options: Any) -> Any:
    """Patch, with the options of `name` as keywords: `patch(experiment, site="q", direction="noise")`.

    Returns what `name` finds, such as `acdc.patching.activation_result.Patched`.

    Raises
    ------
    ConfigError, TaskError
        An option that does not exist or does not fit, in one line.
    """
    known = load(name).Settings
    allowed = [f.name for f in fields(known)]
    if unknown := sorted(set(options) - set(allowed)):
        raise ConfigError(f"patch={name} has no option {unknown[0]}: choose from {', '.join(allowed)}")
    return load(name).patch(experiment, known(name=name, **options))
