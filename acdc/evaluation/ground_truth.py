"""Circuits that are known: what they are, and where they come from.

`published` gives the sets of the literature: canonical circuits of language models, found by hand, and the sets that
Conmy et al. and Miller et al. hold the compiled programs against. They are data (`truth/*.json`): groups of nodes,
which group feeds which ports of which other, and at which positions of the prompt, where that is known. `derive_truth`
(in `acdc.evaluation.derive`) takes the circuit of a compiled or hand-built model out of its weights instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acdc.errors import ConfigError, FormatError
from acdc.graph import INPUTS, Edge, Graph, GraphConfig

FOLDER = Path(__file__).parent / "truth"


@dataclass(frozen=True)
class Truth:
    """A set of edges taken to be the right ones.

    Attributes
    ----------
    name: of the circuit. kind: `published`, `derived` (from the weights) or `file`. sources: where it is from.
    graph: the full graph; with projection edges, those of the ports that the circuit reaches are part of it.
    positions: of edges for which they are known, the labels of the positions (of the task's pairs) at which the
        receiver reads. groups: named sets of nodes.
    """

    name: str
    kind: str
    graph: Graph
    edges: frozenset[Edge]
    sources: tuple[str, ...] = ()
    positions: Mapping[Edge, tuple[str, ...]] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def nodes(self) -> frozenset[str]:
        """Every node that an edge begins or ends at."""
        return frozenset(self.graph.node_of(name) for edge in self.edges for name in edge)

    @property
    def heads(self) -> frozenset[str]:
        return frozenset(node for node in self.nodes if self.graph[node].kind == "head")


def names() -> list[str]:
    """Every published circuit; those with `_resample` are of corrupted ablation, other tracr sets of zero."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def published(name: str, graph: Graph | None = None) -> Truth:
    """A published circuit.

    Parameters
    ----------
    graph: of the circuit to grade; None is that of the circuit's own model, without projection edges. Its embedding may
        be split or not, whichever way the circuit is stated.

    Raises
    ------
    ConfigError: no circuit of that name, or one of another model.
    """
    if name not in names():
        raise ConfigError(f"no circuit is published for {name!r}; there are {', '.join(names())}")
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    own = GraphConfig(**data["graph"])
    graph = graph or Graph(own)
    theirs = graph.config
    if _shape(own) != _shape(theirs):
        raise ConfigError(
            f"the circuit {name} is one of {data['model']} ({own.n_layers} layers of {own.n_heads} heads); this model"
            f" has {theirs.n_layers} layers of {theirs.n_heads} heads"
        )
    groups = {group: tuple(nodes) for group, nodes in data["groups"].items()}
    positions = _expand(data["connections"], groups, graph)
    return Truth(
        name,
        "published",
        graph,
        with_projections(frozenset(positions), graph),
        tuple(data["sources"]),
        {edge: labels for edge, labels in positions.items() if labels},
        groups,
    )


def _shape(config: GraphConfig) -> tuple[int | bool, ...]:
    """What tells one model from another; the embedding of a graph may be split or not."""
    return config.n_layers, config.n_heads, config.d_model, config.attn_only, config.parallel_attn_mlp


def with_projections(edges: frozenset[Edge], graph: Graph) -> frozenset[Edge]:
    """The edges and, where the graph has projection edges, those of the q, k and v ports among the receivers."""
    if not graph.projection_edges:
        return edges
    return edges | {graph.projection_of(edge.receiver) for edge in edges if graph[edge.receiver].is_port_of_head}


def load_truth(path: str | Path, graph: Graph) -> Truth:
    """A truth of your own: a circuit file, whose edges are taken to be the right ones.

    Raises
    ------
    FormatError: no circuit file, or one of a model of another shape.
    """
    from acdc.circuit import Circuit

    circuit = Circuit.load(path)
    plain = frozenset(edge for edge in circuit if not edge.is_projection)
    if strangers := [edge for edge in plain if edge not in graph]:
        raise FormatError(f"{path} has the edge {strangers[0]}, which this model does not have: {graph.config}")
    return Truth(Path(path).stem, "file", graph, with_projections(plain, graph), (str(path),))


def _expand(
    connections: list[dict[str, Any]], groups: Mapping[str, tuple[str, ...]], graph: Graph
) -> dict[Edge, tuple[str, ...]]:
    """The edges of the connections with the labels of their positions: every one that exists in the graph, since a
    sender feeds later ports only."""
    edges: dict[Edge, tuple[str, ...]] = {}
    for connection in connections:
        senders = [node for name in connection["from"] for node in _nodes(name, groups, graph)]
        for node in (node for name in connection["to"] for node in _nodes(name, groups, graph)):
            if graph[node].kind == "head":
                of = {graph[port].letter: port for port in graph.ports_of(node)}
                ports = {of[letter]: tuple(labels) for letter, labels in connection["ports"].items()}
            else:
                ports = {node: tuple(connection["at"])}
            for port, labels in ports.items():
                for sender in senders:
                    edge = Edge(sender, port)
                    if edge in graph:
                        edges[edge] = edges.get(edge) or labels
    return edges


def _nodes(name: str, groups: Mapping[str, tuple[str, ...]], graph: Graph) -> tuple[str, ...]:
    """The nodes of this graph that a name stands for."""
    if name in INPUTS:
        return (name,) if name in graph.inputs else graph.inputs
    if name == "mlps":
        return tuple(sender for sender in graph.senders if graph[sender].kind == "mlp")
    return groups.get(name, (name,))
