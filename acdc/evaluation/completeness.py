"""Completeness (Wang et al. 2022, arXiv:2211.00593, section 4): what the circuit does, does it do all of it?

A circuit C is complete if it and the model M stay alike when parts K of the circuit are knocked out of both: the
incompleteness of K is |F(C ∖ K) − F(M ∖ K)|, F the metric. A model that does without K better than the circuit has
something that the circuit lacks, a backup head say. K is drawn at random (theirs: by class of heads, greedily, at
random).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from acdc.circuit import Circuit
from acdc.engine.mask import EdgeMask
from acdc.engine.variations import Variations
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.process import undisturbed

KINDS = ("nodes", "edges")


@dataclass(frozen=True)
class Knockout:
    """What was knocked out, and the metric of the circuit and of the model without it."""

    names: tuple[str, ...]
    circuit: float
    model: float

    @property
    def incompleteness(self) -> float:
        return abs(self.circuit - self.model)


@dataclass(frozen=True)
class Completeness:
    """All knock-outs of a circuit. `span`: |metric of the model − metric without any edge|, to compare with."""

    knockouts: tuple[Knockout, ...]
    span: float

    def summary(self) -> dict[str, float]:
        """Mean and largest incompleteness, and the mean in units of the span (absent where that is 0)."""
        values = [knockout.incompleteness for knockout in self.knockouts]
        shares = {"mean_share": fmean(values) / self.span} if self.span and values else {}
        return {"mean": fmean(values), "max": max(values), **shares} if values else {}

    def as_dict(self) -> dict[str, Any]:
        each = [{"knocked_out": list(k.names), "circuit": k.circuit, "model": k.model} for k in self.knockouts]
        return {**self.summary(), "span": self.span, "knockouts": each}


@undisturbed
def completeness(
    experiment: Experiment,
    circuit: Circuit,
    draws: int = 50,
    kind: str = "nodes",
    size: int | None = None,
    seed: int = 0,
) -> Completeness:
    """Knock random parts of the circuit out of it and out of the model.

    Parameters
    ----------
    draws: sets K. kind: K holds `nodes` of the circuit (heads and MLPs, with every edge that leaves them) or `edges`.
    size: of K; None draws it too, from 1 to all, alike in their logarithm: without most of its nodes a circuit does
        nothing, and neither does the model.

    Raises
    ------
    ConfigError: another kind, or a size that is more than the circuit has.
    """
    graph, metric, rng = circuit.graph, experiment.metric, random.Random(seed)
    pool = knockable(circuit, kind)
    if size is not None and size > len(pool) > 0:
        raise ConfigError(f"{size} {kind} cannot be knocked out: the circuit has {len(pool)}; give a smaller number")
    sizes = [size or round(len(pool) ** rng.random()) for _ in range(draws)] if pool else []
    sets = [rng.sample(list(pool), k) for k in sizes]
    model, own = EdgeMask.all(graph), EdgeMask.of(graph, circuit)
    gone = [[edge for name in names for edge in pool[name]] for names in sets]
    of_circuit = Variations(experiment, own).losses([_without(own, edges) for edges in gone])
    of_model = Variations(experiment, model).losses(
        [model, EdgeMask.of(graph, []), *(_without(model, g) for g in gone)]
    )
    whole, none, *without = map(metric.from_loss, of_model)
    each = zip(map(metric.from_loss, of_circuit), without, strict=True)
    knockouts = [Knockout(tuple(names), *pair) for names, pair in zip(sets, each, strict=True)]
    return Completeness(tuple(knockouts), abs(whole - none))


def knockable(circuit: Circuit, kind: str = "nodes") -> dict[str, list[Edge]]:
    """What can be knocked out of a circuit by its name: a node with every edge of the graph that leaves it, or an edge.

    Raises
    ------
    ConfigError: another kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"knock-outs of {kind!r} are not known: choose one of {', '.join(KINDS)}")
    if kind == "edges":
        return {str(edge): [edge] for edge in circuit}
    pool: dict[str, list[Edge]] = {node: [] for node in circuit.nodes() if node[0] in "am"}
    for edge in circuit.graph:
        if edge.sender in pool:
            pool[edge.sender].append(edge)
    return pool


def _without(mask: EdgeMask, edges: Iterable[Edge]) -> EdgeMask:
    mask = mask.copy()
    mask.set(edges, False)
    return mask
