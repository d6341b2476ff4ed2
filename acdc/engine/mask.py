"""Which edges are present, as tensors that an engine can use."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from acdc.graph import LETTERS, Edge, Graph, node_of


class EdgeMask:
    """A set of present edges.

    `ports`: `port sender`, True where the edge is present (False where there is none). `projections`: `port`, True
    unless the port's projection edge was removed.
    """

    def __init__(self, graph: Graph, ports: Tensor, projections: Tensor) -> None:
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
            torch.tensor([not (graph.projection_edges and "<" in port) for port in graph.ports]),
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
        if receiver == "logits":
            return True
        if "<" in receiver and not self.projections[self.graph.port_index[receiver]]:
            return False
        return bool(self.ports[:, self.graph.sender_index[node_of(receiver)]].any())

    def without(self, edge: Edge) -> EdgeMask:
        """The mask without one more edge."""
        mask = self.copy()
        mask.set([edge], False)
        return mask


def port_rows(graph: Graph, layer: int) -> tuple[dict[str, slice], int | None]:
    """Rows of a layer's ports in a mask: the slices of its q, k and v ports over heads, and that of its MLP."""
    n_heads = graph.config.n_heads
    start = graph.port_index[f"a{layer}.h0<q>"]
    rows = {letter: slice(start + i * n_heads, start + (i + 1) * n_heads) for i, letter in enumerate(LETTERS)}
    return rows, graph.port_index.get(f"m{layer}")
