"""From a score for every edge to a circuit: the best edges, those above a threshold, or greedily from the logits."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from acdc.circuit import Circuit
from acdc.discovery.base import Method
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.graph import Edge, Graph
from acdc.settings import Settings, option

WAYS = ("top_n", "threshold", "greedy")


@dataclass(frozen=True)
class SelectionOptions(Settings):
    """How edges are chosen by their scores."""

    GROUP: ClassVar[str] = "method"

    select: str = option(
        "top_n",
        "top_n (the best of all edges), threshold, or greedy (the best edge into what is in already, from the logits)",
        WAYS,
    )
    edges: int | None = option(None, "how many edges to choose; null takes the fraction", least=0)
    fraction: float = option(0.1, "their share of all edges, where edges is null", least=0, most=1)
    threshold: float | None = option(None, "with select=threshold: edges that score at least this are kept")
    absolute: bool = option(True, "compare scores by their size, whatever their sign")
    prune: bool = option(True, "drop chosen edges that are on no path from the input to the logits")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.select == "threshold" and self.threshold is None:
            raise ConfigError("method.select=threshold needs method.threshold=NUMBER")
        for key, default in (("edges", None), ("fraction", SelectionOptions.fraction)):
            if self.select == "threshold" and getattr(self, key) != default:
                raise ConfigError(
                    f"method.{key}={getattr(self, key)} has no effect with method.select=threshold: leave it out"
                )
        if self.select != "threshold" and self.threshold is not None:
            raise ConfigError(
                f"method.threshold={self.threshold} has no effect with method.select={self.select}: give"
                " method.select=threshold, or method.edges or method.fraction"
            )

    def how_many(self, graph: Graph) -> int:
        """How many edges to choose, where no threshold says so."""
        return int(self.fraction * len(graph)) if self.edges is None else self.edges


@dataclass(frozen=True)
class SelectingMethod(SelectionOptions, Method):
    """A method that gives every edge a score, and keeps some edges by their scores."""

    def check(self, experiment: Experiment) -> None:
        check_selection(experiment.graph, self)

    def resolved(self, experiment: Experiment) -> dict[str, Any]:
        return {} if self.select == "threshold" else {"edges": self.how_many(experiment.graph)}


def check_selection(graph: Graph, settings: SelectionOptions) -> None:
    """ConfigError where more edges are asked for than there are."""
    if settings.edges is not None and settings.edges > len(graph):
        raise ConfigError(f"method.edges={settings.edges} is not allowed: this model has {len(graph):,} edges")


@dataclass(frozen=True)
class Selection:
    """The edges that were chosen, in order, with their scores, and what became of what was asked for.

    Attributes
    ----------
    asked: how many edges the settings ask for; None where a threshold says so. chosen: how many were, before pruning.
    path_at: the smallest number of best edges that have a path from the input to the logits.
    """

    edges: dict[Edge, float]
    asked: int | None
    chosen: int
    path_at: int

    def numbers(self) -> dict[str, int]:
        """For a circuit's metrics."""
        asked = {} if self.asked is None else {"asked": self.asked}
        return {**asked, "chosen": self.chosen, "path_at": self.path_at}


def select(graph: Graph, scores: Mapping[Edge, float], settings: SelectionOptions) -> Selection:
    """Choose edges as the settings say; of equals the one that ACDC tests first.

    The default share, pruned, is raised to the least number of edges that leaves any.

    Parameters
    ----------
    scores: of every edge of the graph.
    """
    order = ranked(graph, scores, settings)
    path_at = least_with_path(graph, order)
    asked = None if settings.threshold is not None else settings.how_many(graph)
    if settings.threshold is not None:
        compared = {edge: abs(score) if settings.absolute else score for edge, score in scores.items()}
        chosen = [edge for edge in order if compared[edge] >= settings.threshold]
    else:
        by_default = settings.edges is None and settings.fraction == SelectionOptions.fraction and settings.prune
        chosen = order[: max(asked or 0, path_at) if by_default else asked]
    circuit = Circuit(graph, {edge: scores[edge] for edge in chosen})
    edges = circuit.on_path().edges if settings.prune else circuit.edges
    return Selection(edges, asked, len(chosen), path_at)


def ranked(graph: Graph, scores: Mapping[Edge, float], settings: SelectionOptions) -> list[Edge]:
    """All edges in the order in which they are chosen; grown from the logits, those that are reached."""
    ranks = {edge: -abs(scores[edge]) if settings.absolute else -scores[edge] for edge in graph}
    return _greedily(graph, ranks) if settings.select == "greedy" else sorted(ranks, key=ranks.__getitem__)


def least_with_path(graph: Graph, order: Sequence[Edge]) -> int:
    """How many edges, from the first on, it takes until a path leads from the input to the logits: of all paths the
    least place of their last edge. All of them where there is none.
    """
    place = {edge: i for i, edge in enumerate(order, 1)}
    needed = dict.fromkeys(graph.inputs, 0)
    for edge in reversed(list(graph)):  # receivers from the input on
        if edge in place and edge.sender in needed:
            node, at = graph.node_of(edge.receiver), max(needed[edge.sender], place[edge])
            needed[node] = min(needed.get(node, at), at)
    return needed.get("logits", len(order))


def _greedily(graph: Graph, ranks: Mapping[Edge, float]) -> list[Edge]:
    """Always the edge of lowest rank whose receiving node is in the circuit; its sender's node is from then on."""
    into: dict[str, list[tuple[float, int, Edge]]] = {}
    for i, (edge, rank) in enumerate(ranks.items()):
        into.setdefault(graph.node_of(edge.receiver), []).append((rank, i, edge))
    inside, candidates = {"logits"}, list(into["logits"])
    chosen: list[Edge] = []
    heapq.heapify(candidates)
    while candidates:
        _, _, edge = heapq.heappop(candidates)
        chosen.append(edge)
        if edge.sender not in inside:
            inside.add(edge.sender)
            for candidate in into.get(edge.sender, []):
                heapq.heappush(candidates, candidate)
    return chosen
