"""What holds while the edges of one receiver are tested.

Everything before the receiver has all its edges and the clean prompt, so what its senders add is known beforehand.
Behind it everything is pruned already, so what can change is known too: the receiver's own node and what that reaches
through kept edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from acdc.engine.state import CircuitState
from acdc.graph import Edge

_STRIDE = 16  # of stored partial sums


@dataclass(frozen=True)
class Receiver:
    """A receiver as it is from entering it to leaving it; nothing of it changes in between.

    Attributes
    ----------
    state: the circuit's values, which stay as they are for so long.
    name: of the receiver. port: whose input the edges change. own: the node that the port belongs to.
    order: the senders, in the order in which they are tested.
    nodes: those behind the own one that can change, in order, each with its changing ports and the changing senders of
        these.
    to_logits: the changing senders that the logits read.
    tails: Σ clean − ablated of the senders from the k-th on, for some k, where the port is needed.
    rests: the inputs of changing ports, and of the logits, without the senders that change.
    """

    state: CircuitState
    name: str
    port: str
    own: str
    order: tuple[str, ...]
    nodes: tuple[tuple[str, Mapping[str, Sequence[str]]], ...]
    to_logits: tuple[str, ...]
    tails: Mapping[int, Tensor]
    rests: Mapping[str, Tensor]

    @classmethod
    def enter(cls, state: CircuitState, name: str, senders: Sequence[str]) -> Receiver:
        """The receiver under the state's mask; `senders`: all of its, in the order in which they are tested."""
        own, port = state.graph.node_of(name), state.graph.port_of(name)
        nodes, to_logits = ((), ()) if state.graph[own].kind == "logits" else _reached(state, own)
        changing = [(changed, feeding) for _, ports in nodes for changed, feeding in ports.items()]
        if to_logits:
            changing.append((state.graph.ports[-1], to_logits))
        return cls(
            state=state,
            name=name,
            port=port,
            own=own,
            order=tuple(senders),
            nodes=nodes,
            to_logits=to_logits,
            tails=_tails(state, port, senders) if name == port else {},
            rests={changed: _rest(state, changed, feeding) for changed, feeding in changing},
        )

    @property
    def level(self) -> int:
        """Where the port is needed."""
        return self.state.port_level(self.port)

    def kept_before(self, edge: Edge) -> list[str]:
        """The senders whose edges to the receiver were tested before an edge, and kept."""
        if edge.is_projection:
            return []
        graph = self.state.graph
        present = self.state.mask.ports.numpy()[graph.port_index[self.port]]
        earlier = self.order[: self.order.index(edge.sender)]
        return [sender for sender in earlier if present[graph.sender_index[sender]]]

    def inputs(
        self, edges: Sequence[Edge], gone: Sequence[bool], wanted: Sequence[bool], kept: Sequence[str]
    ) -> Float[Tensor, "row variant pos d_model"]:
        """The port's input without each wanted edge and those before it that are gone: `row variant pos d_model`.

        Parameters
        ----------
        edges: to the receiver, behind each other in the order of the tests.
        gone: of each edge, whether it is out where a later one is tested.
        wanted: of each edge, whether there is a variant of it.
        kept: the senders of all edges before them that are kept.
        """
        state, level = self.state, self.level
        base = state.at(state.ablated_input(self.port), level)
        if edges[0].is_projection:
            return base[:, None]
        first = self.order.index(edges[0].sender)
        tail = self._tail(first + len(edges))
        slots = [count - 1 for count in accumulate(wanted)]  # of each wanted edge, its variant
        variants = tail.new_empty((tail.shape[0], slots[-1] + 1, *tail.shape[1:]))
        x = base
        for sender in kept:
            x = x + state.delta(sender, level)
        if all(gone):
            tail = x + tail
        for i in range(len(edges) - 1, -1, -1):
            here = tail if i == len(edges) - 1 else torch.add(tail, state.delta(edges[i + 1].sender, level))
            if wanted[i]:
                variants[:, slots[i]] = here
            tail = here
        if not all(gone):
            for i, edge in enumerate(edges):
                if wanted[i]:
                    variants[:, slots[i]] += x
                if not gone[i]:
                    x = x + state.delta(edge.sender, level)
        return variants

    def all_nodes(self) -> Iterator[str]:
        """The receiver's own node and those behind it that can change, in order."""
        yield self.own
        for node, _ in self.nodes:
            yield node

    def all_ports(self) -> Iterator[str]:
        """The ports of the own node, and those behind it that can change."""
        yield from self.state.graph.ports_of(self.own)
        for _, ports in self.nodes:
            yield from ports

    def _tail(self, k: int) -> Tensor:
        stored = min(-(-k // _STRIDE) * _STRIDE, len(self.order))
        tail, level = self.tails[stored], self.level
        for j in range(stored - 1, k - 1, -1):
            tail = tail + self.state.delta(self.order[j], level)
        return tail


def _reached(
    state: CircuitState, own: str
) -> tuple[tuple[tuple[str, Mapping[str, Sequence[str]]], ...], tuple[str, ...]]:
    """The nodes that a node reaches through present edges, each with its changing ports, and who reads them last."""
    graph = state.graph
    ports, projections = state.mask.ports.numpy(), state.mask.projections.numpy()
    first = graph.sender_index[own]
    changed: dict[int, str] = {first: own}
    affected = ports[:, first].copy()
    nodes: list[tuple[str, Mapping[str, Sequence[str]]]] = []
    for i in range(first + 1, len(graph.senders)):
        node = graph.senders[i]
        if node not in state.levels:
            continue
        rows = {port: graph.port_index[port] for port in graph.ports_of(node)}
        changing = {
            port: [name for j, name in changed.items() if ports[row, j]]
            for port, row in rows.items()
            if affected[row] and projections[row]
        }
        if changing:
            nodes.append((node, changing))
            changed[i] = node
            affected |= ports[:, i]
    return tuple(nodes), tuple(name for j, name in changed.items() if ports[-1, j])


def _tails(state: CircuitState, port: str, senders: Sequence[str]) -> dict[int, Tensor]:
    """Sums from the k-th sender on. Inputs are summed from the ablated end, so that a port that has lost all its edges
    gets its ablated input to the last digit: a norm would magnify what is left of a difference.
    """
    level = state.port_level(port)
    tail = torch.zeros_like(state.at(state.bases[2], level))
    tails = {len(senders): tail}
    for k in range(len(senders) - 1, -1, -1):
        tail = tail + state.delta(senders[k], level)
        if k % _STRIDE == 0:
            tails[k] = tail
    return tails


def _rest(state: CircuitState, port: str, senders: Sequence[str]) -> Tensor:
    """A port's input without the senders that change: what they add is then all of it, so that an input that loses
    everything is its ablated one to the last digit, which a norm needs.
    """
    level = state.port_level(port)
    return state.at(state.ablated_input(port), level) + state.received_now(port, level, frozenset(senders))
