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
from typing import Any, ClassVar, NamedTuple

from acdc.errors import FormatError
from acdc.settings import Settings, option

LETTERS = ("q", "k", "v")

_NODE = re.compile(
    r"(?P<input>input(\.tok|\.pos)?)|(?P<logits>logits)|m(?P<mlp>\d+)"
    r"|a(?P<layer>\d+)\.h(?P<head>\d+)(<(?P<port>[qkv])>|\[(?P<projected>[qkv])\])?"
)


class Node(NamedTuple):
    """What a name stands for: a row of the graph's table.

    Attributes
    ----------
    kind: `input`, `head`, `mlp` or `logits`.
    layer: −1 of the inputs, beyond all layers of the logits.
    unit: a head's number in its layer; which of the inputs.
    place: the positions it stands at; empty for all of them.
    letter: `q`, `k` or `v` of a head's port, and of what it is projected to; empty for the node itself.
    projected: whether the name is that of the projected q, k or v (`a5.h1[q]`).
    """

    kind: str
    layer: int
    unit: int = 0
    place: str = ""
    letter: str = ""
    projected: bool = False

    @property
    def is_port_of_head(self) -> bool:
        """Whether it is `<q>`, `<k>` or `<v>`."""
        return bool(self.letter) and not self.projected

    @property
    def node(self) -> Node:
        """The node itself, of a port or projected value."""
        return self._replace(letter="", projected=False)

    def __str__(self) -> str:
        if self.kind == "head":
            around = "[]" if self.projected else "<>"
            return f"a{self.layer}.h{self.unit}" + (around[0] + self.letter + around[1] if self.letter else "")
        return f"m{self.layer}" if self.kind == "mlp" else self.kind if self.kind == "logits" else INPUTS[self.unit]


INPUTS = ("input", "input.tok", "input.pos")
AFTER_ALL = 1 << 30  # the layer of the logits


def parse_node(name: str) -> Node:
    """What a name stands for in any graph; FormatError if it is no name. For names that come from outside."""
    match = _NODE.fullmatch(name)
    if match is None:
        raise FormatError(
            f"{name!r} is not the name of a node: expected input, a0.h1, a0.h1<q>, m0 or logits (MIB's names)"
        )
    if match["input"]:
        return Node("input", -1, INPUTS.index(name))
    if match["logits"]:
        return Node("logits", AFTER_ALL)
    if match["mlp"]:
        return Node("mlp", int(match["mlp"]))
    letter = match["port"] or match["projected"] or ""
    return Node("head", int(match["layer"]), int(match["head"]), letter=letter, projected=bool(match["projected"]))


def node_of(name: str) -> str:
    """The node that a port of any graph belongs to: `a5.h1<q>` and `a5.h1[q]` → `a5.h1`; `m5` → `m5`."""
    return str(parse_node(name).node)


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
class GraphSettings(Settings):
    """What is a node of its own."""

    GROUP: ClassVar[str] = "graph"

    split_embedding: bool | None = option(
        None, "token and position embeddings as two senders, input.tok and input.pos; null: tracr models only"
    )


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
        self.inputs = INPUTS[1:] if config.split_embedding else INPUTS[:1]
        self._table: dict[str, Node] = {}
        self._prefix: dict[str, int] = {}
        senders, ports = [self._row(parse_node(name)) for name in self.inputs], []

        def add_port(node: Node, n_senders: int) -> None:
            ports.append(self._row(node))
            self._prefix[ports[-1]] = n_senders

        for layer in range(config.n_layers):
            before = len(senders)
            heads = [Node("head", layer, head) for head in range(config.n_heads)]
            for letter in LETTERS:
                for head in heads:
                    add_port(head._replace(letter=letter), before)
                    self._row(head._replace(letter=letter, projected=True))
            senders += [self._row(head) for head in heads]
            if not config.attn_only:
                mlp = Node("mlp", layer)
                add_port(mlp, before if config.parallel_attn_mlp else len(senders))
                senders.append(self._row(mlp))
        add_port(Node("logits", AFTER_ALL), len(senders))
        self.senders: tuple[str, ...] = tuple(senders)
        self.ports: tuple[str, ...] = tuple(ports)
        self.sender_index = {name: i for i, name in enumerate(self.senders)}
        self.port_index = {name: i for i, name in enumerate(self.ports)}

    def _row(self, node: Node) -> str:
        """Put a node into the table; its name."""
        name = str(node)
        self._table[name] = node
        return name

    # The table.

    def __getitem__(self, name: str) -> Node:
        """The row of a sender, a port or a projected value.

        Raises
        ------
        FormatError: the model has nothing of that name.
        """
        try:
            return self._table[name]
        except KeyError:
            raise FormatError(f"{name!r} does not exist in a graph of this shape: {self.config}") from None

    def has(self, name: str) -> bool:
        """Whether the model has a sender, a port or a projected value of that name."""
        return name in self._table

    def node_of(self, name: str) -> str:
        """The node that a port belongs to: `a5.h1<q>` and `a5.h1[q]` → `a5.h1`; `m5` → `m5`."""
        return str(self[name].node)

    def ports_of(self, node: str) -> tuple[str, ...]:
        """The ports of a node: q, k and v of a head, an MLP or the logits itself; an input has none."""
        row = self[node]
        if row.kind == "head":
            return tuple(str(row._replace(letter=letter)) for letter in LETTERS)
        return () if row.kind == "input" else (node,)

    def heads(self, layer: int) -> tuple[str, ...]:
        """The heads of a layer, which stand behind each other in `senders`."""
        return tuple(str(Node("head", layer, unit)) for unit in range(self.config.n_heads))

    def mlp(self, layer: int) -> str | None:
        """The MLP of a layer, if there is one."""
        return None if self.config.attn_only else str(Node("mlp", layer))

    def head_senders(self, layer: int) -> slice:
        """Where a layer's heads stand in `senders`."""
        first = self.sender_index[str(Node("head", layer, 0))]
        return slice(first, first + self.config.n_heads)

    def mlp_sender(self, layer: int) -> int | None:
        """Where a layer's MLP stands in `senders`, if there is one."""
        mlp = self.mlp(layer)
        return None if mlp is None else self.sender_index[mlp]

    def head_ports(self, layer: int, letter: str) -> slice:
        """Where the q, k or v ports of a layer's heads stand in `ports`."""
        first = self.port_index[str(Node("head", layer, 0, letter=letter))]
        return slice(first, first + self.config.n_heads)

    def mlp_port(self, layer: int) -> int | None:
        """Where a layer's MLP stands in `ports`, if there is one."""
        mlp = self.mlp(layer)
        return None if mlp is None else self.port_index[mlp]

    def layer_ports(self, layer: int) -> slice:
        """Where all ports of a layer stand in `ports`."""
        mlp = self.mlp_port(layer)
        return slice(self.head_ports(layer, "q").start, self.head_ports(layer, "v").stop if mlp is None else mlp + 1)

    def n_senders_of(self, port: str) -> int:
        """How many senders feed a port: always the first ones of `senders`."""
        return self._prefix[port]

    def senders_of(self, port: str) -> tuple[str, ...]:
        return self.senders[: self._prefix[port]]

    def projection_of(self, port: str) -> Edge:
        """The projection edge of a q, k or v port."""
        return Edge(port, str(self[port]._replace(projected=True)))

    def port_of(self, receiver: str) -> str:
        """The port whose edges lead to a receiver: `a5.h1[q]` → `a5.h1<q>`, of all others they themselves."""
        return str(self[receiver]._replace(projected=False))

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
        n_projection = sum(bool(self[port].letter) for port in self.ports) if self.projection_edges else 0
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
        nearest_first = sorted(
            reversed(self.senders), key=lambda name: (-self[name].layer, self[name].kind == "head")
        )  # which leaves heads and inputs in falling order
        order: list[tuple[str, list[str]]] = []

        def add(port: str) -> None:
            allowed = self._prefix[port]
            order.append((port, [s for s in nearest_first if self.sender_index[s] < allowed]))

        add(self.ports[-1])
        for layer in range(self.config.n_layers - 1, -1, -1):
            if (mlp := self.mlp(layer)) is not None:
                add(mlp)
            ports = [
                port for letter in reversed(LETTERS) for port in reversed(self.ports[self.head_ports(layer, letter)])
            ]
            if self.projection_edges:
                order += [(self.projection_of(port).receiver, [port]) for port in ports]
            for port in ports:
                add(port)
        return order
