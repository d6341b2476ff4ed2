"""The computational graph of a transformer: nodes, ports and edges, their names and their order.

Names are those of MIB and EAP-IG: senders `input`, `a{L}.h{H}`, `m{L}`; ports (what receives)
`a{L}.h{H}<q>`, `<k>`, `<v>`, `m{L}`, `logits`. Every sender feeds every later port, so the senders of
a port are always a prefix of `Graph.senders`. This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from acdc.errors import FormatError

LETTERS = ("q", "k", "v")

_NODE = re.compile(
    r"(?P<input>input(\.tok|\.pos)?)|(?P<logits>logits)|m(?P<mlp>\d+)"
    r"|a(?P<layer>\d+)\.h(?P<head>\d+)(<(?P<port>[qkv])>|\[(?P<projected>[qkv])\])?"
)


class Node(NamedTuple):
    """A parsed name. `kind` is input, head, mlp or logits; `port` is the letter in `<q>`, `projected` that in `[q]`."""

    kind: str
    layer: int
    head: int = 0
    port: str = ""
    projected: str = ""


def parse_node(name: str) -> Node:
    """The parts of a node's or port's name; FormatError if it is none."""
    match = _NODE.fullmatch(name)
    if match is None:
        raise FormatError(
            f"{name!r} is not the name of a node: expected input, a0.h1, a0.h1<q>, m0 or logits (MIB's names)"
        )
    if match["input"]:
        return Node("input", -1)
    if match["logits"]:
        return Node("logits", 1 << 30)
    if match["mlp"]:
        return Node("mlp", int(match["mlp"]))
    return Node("head", int(match["layer"]), int(match["head"]), match["port"] or "", match["projected"] or "")


def node_of(port: str) -> str:
    """The node a port belongs to: `a5.h1<q>` and `a5.h1[q]` → `a5.h1`; `m5` → `m5`."""
    return port.split("<")[0].split("[")[0]


class Edge(NamedTuple):
    """A directed edge, written `sender->receiver`."""

    sender: str
    receiver: str

    def __str__(self) -> str:
        return f"{self.sender}->{self.receiver}"

    @property
    def is_projection(self) -> bool:
        """Whether this is a port's own edge to its projected value (`a5.h1<q>->a5.h1[q]`)."""
        return self.receiver.endswith("]")

    @classmethod
    def parse(cls, name: str) -> Edge:
        sender, arrow, receiver = name.partition("->")
        if not arrow:
            raise FormatError(f"{name!r} is not the name of an edge: expected sender->receiver, such as m0->a1.h2<q>")
        parse_node(sender), parse_node(receiver)
        return cls(sender, receiver)


MOST_NODES = 2**17  # heads and MLPs; the largest known models have some 20,000


@dataclass(frozen=True)
class GraphConfig:
    """What rebuilds a model's graph.

    `n_key_value_heads` does not change the graph (with grouped-query attention every query head has its
    own k and v port, as in MIB); it is kept because it tells models apart.
    """

    n_layers: int
    n_heads: int
    d_model: int
    n_key_value_heads: int | None = None
    parallel_attn_mlp: bool = False
    attn_only: bool = False
    split_embedding: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class GraphSettings:
    """What is a node of its own.

    Attributes
    ----------
    split_embedding: token and position embeddings as two senders, `input.tok` and `input.pos`, instead of one; None
        does so for the compiled programs only.
    """

    split_embedding: bool | None = None


class Graph:
    """All edges of a model, with the order in which ACDC tests them.

    Parameters
    ----------
    config: the model's shape.
    projection_edges: add the original ACDC's edge between every q, k, v port and its projected value
        (`a5.h1<q>->a5.h1[q]`).

    Raises
    ------
    FormatError: more heads and MLPs than any model has; a damaged file may say so, and they would fill the memory.
    """

    def __init__(self, config: GraphConfig, projection_edges: bool = False) -> None:
        if config.n_layers * (config.n_heads + 1) > MOST_NODES:
            raise FormatError(f"{config.n_layers} layers of {config.n_heads} heads are more than any model has")
        self.config = config
        self.projection_edges = projection_edges
        heads = range(config.n_heads)
        self.inputs = ("input.tok", "input.pos") if config.split_embedding else ("input",)
        senders, ports = list(self.inputs), []
        self._prefix: dict[str, int] = {}

        def add_port(name: str, n_senders: int) -> None:
            ports.append(name)
            self._prefix[name] = n_senders

        for layer in range(config.n_layers):
            before = len(senders)
            for letter in LETTERS:
                for head in heads:
                    add_port(f"a{layer}.h{head}<{letter}>", before)
            senders += [f"a{layer}.h{head}" for head in heads]
            if not config.attn_only:
                add_port(f"m{layer}", before if config.parallel_attn_mlp else len(senders))
                senders.append(f"m{layer}")
        add_port("logits", len(senders))
        self.senders: tuple[str, ...] = tuple(senders)
        self.ports: tuple[str, ...] = tuple(ports)
        self.sender_index = {name: i for i, name in enumerate(self.senders)}
        self.port_index = {name: i for i, name in enumerate(self.ports)}

    def n_senders_of(self, port: str) -> int:
        """How many senders feed a port: always the first ones of `senders`."""
        return self._prefix[port]

    def senders_of(self, port: str) -> tuple[str, ...]:
        return self.senders[: self._prefix[port]]

    def projection_of(self, port: str) -> Edge:
        """The projection edge of a q, k or v port."""
        return Edge(port, port.replace("<", "[").replace(">", "]"))

    def __contains__(self, edge: object) -> bool:
        """Whether there is such an edge, an `Edge` or its name; FormatError for a string that names none."""
        if isinstance(edge, str):
            edge = Edge.parse(edge)
        if not isinstance(edge, Edge):
            return False
        if edge.is_projection:
            return self.projection_edges and edge.sender in self._prefix and edge == self.projection_of(edge.sender)
        index = self.sender_index.get(edge.sender)
        return index is not None and index < self._prefix.get(edge.receiver, 0)

    def __len__(self) -> int:
        n_projection = sum("<" in port for port in self.ports) if self.projection_edges else 0
        return sum(self._prefix.values()) + n_projection

    def __iter__(self) -> Iterator[Edge]:
        """Every edge, in the order ACDC tests them."""
        for receiver, senders in self.test_order:
            for sender in senders:
                yield Edge(sender, receiver)

    @cached_property
    def test_order(self) -> list[tuple[str, list[str]]]:
        """Receivers from the output backward, each with its senders in order (Conmy et al. 2023, the original's code).

        `logits`; then per layer from the last: the MLP; with projection edges `[v]`, `[k]`, `[q]` of heads H-1…0;
        then the ports `<v>`, `<k>`, `<q>` of heads H-1…0. Senders: nearest layer first, an MLP before the heads of
        its layer, heads H-1…0, the input last.
        """
        nearest_first = [
            name
            for _, name in sorted(
                enumerate(self.senders),
                key=lambda item: (-parse_node(item[1]).layer, parse_node(item[1]).kind != "mlp", -item[0]),
            )
        ]
        order: list[tuple[str, list[str]]] = []

        def add(port: str) -> None:
            allowed = self._prefix[port]
            order.append((port, [s for s in nearest_first if self.sender_index[s] < allowed]))

        add("logits")
        heads = range(self.config.n_heads - 1, -1, -1)
        for layer in range(self.config.n_layers - 1, -1, -1):
            if not self.config.attn_only:
                add(f"m{layer}")
            ports = [f"a{layer}.h{head}<{letter}>" for letter in reversed(LETTERS) for head in heads]
            if self.projection_edges:
                order += [(self.projection_of(port).receiver, [port]) for port in ports]
            for port in ports:
                add(port)
        return order
