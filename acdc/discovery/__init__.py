"""Discovery algorithms: one file each, one signature; an `Experiment` and settings in, a `Circuit` out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any

from acdc.circuit import Circuit
from acdc.discovery.base import Decision, Observer, Store
from acdc.discovery.hard_concrete import TrainingSettings, loss_of
from acdc.discovery.selection import SelectionSettings
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.process import undisturbed
from acdc.settings import as_mapping

METHODS = (
    "acdc",
    "acdc_scores",
    "eap",
    "eap_ig",
    "clean_corrupted",
    "exact",
    "hisp",
    "information_flow",
    "subnetwork_probing",
    "edge_pruning",
    "attribution_to_circuit",
    "random",
)
SOME_EDGES = ("acdc", "attribution_to_circuit")  # methods that score some edges only


def load(method: str) -> ModuleType:
    """The module of a method, with its `Settings`, `check` and `discover`."""
    if method not in METHODS:
        raise ConfigError(f"method={method} does not exist; choose one of {', '.join(METHODS)}")
    return importlib.import_module(f"{__name__}.{method}")


@undisturbed
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
    settings = _settings(method, options)
    circuit: Circuit = load(settings.name).discover(experiment, settings, observer, replay, store)
    return circuit


def really(experiment: Experiment, settings: Any) -> dict[str, Any]:
    """A method's settings with the values that stand for null and `auto`, as far as these are known beforehand."""
    module, values = load(settings.name), as_mapping(settings)
    if isinstance(settings, SelectionSettings) and settings.select != "threshold":
        values["edges"] = settings.how_many(experiment.graph)
    if isinstance(settings, TrainingSettings):
        values["loss"] = loss_of(experiment, settings)
    return values | (module.resolved(experiment, settings) if hasattr(module, "resolved") else {})


def score(experiment: Experiment, method: str = "eap_ig", **options: Any) -> dict[Edge, float]:
    """Every edge's score, by a method that scores them all, with the method's options as keywords.

    Raises
    ------
    ConfigError: `acdc` and `attribution_to_circuit`, which look at some edges only.
    """
    if method in SOME_EDGES:
        others = ", ".join(name for name in METHODS if name not in SOME_EDGES)
        raise ConfigError(f"method={method} does not score every edge: choose one of {others}")
    return discover(experiment, method, **options).tested


def _settings(method: str | Any, options: Mapping[str, Any]) -> Any:
    """A method's settings; ConfigError for an option that does not exist, or that stands beside settings."""
    if isinstance(method, str):
        known = load(method).Settings
        allowed = [f.name for f in fields(known)]
        if unknown := sorted(set(options) - set(allowed)):
            raise ConfigError(f"method={method} has no option {unknown[0]}: choose from {', '.join(allowed)}")
        return known(**{"name": method, **options})
    if options:
        raise ConfigError(
            f"method is given as settings, so {sorted(options)[0]} cannot be given beside it: put it in there"
        )
    return method
