"""Minimality: what each edge is worth inside the finished circuit.

A search decides on an edge while others are still there. In the finished circuit an edge may be worth less than the
threshold by which it was kept, which happens in the original ACDC too (Conmy et al. 2023). `prune_again` goes on until
no edge is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from acdc.circuit import Circuit
from acdc.discovery.near_ties import NearTies
from acdc.engine.mask import EdgeMask
from acdc.engine.variations import Variations
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.process import undisturbed

NO_EFFECTS = ("hisp", "information_flow", "random")  # methods whose scores, and so thresholds, are no effects
_TIE = 1e-6  # ε of near-ties, as ACDC's
_COMPARED = 12  # edges that say how far rounding reaches


@dataclass(frozen=True)
class Minimality:
    """`worth`: loss without an edge − loss of the circuit, by edge; positive means that it helps."""

    worth: Mapping[Edge, float]

    def below(self, threshold: float) -> list[Edge]:
        """The edges that are worth less, the least first."""
        return sorted((edge for edge, worth in self.worth.items() if worth < threshold), key=self.worth.__getitem__)

    def as_dict(self, threshold: float | None = None) -> dict[str, Any]:
        worth = {str(edge): value for edge, value in self.worth.items()}
        if threshold is None:
            return {"worth": worth}
        return {"threshold": threshold, "below": len(self.below(threshold)), "worth": worth}


@undisturbed
def minimality(experiment: Experiment, circuit: Circuit, edges: Sequence[Edge] | None = None) -> Minimality:
    """What each edge (or some of them) is worth, by evaluating the circuit without it."""
    whole, edges = EdgeMask.of(circuit.graph, circuit), list(circuit) if edges is None else edges
    before, *losses = Variations(experiment, whole).losses([whole, *(whole.without(edge) for edge in edges)])
    return Minimality({edge: loss - before for edge, loss in zip(edges, losses, strict=True)})


def threshold_of(circuit: Circuit, metric: str) -> float | None:
    """The threshold that the circuit was found with, where its file names one that is of effects on this metric."""
    value = circuit.method.get("threshold")
    if circuit.method.get("name") in NO_EFFECTS or circuit.provenance.get("metric", metric) != metric:
        return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@undisturbed
def prune_again(experiment: Experiment, circuit: Circuit, threshold: float) -> Circuit:
    """The circuit without edges that are worth less than the threshold inside it.

    Passes over the edges that are left, each as ACDC's (receivers from the output backward, an edge stays out if the
    loss rises by less than the threshold), until one removes nothing. Effects in the result are what the edges are
    worth in it; near-ties are settled in float64.
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
        """Compare some edges' worth in the circuit as it was found with float64."""
        some = list(self.worth)[:: -(-len(self.worth) // _COMPARED) or 1]
        masks = [self.mask, *map(self.mask.without, some)]
        exact = self.ties.exact(masks)
        for edge, loss, right in zip(some, self.variations.losses(masks[1:]), exact[1:], strict=True):
            effect = loss - self.current
            self.ties.learn(edge.receiver, abs(right - exact[0] - effect), effect, self.current)

    def one_pass(self) -> bool:
        """Test every edge that is left; whether one went."""
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
