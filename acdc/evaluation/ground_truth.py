"""Circuits that are known: what they are, and where they come from.

`published` returns the sets of the literature: canonical circuits of language models, found by hand, and the sets that
Conmy et al. and Miller et al. compare the compiled programs with. They are data (`truth/*.json`): groups of nodes,
which group feeds which ports of which other group, and, where that is known, at which positions of the prompt.
`acdc.evaluation.derive` takes the circuit of a compiled or hand-built model from its weights instead.
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
    """A set of edges that is taken to be right.

    Attributes
    ----------
    name : str
    kind : str
        `published`, `derived` (from the weights) or `file`.
    graph : Graph
        The full graph. If it has projection edges, those of the ports that the circuit reaches belong to the circuit.
    edges : frozenset of Edge
    sources : tuple of str
        Where the circuit is from.
    positions : mapping of Edge to tuple of str
        The labels of the positions (of the task's pairs) at which the receiver reads, for edges of which this is known.
    groups : mapping of str to tuple of str
        Named sets of nodes.
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
        """The nodes at the ends of the edges."""
        return frozenset(self.graph.node_of(name) for edge in self.edges for name in edge)

    @property
    def heads(self) -> frozenset[str]:
        return frozenset(node for node in self.nodes if self.graph[node].kind == "head")


def names() -> list[str]:
    """Return the names of the published circuits; `_resample` is of corrupted ablation, other tracr sets of zero."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def published(name: str, graph: Graph | None = None) -> Truth:
    """Return a published circuit.

    Parameters
    ----------
    name : str
    graph : Graph, optional
        The graph of the circuit to grade; None takes that of the circuit's own model, without projection edges. Its
        embedding may be split or not, whichever way the circuit is stated.

    Raises
    ------
    ConfigError
        No circuit of that name, or a circuit of another model.
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
    """Return what tells one model from another; the embedding of a graph may be split or not."""
    return config.n_layers, config.n_heads, config.d_model, config.attn_only, config.parallel_attn_mlp


def with_projections(edges: frozenset[Edge], graph: Graph) -> frozenset[Edge]:
    """Add, if the graph has projection edges, those of the q, k and v ports among the receivers."""
    if not graph.projection_edges:
        return edges
    return edges | {graph.projection_of(edge.receiver) for edge in edges if graph[edge.receiver].is_port_of_head}


def load_truth(path: str | Path, graph: Graph) -> Truth:
    """Read a circuit file of the user's, whose edges are taken to be right.

    Raises
    ------
    FormatError
        No circuit file, or one of a model of another shape.
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
    """Return the edges of the connections that exist in the graph, with the labels of their positions."""
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
    """Return the nodes of this graph that a name stands for."""
    if name in INPUTS:
        return (name,) if name in graph.inputs else graph.inputs
    if name == "mlps":
        return tuple(sender for sender in graph.senders if graph[sender].kind == "mlp")
    return groups.get(name, (name,))
