"""Files of other programs, made after what those programs' code says of them, without that code."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from acdc.graph import Edge, parse_node

Scores = Mapping[str, torch.Tensor]


@contextmanager
def original_classes(module: str = "acdc.TLACDCEdge") -> Iterator[type]:
    """The original's `TorchIndex` under its module's name, which exists only inside."""

    class TorchIndex:
        def __init__(self, parts: list[int | None]) -> None:
            self.as_index = tuple(slice(None) if part is None else part for part in parts)
            self.hashable_tuple = tuple(parts)

    TorchIndex.__module__, TorchIndex.__qualname__ = module, "TorchIndex"
    fake = ModuleType(module)
    fake.TorchIndex = TorchIndex  # type: ignore[attr-defined]
    assert module not in sys.modules
    sys.modules[module] = fake
    try:
        yield TorchIndex
    finally:
        del sys.modules[module]


def hook_of(name: str, n_layers: int, receives: bool) -> tuple[str, list[int | None]]:
    """How the original names a node or port: a hook of TransformerLens and an index."""
    node = parse_node(name)
    if node.kind == "head":
        at = [None, None, node.unit]
        if node.is_port_of_head:
            return f"blocks.{node.layer}.hook_{node.letter}_input", at
        return f"blocks.{node.layer}.attn.hook_{node.letter or 'result'}", at
    if node.kind == "mlp":
        return f"blocks.{node.layer}.hook_mlp_{'in' if receives else 'out'}", [None]
    whole = {"input": "blocks.0.hook_resid_pre", "input.tok": "hook_embed", "input.pos": "hook_pos_embed"}
    return whole.get(name, f"blocks.{n_layers - 1}.hook_resid_post"), [None]


def edges_pkl(effects: Mapping[Edge, Any], n_layers: int, module: str = "acdc.TLACDCEdge") -> bytes:
    """What `save_edges` of the original writes."""
    with original_classes(module) as index:
        records = []
        for edge, effect in effects.items():
            (receiver, to), (sender, at) = hook_of(edge.receiver, n_layers, True), hook_of(edge.sender, n_layers, False)
            records.append(((receiver, index(to), sender, index(at)), effect))
        return pickle.dumps(records)


def prune_scores(
    shape: tuple[int, int], scores: Mapping[str, float], *, mlps: bool = True, parallel: bool = False
) -> Scores:
    """AutoCircuit's scores of edges by MIB's names, 0 for the others.

    As its source tells: senders get numbers in order and a depth each, an edge exists from a lesser depth to a greater
    one, its place in the receiver's tensor is [head of the receiver, number of the sender].
    """
    n_layers, n_heads = shape
    senders, depths, depth, result = ["input"], [0], 0, {}

    def tensor(names: list[str]) -> torch.Tensor:
        sees = [sender for sender, at in zip(senders, depths, strict=True) if at < depth]
        return torch.tensor([[scores.get(f"{sender}->{name}", 0.0) for sender in sees] for name in names])

    for layer in range(n_layers):
        depth += 1
        heads = [f"a{layer}.h{head}" for head in range(n_heads)]
        for letter in "qkv":
            result[f"blocks.{layer}.hook_{letter}_input"] = tensor([f"{head}<{letter}>" for head in heads])
        senders += heads
        depths += [depth] * n_heads
        if mlps:
            depth += not parallel
            result[f"blocks.{layer}.hook_mlp_in"] = tensor([f"m{layer}"])[0]
            senders.append(f"m{layer}")
            depths.append(depth)
    depth += 1
    result[f"blocks.{n_layers - 1}.hook_resid_post"] = tensor(["logits"])[0]
    return result
