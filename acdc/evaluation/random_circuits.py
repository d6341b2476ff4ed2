"""Random circuits of a given size, to hold a circuit's numbers against.

`paths` (Shi et al. 2024, arXiv:2410.13032): whole paths from an input to the logits, each a random walk, until there
are as many edges as wanted. Every edge then lies on a path, as the edges of a circuit do. `edges`: edges drawn
uniformly, as a ranking by random scores draws them (MIB). In a sparse circuit few of these are connected to anything.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from acdc.circuit import Circuit
from acdc.errors import ConfigError
from acdc.graph import Edge, Graph

KINDS = ("paths", "edges")
_IDLE = 100  # walks in a row that do not fit before what is missing is filled up with any edges


def random_circuits(circuit: Circuit, draws: int, seed: int = 0, kind: str = "paths") -> list[Circuit]:
    """Draw circuits of the same graph with as many edges as this one; effects are 0.

    Parameters
    ----------
    circuit : Circuit
    draws : int
    seed : int
    kind : str
        `paths` or `edges`.

    Raises
    ------
    ConfigError
        Another kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"random circuits of the kind {kind!r} are not known: choose one of {', '.join(KINDS)}")
    rng = random.Random(seed)
    every, walk = list(circuit.graph), Walk(circuit.graph, rng)
    chosen: list[list[Edge]] = []
    for _ in range(draws):
        edges = walk.until(len(circuit)) if kind == "paths" else []
        left = [edge for edge in every if edge not in edges] if len(edges) < len(circuit) else []
        chosen.append([*edges, *rng.sample(left, len(circuit) - len(edges))])
    return [Circuit(circuit.graph, dict.fromkeys(edges, 0.0), model=circuit.model) for edges in chosen]


class Walk:
    """Random walks from an input to the logits; each step takes one of the sender's edges, drawn uniformly."""

    def __init__(self, graph: Graph, rng: random.Random) -> None:
        self.graph, self.rng = graph, rng

    def path(self) -> list[Edge]:
        """Draw the edges of one path, with the projection edges of its ports where the graph has them."""
        edges: list[Edge] = []
        node = self.rng.choice(self.graph.inputs)
        while node != "logits":
            port = self.rng.choice(self._receivers(node))
            edges.append(Edge(node, port))
            if self.graph.projection_edges and self.graph[port].letter:
                edges.append(self.graph.projection_of(port))
            node = self.graph.node_of(port)
        return edges

    def until(self, size: int, given: Sequence[Edge] = ()) -> dict[Edge, None]:
        """Add the edges of random paths to the given ones, up to `size` in all; fewer where no more paths fit."""
        edges = dict.fromkeys(given)
        idle = 0
        while len(edges) < size and idle < _IDLE:
            more = {**edges, **dict.fromkeys(self.path())}
            fits = len(edges) < len(more) <= size
            edges, idle = (more, 0) if fits else (edges, idle + 1)
        return edges

    def _receivers(self, sender: str) -> list[str]:
        index = self.graph.sender_index[sender]
        return [port for port in self.graph.ports if self.graph.n_senders_of(port) > index]
