"""Minimality: what each edge is worth inside the finished circuit.

A search decides on an edge while other edges are still there. In the finished circuit an edge may be worth less than
the threshold by which it was kept. This happens in the original ACDC too (Conmy et al. 2023). `prune_again` removes
edges until none is worth less.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from acdc.circuit import Circuit
from acdc.discovery.near_ties import NearTies
from acdc.engine.mask import EdgeMask
from acdc.engine.variations import Variations
from acdc.evaluation.faithfulness import faithfulness
from acdc.evaluation.part import PartByCircuit
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.process import undisturbed

NO_EFFECTS = ("hisp", "information_flow", "random")  # methods whose scores, and so thresholds, are no effects
_TIE = 1e-6  # ε of near-ties, as ACDC's
_COMPARED = 12  # edges that say how far rounding reaches
_OF_RANDOM = 32  # edges looked at of each random circuit


@dataclass(frozen=True)
class Minimality:
    """What edges are worth.

    Attributes
    ----------
    worth : mapping of Edge to float
        Loss without the edge − loss of the circuit; positive means that the edge helps.
    """

    worth: Mapping[Edge, float]

    def below(self, threshold: float) -> list[Edge]:
        """Return the edges that are worth less, the least first."""
        return sorted((edge for edge, worth in self.worth.items() if worth < threshold), key=self.worth.__getitem__)


@undisturbed
def minimality(experiment: Experiment, circuit: Circuit, edges: Sequence[Edge] | None = None) -> Minimality:
    """Measure what each edge (or some edges) is worth, by evaluating the circuit without it."""
    whole, edges = EdgeMask.of(circuit.graph, circuit), list(circuit) if edges is None else edges
    before, *losses = Variations(experiment, whole).losses([whole, *(whole.without(edge) for edge in edges)])
    return Minimality({edge: loss - before for edge, loss in zip(edges, losses, strict=True)})


def threshold_of(circuit: Circuit, metric: str) -> float | None:
    """Return the threshold that the circuit was found with, if its file names one, of effects on this metric."""
    value = circuit.method.get("threshold")
    if circuit.method.get("name") in NO_EFFECTS or circuit.provenance.get("metric", metric) != metric:
        return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@undisturbed
def prune_again(experiment: Experiment, circuit: Circuit, threshold: float) -> Circuit:
    """Remove the edges that are worth less than the threshold inside the circuit.

    Passes over the remaining edges as ACDC does (receivers from the output backward; an edge stays out if the loss
    rises by less than the threshold) until a pass removes nothing. Near-ties are settled in float64.

    Returns
    -------
    Circuit
        Its effects are what the edges are worth in it.
    """
    again = _Again(experiment, circuit, threshold)
    while again.one_pass():
        pass
    edges = {edge: again.worth[edge] for edge in circuit if edge in again.worth}
    provenance = {**circuit.provenance, "pruned_again": {"threshold": threshold, "from_edges": len(circuit)}}
    return replace(circuit, edges=edges, metrics={}, provenance=provenance)


class _Again:
    def __init__(self, experiment: Experiment, circuit: Circuit, threshold: float) -> None:
        self.circuit, self.threshold = circuit, threshold
        self.mask = EdgeMask.of(circuit.graph, circuit)
        self.variations = Variations(experiment, self.mask)
        self.ties = NearTies(experiment, _TIE, "full", None)
        (self.current,) = self.variations.losses([self.mask])
        self.worth: dict[Edge, float] = dict.fromkeys(circuit, 0.0)  # of those that are left
        self._measure_rounding()

    def _measure_rounding(self) -> None:
        """Compare what some edges are worth in the circuit as it was found with the same in float64."""
        some = list(self.worth)[:: -(-len(self.worth) // _COMPARED) or 1]
        masks = [self.mask, *map(self.mask.without, some)]
        exact = self.ties.exact(masks)
        for edge, loss, right in zip(some, self.variations.losses(masks[1:]), exact[1:], strict=True):
            effect = loss - self.current
            self.ties.learn(edge.receiver, abs(right - exact[0] - effect), effect, self.current)

    def one_pass(self) -> bool:
        """Test every edge that is left; return whether one went."""
        before = len(self.worth)
        for edge in self.circuit.graph:
            if edge in self.worth:
                self._test(edge)
        return len(self.worth) < before

    def _test(self, edge: Edge) -> None:
        (loss,) = self.variations.losses([self.mask.without(edge)])
        effect = loss - self.current
        tie = self.ties.holds(edge.receiver, effect, self.threshold, self.current)
        if tie:
            before, loss = self.ties.settle(self.mask, edge)
            self.ties.learn(edge.receiver, abs(loss - before - effect), effect, self.current)
            effect = loss - before
        if effect >= self.threshold - (1e-12 if tie else 0.0):
            self.worth[edge] = effect
            return
        del self.worth[edge]
        self.mask.set([edge], False)
        self.variations.rebase(self.mask)
        self.current = loss


@dataclass(frozen=True)
class Pruned:
    """A circuit that was pruned again.

    Attributes
    ----------
    circuit : Circuit
        What is left, with its `metrics`.
    before : mapping of str to number
        The metrics of the circuit before.
    removed : tuple of Edge
    jaccard : float
        With the circuit before.
    """

    circuit: Circuit
    before: Mapping[str, float]
    removed: tuple[Edge, ...]
    jaccard: float

    def numbers(self) -> dict[str, object]:
        of = self.circuit.metrics
        return {"edges": len(self.circuit), "jaccard": self.jaccard, "recovery": of["recovery"], "kl": of["kl"]}


@dataclass(frozen=True)
class MinimalityOfCircuit:
    """What a circuit's edges are worth.

    Attributes
    ----------
    circuit : Circuit
    own : Minimality
    threshold : float or None
        What an edge should be worth.
    randoms : sequence of float
        What edges of random circuits are worth in theirs.
    pruned : Pruned or None
    """

    circuit: Circuit
    own: Minimality
    threshold: float | None
    randoms: Sequence[float]
    pruned: Pruned | None

    def of_own(self) -> dict[str, float | None]:
        return self._numbers(list(self.own.worth.values()))

    def of_randoms(self) -> dict[str, float | None]:
        return self._numbers(self.randoms)

    def _numbers(self, worth: Sequence[float]) -> dict[str, float | None]:
        """Return how many edges there are, how many are below the threshold, the median and the least worth."""
        below = None if self.threshold is None else sum(value < self.threshold for value in worth)
        numbers: dict[str, float | None] = {"edges": len(worth), "below": below}
        if not worth:
            return {**numbers, "below_share": None, "median": None, "least": None}
        share = None if below is None else below / len(worth)
        return {**numbers, "below_share": share, "median": median(worth), "least": min(worth)}

    def as_dict(self) -> dict[str, object]:
        values: dict[str, object] = {"worth": {str(edge): value for edge, value in self.own.worth.items()}}
        if self.threshold is not None:
            values = {"threshold": self.threshold, "below": self.of_own()["below"], **values}
        values |= {"random": self.of_randoms()} if self.randoms else {}
        if self.pruned:
            values["pruned"] = {**self.pruned.numbers(), "removed": [str(edge) for edge in self.pruned.removed]}
        return values

    def measures(self) -> dict[str, object]:
        rows: dict[str, object] = {f"minimality, {key}": value for key, value in self.of_own().items()}
        return rows | {f"worth of {edge}": value for edge, value in self.own.worth.items()}

    def numbers(self) -> dict[str, object]:
        values = {f"minimality_{key}": value for key, value in self.of_own().items() if value is not None}
        return values | (
            {f"pruned_{key}": value for key, value in self.pruned.numbers().items()} if self.pruned else {}
        )


@dataclass(frozen=True)
class MinimalityPart(PartByCircuit[MinimalityOfCircuit]):
    """What each edge is worth inside the finished circuit. `n_randoms`: how many random circuits were looked at."""

    name = "minimality"
    n_randoms: int = 0

    def circuits(self) -> dict[str, Circuit]:
        """Return the circuit that was pruned again."""
        pruned = [one.pruned.circuit for one in self.findings.values() if one.pruned]
        return {"circuit.pruned": pruned[0]} if pruned else {}


@undisturbed
def minimality_of_circuits(
    experiment: Experiment,
    circuits: Mapping[str, Circuit],
    randoms: Mapping[str, Sequence[Circuit]],
    threshold: float | None = None,
    prune: bool = False,
    seed: int = 0,
) -> MinimalityPart:
    """Measure what each circuit's edges are worth, and some edges of random circuits.

    Parameters
    ----------
    experiment : Experiment
    circuits : mapping of str to Circuit
    randoms : mapping of str to sequence of Circuit
        By the circuit's name, random circuits of its size.
    threshold : float, optional
        What an edge should be worth; None takes each circuit's own.
    prune : bool
        Also remove what is worth less, where there is a threshold.
    seed : int
        Chooses the edges of the random circuits.
    """
    found: dict[str, MinimalityOfCircuit | str] = {}
    for name, circuit in circuits.items():
        own = minimality(experiment, circuit)
        limit = threshold_of(circuit, experiment.metric_name) if threshold is None else threshold
        rng, theirs = random.Random(seed), list[float]()
        for other in randoms[name]:
            some = rng.sample(list(other), min(_OF_RANDOM, len(other)))
            theirs += minimality(experiment, other, some).worth.values()
        pruned = _pruned(experiment, circuit, limit) if prune and limit is not None else None
        found[name] = MinimalityOfCircuit(circuit, own, limit, theirs, pruned)
    return MinimalityPart(found, "", max((len(some) for some in randoms.values()), default=0))


def _pruned(experiment: Experiment, circuit: Circuit, threshold: float) -> Pruned:
    pruned = prune_again(experiment, circuit, threshold)
    before, pruned.metrics = faithfulness(experiment, circuit), faithfulness(experiment, pruned)
    return Pruned(pruned, before, tuple(circuit - pruned), circuit.jaccard(pruned))
