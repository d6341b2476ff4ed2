"""What the original ACDC (ArthurConmy/Automatic-Circuit-Discovery) saves: `edges.pkl`, `edges.pth` and subgraphs.

`save_edges` pickles the present edges as a list of `((receiver, index, sender, index), effect)`; `save_subgraph` saves
an ordered dict of every edge, `(receiver, index, sender, index)` to whether it is present. Names are those of
TransformerLens' hooks, an index (its class TorchIndex, or a tuple) tells the head: (None, None, 3) is `[:, :, 3]`.

    blocks.5.hook_q_input[:, :, 1]   a5.h1<q>       blocks.5.attn.hook_result[:, :, 1]   a5.h1
    blocks.5.attn.hook_q[:, :, 1]    a5.h1[q]       blocks.5.hook_mlp_out                m5
    blocks.5.hook_mlp_in             m5             blocks.0.hook_resid_pre              input
    blocks.11.hook_resid_post        logits         hook_embed, hook_pos_embed           input.tok, input.pos

Neither says the model's shape, so a circuit read here takes what is unsaid from the model (`Circuit.of_model`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.formats.pickles import TorchIndex, numbers, shown
from acdc.graph import Edge, Graph, GraphConfig, Node, node_of, parse_node

HEADS = re.compile(r"blocks\.(\d{1,3})\.(?:hook_([qkv])_input|attn\.hook_(result|q|k|v))")
WHOLE = re.compile(r"blocks\.(\d{1,3})\.(hook_mlp_in|hook_resid_mid|hook_mlp_out|hook_resid_post)")
INPUTS = {"blocks.0.hook_resid_pre": "input", "hook_embed": "input.tok", "hook_pos_embed": "input.pos"}


def is_original(content: Any) -> bool:
    """Whether something begins as the original's files do."""
    if not isinstance(content, Mapping | list) or not content:
        return False
    first = next(iter(content))
    key = first[0] if isinstance(content, list) and isinstance(first, tuple) and len(first) == 2 else first
    return isinstance(key, tuple) and len(key) == 4


def from_original(content: Mapping[Any, Any] | list[Any], source: str) -> Circuit:
    """The circuit in a list of edges with effects, or in a dict of all edges.

    Kept edges without an effect have 0; `tested` holds the effects that are there. Placeholder edges, which stand
    inside the original's nodes, are passed over.

    Raises
    ------
    FormatError: something in it is no edge of the original's, or no effect.
    """
    edges: dict[Edge, float | None] = {}
    unembedded: set[int] = set()  # the layer after which the logits are read
    for key, value in _records(content, source):
        if not isinstance(key, tuple) or len(key) != 4:
            raise FormatError(f"{source}: {shown(key)} should be (receiver, its index, sender, its index)")
        receiver, sender = _name(key[0], key[1], source), _name(key[2], key[3], source)
        if not _is_placeholder(receiver, sender):
            edges[Edge(sender, receiver)] = value
        if receiver == "logits":
            unembedded.add(int(key[0].split(".")[1]))
    if len(unembedded) > 1:
        raise FormatError(f"{source} reads the logits after several layers: {sorted(unembedded)}")
    config, unsaid = _shape(edges, next(iter(unembedded), None))
    graph = Graph(config, projection_edges=True)
    for edge in edges:
        if edge not in graph:
            raise FormatError(f"{source}: the edge {edge} does not exist in any model")
    tested = {edge: effect for edge, effect in edges.items() if effect is not None}
    return Circuit(graph, {edge: effect or 0.0 for edge, effect in edges.items()}, tested, unsaid=unsaid)


def _records(content: Mapping[Any, Any] | list[Any], source: str) -> Iterator[tuple[Any, float | None]]:
    """The present edges, each with its effect where there is one."""
    if isinstance(content, Mapping):
        for key, present in content.items():
            if not isinstance(present, bool):
                raise FormatError(
                    f"{source}: whether {shown(key)} is present should be True or False: {shown(present)}"
                )
            if present:
                yield key, None
        return
    for record in content:
        if not isinstance(record, tuple) or len(record) != 2:
            raise FormatError(f"{source}: {shown(record)} should be (edge, effect)")
        key, effect = record
        tensor = numbers(effect)
        if tensor is not None and tensor.numel() == 1:
            effect = tensor.item()
        if effect is not None and (isinstance(effect, bool) or not isinstance(effect, int | float)):
            raise FormatError(f"{source}: the effect of {shown(key)} is no number: {shown(effect)}")
        yield key, None if effect is None else float(effect)


def _name(hook: Any, index: Any, source: str) -> str:
    """Our name of a hook at an index."""
    at = vars(index).get("hashable_tuple") if isinstance(index, TorchIndex) else index
    at = tuple(at) if isinstance(at, tuple | list) else at
    if isinstance(hook, str):
        if (match := HEADS.fullmatch(hook)) and isinstance(at, tuple) and at[:2] == (None, None) and len(at) == 3:
            head = Node("head", int(match[1]), _head(at[2], source))
            letter = match[2] or match[3].replace("result", "")
            return str(head._replace(letter=letter, projected=bool(letter) and not match[2]))
        if at == (None,):
            if match := WHOLE.fullmatch(hook):
                return "logits" if match[2] == "hook_resid_post" else str(Node("mlp", int(match[1])))
            if hook in INPUTS:
                return INPUTS[hook]
    raise FormatError(f"{source}: {shown(hook)} at {shown(at)} is no node of the original's graph without positions")


def _head(index: Any, source: str) -> int:
    if type(index) is not int or not 0 <= index < 1000:
        raise FormatError(f"{source}: {shown(index)} is no number of a head")
    return index


def _is_placeholder(receiver: str, sender: str) -> bool:
    """q, k or v to the head's result, and an MLP's input to its output."""
    return receiver == sender or (bool(parse_node(sender).projected) and receiver == node_of(sender))


def _shape(edges: Mapping[Edge, Any], last: int | None) -> tuple[GraphConfig, tuple[str, ...]]:
    """The smallest model that has the edges, and what of its shape the edges do not say."""
    nodes: list[Node] = [parse_node(name) for edge in edges for name in edge]
    layers = [node.layer for node in nodes if node.kind in ("head", "mlp")] + ([] if last is None else [last])
    inputs = {str(node) for node in nodes if node.kind == "input"}
    unsaid = ["d_model", "n_heads", "attn_only"]
    unsaid += ["n_layers"] * (last is None) + ["split_embedding"] * (not inputs)
    config = GraphConfig(
        n_layers=max(layers, default=0) + 1,
        n_heads=max((node.unit for node in nodes if node.kind == "head"), default=0) + 1,
        d_model=0,
        attn_only=not any(node.kind == "mlp" for node in nodes),
        split_embedding=bool(inputs - {"input"}),
    )
    return config, tuple(unsaid)
