"""`Circuit`: the edges of a model that carry a behaviour, how they were found, and what can be done with the set.

Imports no torch, so that circuits can be read, compared and drawn anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import networkx as nx

from acdc.errors import FormatError
from acdc.files import write_json
from acdc.graph import Edge, Graph, GraphConfig

FORMAT = "acdc-circuit"
VERSION = 1


@dataclass
class Circuit:
    """A set of kept edges with their effects.

    Attributes
    ----------
    graph: the full graph the edges were chosen from.
    edges: kept edges and their effects (loss after − loss before removing the edge: positive helps), in the order
        they were decided.
    tested: the effect of every edge that was tested, kept or not. An edge in neither was removed untested.
    model, task: names. method: name and settings. metrics, provenance: as in the circuit file.
    unsaid: parts of the graph's shape that a foreign file does not tell; `of_model` takes them from the model.
    """

    graph: Graph
    edges: dict[Edge, float]
    tested: dict[Edge, float] = field(default_factory=dict)
    model: str = ""
    task: str = ""
    method: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    unsaid: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for edge in self.edges:
            if edge not in self.graph:
                raise FormatError(f"the edge {edge} does not exist in a graph of this shape: {self.graph.config}")

    def __len__(self) -> int:
        return len(self.edges)

    def __contains__(self, edge: object) -> bool:
        """Whether an edge is kept: an `Edge` or its name, "m0->logits".

        Raises
        ------
        FormatError: a string names no edge of the graph.
        """
        if isinstance(edge, str):
            name, edge = edge, Edge.parse(edge)
            if edge not in self.graph:
                raise FormatError(f"{name!r} is not an edge of this graph: {self.graph.config}")
        return edge in self.edges

    def __iter__(self) -> Iterator[Edge]:
        return iter(self.edges)

    def of_model(self, graph: Graph, name: str = "the circuit") -> Circuit:
        """The circuit as one of the model that `graph` is of; FormatError if that has another shape.

        What the circuit's file does not say of the shape (no foreign one says how many key-value heads there are) is
        taken from the model.
        """
        mine, theirs = self.graph.config, graph.config
        unsaid = [*self.unsaid, *(["n_key_value_heads"] if mine.n_key_value_heads is None else [])]
        mine = replace(mine, **{key: getattr(theirs, key) for key in unsaid})
        if mine != theirs:
            differing = [key for key, value in mine.as_dict().items() if value != theirs.as_dict()[key]]
            if differing == ["split_embedding"]:
                value = str(mine.split_embedding).lower()
                raise FormatError(
                    f"{name} was found with graph.split_embedding={value}, this is"
                    f" {str(theirs.split_embedding).lower()}: set graph.split_embedding={value}, or leave it out"
                )
            shapes = (", ".join(f"{key} {getattr(config, key)}" for key in differing) for config in (mine, theirs))
            raise FormatError(
                f"{name} is a circuit of another model: it has {next(shapes)}, this model has {next(shapes)}; give the"
                " model that the circuit was found in"
            )
        graph = Graph(mine, self.graph.projection_edges)
        if strangers := [edge for edge in (*self.edges, *self.tested) if edge not in graph]:
            raise FormatError(f"{name} is a circuit of another model: this one has no edge {strangers[0]} ({mine})")
        return replace(self, graph=graph, unsaid=())

    # Set algebra. Effects are those of the circuit on the left where it has the edge.

    def _with(self, edges: Iterable[Edge], other: Circuit | None = None) -> Circuit:
        effects = {**(other.edges if other else {}), **self.edges}
        larger = other.graph if other is not None and other.graph.projection_edges else self.graph
        return Circuit(
            larger,
            {edge: effects[edge] for edge in edges},
            dict(self.tested),
            self.model,
            self.task,
            dict(self.method),
            unsaid=self.unsaid,
        )

    def _check_same_graph(self, other: Circuit) -> None:
        if self.graph.config != other.graph.config:
            raise FormatError(
                f"circuits of different models cannot be compared: {self.graph.config} and {other.graph.config}"
            )

    def __or__(self, other: Circuit) -> Circuit:
        self._check_same_graph(other)
        return self._with([*self.edges, *(edge for edge in other.edges if edge not in self.edges)], other)

    def __and__(self, other: Circuit) -> Circuit:
        self._check_same_graph(other)
        return self._with(edge for edge in self.edges if edge in other.edges)

    def __sub__(self, other: Circuit) -> Circuit:
        self._check_same_graph(other)
        return self._with(edge for edge in self.edges if edge not in other.edges)

    def jaccard(self, other: Circuit) -> float:
        """|A ∩ B| / |A ∪ B|; 1 for two empty circuits."""
        self._check_same_graph(other)
        union = self.edges.keys() | other.edges.keys()
        return len(self.edges.keys() & other.edges.keys()) / len(union) if union else 1.0

    def by_receiver(self) -> dict[str, list[Edge]]:
        """The edges of each receiver, receivers in the order they were decided."""
        groups: dict[str, list[Edge]] = {}
        for edge in self.edges:
            groups.setdefault(edge.receiver, []).append(edge)
        return groups

    def nodes(self) -> list[str]:
        """The nodes that an edge begins or ends at, in the order of the graph."""
        used = {self.graph.node_of(name) for edge in self.edges for name in edge}
        return [name for name in (*self.graph.senders, "logits") if name in used]

    # The graph view.

    def to_networkx(self) -> nx.DiGraph[str]:
        """The circuit as a directed graph whose paths are the ways information takes.

        Vertices are senders and ports (`a5.h1`, `a5.h1<q>`, `m5`). Circuit edges have `kind="edge"` and `effect`;
        a port leads on to its head by an edge of `kind="inside"`, through the projection edge where the graph has them.
        """
        view: nx.DiGraph[str] = nx.DiGraph(**{k: v for k, v in self.graph.config.as_dict().items() if v is not None})
        view.graph["projection_edges"] = self.graph.projection_edges
        ends = (*self.graph.inputs, "logits")
        for name in ends:
            view.add_node(name, kind=self.graph[name].kind)
        for edge, effect in self.edges.items():
            view.add_edge(edge.sender, edge.receiver, kind="edge", effect=float(effect))
        for name in list(view):
            node = self.graph[name]
            view.nodes[name].update(kind="port" if node.letter else node.kind, layer=node.layer)
            if node.kind == "head":
                view.nodes[name]["head"] = node.unit
            if node.projected or (node.letter and not self.graph.projection_edges):
                view.add_edge(name, str(node.node), kind="inside")
                view.nodes[str(node.node)].update(kind="head", layer=node.layer, head=node.unit)
        for name in ends:
            view.nodes[name].pop("layer", None)
        return view

    @classmethod
    def from_networkx(cls, view: nx.DiGraph[str]) -> Circuit:
        """The circuit behind a graph made by `to_networkx`."""
        try:
            fields = {k: view.graph[k] for k in GraphConfig.__dataclass_fields__ if k in view.graph}
            graph = Graph(GraphConfig(**fields), bool(view.graph.get("projection_edges", False)))
        except TypeError as error:
            raise FormatError(f"the graph lacks the model's shape in its attributes: {error}") from error
        kept = [
            (a, b, data.get("effect", "none")) for a, b, data in view.edges(data=True) if data.get("kind") == "edge"
        ]
        try:
            return cls(graph, {Edge(a, b): float(effect) for a, b, effect in kept})
        except (TypeError, ValueError) as error:
            raise FormatError(f"an edge of the graph has no numeric effect: {error}") from error

    def on_path(self) -> Circuit:
        """What is left without edges on no path from the input to the logits."""
        view = self.to_networkx()
        reached = set(self.graph.inputs).union(*(nx.descendants(view, name) for name in self.graph.inputs))
        leads_out = {"logits"} | nx.ancestors(view, "logits")
        return self._with(e for e in self.edges if e.sender in reached and e.receiver in leads_out)

    # Reading and writing.

    def as_dict(self) -> dict[str, Any]:
        """The contents of `circuit.json`."""
        on_path = self.on_path()
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": {"name": self.model, **self.graph.config.as_dict()},
            "task": self.task,
            "method": self.method,
            "projection_edges": self.graph.projection_edges,
            "total_edges": len(self.graph),
            "edges": [_edge_record(edge, effect) for edge, effect in self.edges.items()],
            "on_path": [_edge_record(edge, effect) for edge, effect in on_path.edges.items()],
            "tested": {str(edge): effect for edge, effect in self.tested.items()},
            "metrics": self.metrics,
            "provenance": self.provenance,
        }

    def save(self, path: str | Path) -> None:
        """Write `circuit.json`."""
        write_json(path, self.as_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "circuit") -> Circuit:
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise FormatError(f"{source} is not a circuit file: its 'format' should be {FORMAT!r}")
        if data.get("version") != VERSION:
            raise FormatError(f"{source} has version {data.get('version')!r}; this program reads version {VERSION}")
        try:
            shape = {k: v for k, v in data["model"].items() if k in GraphConfig.__dataclass_fields__}
            return cls(
                graph=Graph(GraphConfig(**shape), bool(data.get("projection_edges", False))),
                edges={Edge(e["sender"], e["receiver"]): float(e["effect"]) for e in data["edges"]},
                tested={Edge.parse(name): float(effect) for name, effect in data.get("tested", {}).items()},
                model=str(data["model"].get("name", "")),
                task=str(data.get("task", "")),
                method=dict(data.get("method", {})),
                metrics=dict(data.get("metrics", {})),
                provenance=dict(data.get("provenance", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FormatError(f"{source} is a damaged circuit file: {type(error).__name__} {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read `circuit.json`; FormatError if it is missing or is something else."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise FormatError(f"the circuit file {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise FormatError(f"{path} is not JSON: {error}") from error
        return cls.from_dict(data, str(path))

    def render(self, path: str | Path, **options: Any) -> Path:
        """Draw the circuit; the suffix says how: .svg, .png, .pdf or .dot."""
        from acdc.report.picture import render  # the one way back: a convenience for people, kept out of the imports

        return render(self, path, **options)


def _edge_record(edge: Edge, effect: float) -> dict[str, Any]:
    return {"sender": edge.sender, "receiver": edge.receiver, "effect": effect}
