"""Completeness (Wang et al. 2022, arXiv:2211.00593, section 4): does the circuit do everything that the model does?

A circuit C is complete if it and the model M stay alike when parts K of the circuit are knocked out of both. The
incompleteness of K is |F(C ∖ K) − F(M ∖ K)|, F the metric. If the model does better than the circuit without K, it has
something that the circuit lacks, such as a backup head. K is drawn at random here. The paper draws it by class of
heads, greedily, and at random.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from acdc.circuit import Circuit
from acdc.engine.mask import EdgeMask
from acdc.engine.variations import Variations
from acdc.errors import ConfigError
from acdc.evaluation.part import PartByCircuit, Spread
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.process import undisturbed

KINDS = ("nodes", "edges")


@dataclass(frozen=True)
class Knockout:
    """One set K.

    Attributes
    ----------
    names : tuple of str
        The nodes or edges that are knocked out.
    circuit, model : float
        The metric of the circuit and of the model without them.
    """

    names: tuple[str, ...]
    circuit: float
    model: float

    @property
    def incompleteness(self) -> float:
        return abs(self.circuit - self.model)


@dataclass(frozen=True)
class Completeness:
    """All knock-outs of a circuit.

    Attributes
    ----------
    knockouts : tuple of Knockout
    span : float
        |metric of the model − metric without any edge|, to compare with.
    """

    knockouts: tuple[Knockout, ...]
    span: float

    def summary(self) -> dict[str, float]:
        """Return the mean and the largest incompleteness; also the mean in units of the span, unless that is 0."""
        values = [knockout.incompleteness for knockout in self.knockouts]
        shares = {"mean_share": fmean(values) / self.span} if self.span and values else {}
        return {"mean": fmean(values), "max": max(values), **shares} if values else {}

    def as_dict(self) -> dict[str, object]:
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
    experiment : Experiment
    circuit : Circuit
    draws : int
        How many sets K.
    kind : str
        K holds `nodes` of the circuit (heads and MLPs, with every edge that leaves them) or `edges`.
    size : int, optional
        Of K. None draws it too, from 1 to all, uniformly in its logarithm: without most of its nodes a circuit does
        nothing, and neither does the model.
    seed : int

    Raises
    ------
    ConfigError
        Another kind, or a size that is more than the circuit has.
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
    """Return what can be knocked out of a circuit: by name, a node with every edge that leaves it, or an edge.

    Raises
    ------
    ConfigError
        Another kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"knock-outs of {kind!r} are not known: choose one of {', '.join(KINDS)}")
    if kind == "edges":
        return {str(edge): [edge] for edge in circuit}
    graph = circuit.graph
    pool: dict[str, list[Edge]] = {node: [] for node in circuit.nodes() if graph[node].kind in ("head", "mlp")}
    for edge in graph:
        if edge.sender in pool:
            pool[edge.sender].append(edge)
    return pool


def _without(mask: EdgeMask, edges: Iterable[Edge]) -> EdgeMask:
    mask = mask.copy()
    mask.set(edges, False)
    return mask


@dataclass(frozen=True)
class CompletenessOfCircuit:
    """The knock-outs of a circuit and of random circuits of its size."""

    own: Completeness
    randoms: tuple[Completeness, ...]

    @property
    def random(self) -> Spread | None:
        return Spread.of([one.summary() for one in self.randoms]) if self.randoms else None

    def as_dict(self) -> dict[str, object]:
        return {**self.own.as_dict(), **({"random": self.random.as_dict()} if self.random else {})}

    def measures(self) -> dict[str, object]:
        rows: dict[str, object] = {f"incompleteness, {key}": n for key, n in self.own.summary().items()}
        return rows | {f"incompleteness, {k}, random": n for k, n in (self.random.mean if self.random else {}).items()}

    def numbers(self) -> dict[str, object]:
        return {f"incompleteness_{key}": value for key, value in self.own.summary().items()}


@dataclass(frozen=True)
class CompletenessPart(PartByCircuit[CompletenessOfCircuit]):
    """Random knock-outs in each circuit and in the model, of `kind`; `metric` is the experiment's."""

    name = "completeness"
    metric: str = ""
    kind: str = ""


@undisturbed
def completeness_of_circuits(
    experiment: Experiment,
    circuits: Mapping[str, Circuit],
    randoms: Mapping[str, Sequence[Circuit]],
    draws: int,
    kind: str,
    size: int | None,
    seed: int,
) -> CompletenessPart:
    """Knock random parts out of each circuit, of the model, and of random circuits.

    Parameters
    ----------
    experiment : Experiment
    circuits : mapping of str to Circuit
    randoms : mapping of str to sequence of Circuit
        By the circuit's name, random circuits of its size. They share `draws`.
    draws, kind, size, seed
        As in `completeness`; the size is at most what a circuit has.
    """

    def knocked(circuit: Circuit, draws: int, which: int) -> Completeness:
        at_most = size and min(size, len(knockable(circuit, kind)))
        return completeness(experiment, circuit, draws, kind, at_most, seed + which)

    found: dict[str, CompletenessOfCircuit | str] = {}
    for name, circuit in circuits.items():
        each = max(1, draws // max(1, len(randoms[name])))
        own = knocked(circuit, draws, 0)
        theirs = tuple(knocked(other, each, i) for i, other in enumerate(randoms[name], 1))
        found[name] = CompletenessOfCircuit(own, theirs)
    return CompletenessPart(found, "", experiment.metric_name, kind)
