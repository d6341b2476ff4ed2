"""Edges that scores rule out before ACDC tests any."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from acdc.discovery.base import Store
from acdc.discovery.methods import METHODS
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.graph import Edge

SHORTLISTS = ("eap", "eap_ig", "clean_corrupted", "exact", "hisp", "information_flow", "random")


def check_shortlist(experiment: Experiment, method: str) -> None:
    """ConfigError where the method cannot score this experiment's edges."""
    try:
        METHODS.load(method)().check(experiment)
    except ConfigError as error:
        raise ConfigError(f"method.shortlist={method}: {error}") from error


def make_shortlist(experiment: Experiment, method: str, share: float, store: Store) -> frozenset[Edge]:
    """The edges that a method rules out: all but the given share, those of the largest scores by size.

    Parameters
    ----------
    store: keeps the edges, so that a run that goes on has the same ones.
    """
    edges = list(experiment.graph)
    state = store.load()
    if not state:
        out = ruled_out(METHODS.load(method)().discover(experiment).tested, edges, share)
        state = {"ruled_out": torch.tensor([edge in out for edge in edges])}
        store.save(state)
    return frozenset(edge for edge, out in zip(edges, state["ruled_out"].tolist(), strict=True) if out)


def ruled_out(scores: Mapping[Edge, float], edges: list[Edge], share: float) -> frozenset[Edge]:
    """All of `edges` but the given share (at least one) of the largest scores by size; ties by order."""
    by_size = sorted(edges, key=lambda edge: -abs(scores.get(edge, 0.0)))
    return frozenset(by_size[max(1, round(share * len(edges))) :])
