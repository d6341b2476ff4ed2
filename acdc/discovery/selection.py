"""From a score for every edge to a circuit: the best edges, those above a threshold, or greedily from the logits."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from acdc.circuit import Circuit
from acdc.errors import ConfigError
from acdc.graph import Edge, Graph

WAYS = ("top_n", "threshold", "greedy")


@dataclass(frozen=True)
class SelectionSettings:
    """How the methods that score every edge choose those to keep.

    Attributes
    ----------
    select: `top_n`, the best of all edges; `threshold`, those that score at least `threshold`; `greedy`, always the
        best edge into what is in the circuit already, from the logits on (EAP-IG, Hanna et al. 2024).
    edges: how many to choose. fraction: their share of all edges, rounded down, where `edges` is None.
    absolute: compare scores by their size, so that edges that hurt can be kept too.
    prune: drop chosen edges that are on no path from the input to the logits.
    """

    name: str = ""
    select: str = "top_n"
    edges: int | None = None
    fraction: float = 0.1
    threshold: float | None = None
    absolute: bool = True
    prune: bool = True

    def __post_init__(self) -> None:
        if self.select not in WAYS:
            raise ConfigError(f"method.select={self.select} is not known: choose one of {', '.join(WAYS)}")
        if self.edges is not None and self.edges < 0:
            raise ConfigError(f"method.edges={self.edges} is not allowed: give a number from 0 up, or null")
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"method.fraction={self.fraction} is not allowed: give a number from 0 to 1")
        if self.select == "threshold" and self.threshold is None:
            raise ConfigError("method.select=threshold needs method.threshold=NUMBER")
        for option, default in (("edges", None), ("fraction", SelectionSettings.fraction)):
            if self.select == "threshold" and getattr(self, option) != default:
                raise ConfigError(
                    f"method.{option}={getattr(self, option)} has no effect with method.select=threshold: leave it out"
                )
        if self.select != "threshold" and self.threshold is not None:
            raise ConfigError(
                f"method.threshold={self.threshold} has no effect with method.select={self.select}: give"
                " method.select=threshold, or method.edges or method.fraction"
            )

    def how_many(self, graph: Graph) -> int:
        """How many edges to choose, where no threshold says so."""
        return int(self.fraction * len(graph)) if self.edges is None else self.edges


def check_selection(graph: Graph, settings: SelectionSettings) -> None:
    """ConfigError where more edges are asked for than there are."""
    if settings.edges is not None and settings.edges > len(graph):
        raise ConfigError(f"method.edges={settings.edges} is not allowed: this model has {len(graph):,} edges")


def select(graph: Graph, scores: Mapping[Edge, float], settings: SelectionSettings) -> dict[Edge, float]:
    """The chosen edges with their scores, in the order of the choice; of equals the one that ACDC tests first.

    Parameters
    ----------
    scores: of every edge of the graph.
    """

    def rank(edge: Edge) -> float:
        return -abs(scores[edge]) if settings.absolute else -scores[edge]

    if settings.select == "greedy":
        chosen = _greedily(graph, {edge: rank(edge) for edge in graph}, settings.how_many(graph))
    else:
        chosen = sorted(graph, key=rank)
        if settings.threshold is not None:
            chosen = [edge for edge in chosen if -rank(edge) >= settings.threshold]
        else:
            chosen = chosen[: settings.how_many(graph)]
    circuit = Circuit(graph, {edge: scores[edge] for edge in chosen})
    return circuit.on_path().edges if settings.prune else circuit.edges


def _greedily(graph: Graph, ranks: Mapping[Edge, float], n_edges: int) -> list[Edge]:
    """Always the edge of lowest rank whose receiving node is in the circuit; its sender's node is from then on."""
    into: dict[str, list[tuple[float, int, Edge]]] = {}
    for i, (edge, rank) in enumerate(ranks.items()):
        into.setdefault(graph.node_of(edge.receiver), []).append((rank, i, edge))
    inside, candidates = {"logits"}, list(into["logits"])
    chosen: list[Edge] = []
    heapq.heapify(candidates)
    while candidates and len(chosen) < n_edges:
        _, _, edge = heapq.heappop(candidates)
        chosen.append(edge)
        if edge.sender not in inside:
            inside.add(edge.sender)
            for candidate in into.get(edge.sender, []):
                heapq.heappush(candidates, candidate)
    return chosen
