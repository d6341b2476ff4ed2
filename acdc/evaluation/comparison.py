"""Several circuits of one model beside each other: how much depends on a choice, such as the corruption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import combinations
from statistics import fmean
from typing import Any

import pandas as pd

from acdc.circuit import Circuit
from acdc.errors import ConfigError, FormatError
from acdc.graph import Edge
from acdc.result import Result, as_table


@dataclass(frozen=True)
class CircuitComparison(Result):
    """Circuits with their labels, in the order given. Made by `compare_circuits`."""

    labels: tuple[str, ...]
    compared: tuple[Circuit, ...]

    @cached_property
    def core(self) -> Circuit:
        """The edges that every circuit keeps; effects and names are the first one's."""
        return reduce(Circuit.__and__, self.compared)

    @cached_property
    def union(self) -> Circuit:
        """The edges that some circuit keeps; effects are those of the first that keeps an edge."""
        return reduce(Circuit.__or__, self.compared)

    @cached_property
    def kept_by(self) -> Counter[Edge]:
        """For each edge of the union, how many circuits keep it."""
        return Counter(edge for circuit in self.compared for edge in circuit)

    def kept_by_exactly(self) -> list[int]:
        """Return how many edges are kept by exactly 1, 2, … of the circuits."""
        counts = Counter(self.kept_by.values())
        return [counts[k] for k in range(1, len(self.compared) + 1)]

    @cached_property
    def jaccard(self) -> list[list[float]]:
        """|A ∩ B| / |A ∪ B| of the edges of every two circuits, 1 on the diagonal."""
        return [[a.jaccard(b) for b in self.compared] for a in self.compared]

    @property
    def mean_jaccard(self) -> float:
        """The mean over all pairs of different circuits."""
        return fmean(self.jaccard[i][j] for i, j in combinations(range(len(self.compared)), 2))

    def words(self) -> str:
        """Say in two sentences how much the circuits share."""
        sizes = [len(circuit) for circuit in self.compared]
        kept = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
        pairs = [self.jaccard[i][j] for i, j in combinations(range(len(sizes)), 2)]
        union, share = len(self.union), ""
        if union:
            share = f", {len(self.core) / union:.0%} of the {union:,} that any keeps"
        return (
            f"{len(sizes)} circuits of {kept} edges keep {len(self.core):,} edges in common{share}. The Jaccard index"
            f" of two of them is {self.mean_jaccard:.2f} on average, {min(pairs):.2f} to {max(pairs):.2f}."
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return `comparison`, a row for every two circuits."""
        return {"comparison": as_table(self.pair_rows())}

    def documents(self) -> dict[str, object]:
        return {"comparison": self.as_dict()}

    def as_dict(self) -> dict[str, Any]:
        """Return sizes, Jaccard indices, the common core, and every edge with its effects, for a JSON file."""
        circuits = zip(self.labels, self.compared, strict=True)
        return {
            "summary": self.words(),
            "circuits": [
                {"label": label, "edges": len(circuit), "recovery": circuit.metrics.get("recovery")}
                for label, circuit in circuits
            ],
            "jaccard": self.jaccard,
            "mean_jaccard": self.mean_jaccard,
            "kept_by_exactly": self.kept_by_exactly(),
            "core": [str(edge) for edge in self.core],
            "edges": self.edge_rows(),
        }

    def pair_rows(self) -> list[dict[str, Any]]:
        """Return a row for every two circuits: their edges, shared edges, and Jaccard indices of edges and of nodes."""
        rows = []
        for (name, one), (other_name, other) in combinations(zip(self.labels, self.compared, strict=True), 2):
            nodes, other_nodes = set(one.nodes()), set(other.nodes())
            both = nodes | other_nodes
            rows.append(
                {
                    "first": name,
                    "second": other_name,
                    "first_edges": len(one),
                    "second_edges": len(other),
                    "shared_edges": len(one & other),
                    "jaccard": one.jaccard(other),
                    "node_jaccard": len(nodes & other_nodes) / len(both) if both else 1.0,
                }
            )
        return rows

    def edge_rows(self) -> list[dict[str, Any]]:
        """Return a row for every edge of the union, the most shared first: `kept_by`, and its effect in each circuit.

        Effects have their circuit's label as key. The effect is None in a circuit that does not keep the edge.
        """
        order = sorted(self.union, key=lambda edge: -self.kept_by[edge])
        return [
            {"sender": edge.sender, "receiver": edge.receiver, "kept_by": self.kept_by[edge]}
            | {f"effect {name}": c.edges.get(edge) for name, c in zip(self.labels, self.compared, strict=True)}
            for edge in order
        ]


def compare_circuits(circuits: Sequence[tuple[str, Circuit]]) -> CircuitComparison:
    """Lay circuits of one model beside each other.

    Parameters
    ----------
    circuits : sequence of (str, Circuit)
        Each with a label of its own, such as the corruption it was found with.

    Raises
    ------
    ConfigError
        Fewer than two circuits, or a label given twice.
    FormatError
        Circuits of different graphs.
    """
    if len(circuits) < 2:
        raise ConfigError(f"{len(circuits)} circuit given to compare: give two or more")
    labels = [label for label, _ in circuits]
    if twice := [label for label, n in Counter(labels).items() if n > 1]:
        raise ConfigError(f"two circuits to compare are both called {twice[0]!r}: give each a name of its own")
    first_label, first = circuits[0]
    for label, circuit in circuits[1:]:
        if circuit.graph.config != first.graph.config:
            raise FormatError(
                f"{label!r} is a circuit of another model than {first_label!r}: {circuit.graph.config} and"
                f" {first.graph.config}; compare circuits of one model"
            )
        if circuit.graph.projection_edges != first.graph.projection_edges:
            raise FormatError(
                f"one of {first_label!r} and {label!r} has projection edges and the other has none: compare circuits"
                " found with the same method.projection_edges"
            )
    return CircuitComparison(tuple(labels), tuple(circuit for _, circuit in circuits))
