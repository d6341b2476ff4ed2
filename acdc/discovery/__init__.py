"""Discovery algorithms: one file each, one signature; an `Experiment` and settings in, a `Circuit` out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from acdc.circuit import Circuit
from acdc.discovery.base import Decision, Method, Observer, Store
from acdc.discovery.methods import METHODS
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.process import undisturbed

__all__ = ["METHODS", "Decision", "Method", "Observer", "Store", "discover", "score"]


@undisturbed
def discover(
    experiment: Experiment,
    method: str | Method = "acdc",
    observer: Observer | None = None,
    replay: Sequence[Decision] = (),
    store: Store | None = None,
    **options: Any,
) -> Circuit:
    """Find a circuit.

    Parameters
    ----------
    method : a name, with the method's options as keywords (`threshold=0.03`), or a method with its options.
    observer : is told of every decision.
    replay : decisions of an interrupted run.
    store : where a method that makes no decisions keeps its state, and finds that of an interrupted run.

    Raises
    ------
    ConfigError
        No such method or option.
    """
    if options and not isinstance(method, str):
        given = sorted(options)[0]
        raise ConfigError(f"method is given as settings, so {given} cannot be given beside it: put it in there")
    return METHODS.chosen(method, options).discover(experiment, observer, replay, store)


def score(experiment: Experiment, method: str | Method = "eap_ig", **options: Any) -> dict[Edge, float]:
    """Every edge's score, by a method that scores them all, with the method's options as keywords.

    Raises
    ------
    ConfigError
        A method that looks at some edges only, such as `acdc`.
    """
    settings = METHODS.chosen(method, options)
    if not settings.scores_every_edge:
        others = ", ".join(name for name in METHODS.built_in if METHODS.load(name).scores_every_edge)
        raise ConfigError(f"method={settings.name} does not score every edge: choose one of {others}")
    return discover(experiment, settings).tested
