"""Which edges are present, as tensors that an engine can use."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool
from torch import Tensor

from acdc.graph import Edge, Graph


class EdgeMask:
    """A set of present edges.

    Parameters
    ----------
    graph : Graph
        The edges are of.
    ports : Bool[Tensor, "port sender"]
        True where the edge is present; False where there is no such edge.
    projections : Bool[Tensor, "port"]
        True unless the port's projection edge was removed.
    """

    def __init__(self, graph: Graph, ports: Bool[Tensor, "port sender"], projections: Bool[Tensor, " port"]) -> None:
        self.graph = graph
        self.ports = ports
        self.projections = projections

    @classmethod
    def all(cls, graph: Graph) -> EdgeMask:
        """Every edge present."""
        prefix = torch.tensor([graph.n_senders_of(port) for port in graph.ports])
        ports = torch.arange(len(graph.senders))[None, :] < prefix[:, None]
        return cls(graph, ports, torch.ones(len(graph.ports), dtype=torch.bool))

    @classmethod
    def of(cls, graph: Graph, edges: Iterable[Edge]) -> EdgeMask:
        """Only these edges present."""
        mask = cls(
            graph,
            torch.zeros(len(graph.ports), len(graph.senders), dtype=torch.bool),
            torch.tensor([not (graph.projection_edges and graph[port].letter) for port in graph.ports]),
        )
        mask.set(edges, True)
        return mask

    def copy(self) -> EdgeMask:
        return EdgeMask(self.graph, self.ports.clone(), self.projections.clone())

    def set(self, edges: Iterable[Edge], present: bool) -> None:
        """Add or remove edges."""
        for edge in edges:
            if edge.is_projection:
                self.projections[self.graph.port_index[edge.sender]] = present
            else:
                self.ports[self.graph.port_index[edge.receiver], self.graph.sender_index[edge.sender]] = present

    def is_used(self, receiver: str) -> bool:
        """Whether what a receiver gets is read: its node feeds something and its projection edge is present."""
        row = self.graph[receiver]
        if row.kind == "logits":
            return True
        if row.is_port_of_head and not self.projections[self.graph.port_index[receiver]]:
            return False
        return bool(self.ports[:, self.graph.sender_index[self.graph.node_of(receiver)]].any())

    def is_part_of(self, other: EdgeMask) -> bool:
        """Whether every edge here is present there."""
        return not bool((self.ports & ~other.ports).any() or (self.projections & ~other.projections).any())

    def without(self, edge: Edge) -> EdgeMask:
        """The mask without one more edge."""
        mask = self.copy()
        mask.set([edge], False)
        return mask
