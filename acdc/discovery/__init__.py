"""Discovery algorithms: one file each, one signature; an `Experiment` and settings in, a `Circuit` out."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any

from acdc.circuit import Circuit
from acdc.discovery.base import Decision, Observer, Store
from acdc.errors import ConfigError
from acdc.experiment import Experiment

METHODS = ("acdc", "eap", "eap_ig", "clean_corrupted", "exact", "hisp", "information_flow", "random")


def load(method: str) -> ModuleType:
    """The module of a method, with its `Settings`, `check` and `discover`."""
    if method not in METHODS:
        raise ConfigError(f"method={method} does not exist; choose one of {', '.join(METHODS)}")
    return importlib.import_module(f"{__name__}.{method}")


def discover(
    experiment: Experiment,
    method: str | Any = "acdc",
    observer: Observer | None = None,
    replay: Sequence[Decision] = (),
    store: Store | None = None,
    **options: Any,
) -> Circuit:
    """Find a circuit.

    Parameters
    ----------
    method: a name, with the method's options as keywords (`threshold=0.03`), or its `Settings`.
    observer: is told of every decision. replay: decisions of an interrupted run. store: where a method that makes no
        decisions keeps its state, and finds that of an interrupted run.
    """
    if isinstance(method, str):
        known = load(method).Settings
        allowed = [f.name for f in fields(known)]
        if unknown := sorted(set(options) - set(allowed)):
            raise ConfigError(f"method={method} has no option {unknown[0]}: choose from {', '.join(allowed)}")
        settings = known(**{"name": method, **options})
    elif options:
        raise ConfigError(
            f"method is given as settings, so {sorted(options)[0]} cannot be given beside it: put it in there"
        )
    else:
        settings = method
    circuit: Circuit = load(settings.name).discover(experiment, settings, observer, replay, store)
    return circuit
