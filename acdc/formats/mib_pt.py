"""MIB's and EAP-IG's circuit as a `.pt` file: scores and membership of all edges as matrices.

A dict of `cfg` (n_layers, n_heads, parallel_attn_mlp, d_model), `src_nodes` and `dst_nodes` (the names of rows and
columns), `edges_scores` (float32) and `edges_in_graph` (bool), both [n_forward, n_backward], `nodes_in_graph` (bool)
[n_forward], and optionally `nodes_scores`. Rows are senders, columns ports, in MIB's order:

    input = 0, a{l}.h{h} = 1 + l(H+1) + h, m{l} = 1 + l(H+1) + H
    a{l}.h{h}<q, k, v> = l(3H+1) + {0, 1, 2}·H + h, m{l} = l(3H+1) + 3H, logits last

Edges that a model does not have (m5 to m2) are 0 and not in the graph, and passed over in reading: EAP-IG's selection
of whole nodes marks them too. The matrices always have MLPs; a model without
them is marked by `cfg["attn_only"]`, a key of TransformerLens that other readers pass over.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.files import write_atomically
from acdc.formats.mib import CFG, config_of, mib_cfg, scores_of
from acdc.formats.pickles import load, numbers, shown
from acdc.graph import Edge, Graph

KEYS = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")


def write_mib_pt(circuit: Circuit, path: str | Path) -> None:
    """Write a circuit with the scores (tested effects, 0 where untested) of all edges.

    Raises
    ------
    FormatError: the graph has token and position embeddings apart, which the format cannot say.
    """
    config = circuit.graph.config
    cfg = mib_cfg(config, path) | ({"attn_only": True} if config.attn_only else {})
    full = Graph(replace(config, attn_only=False))
    scores = torch.zeros(len(full.senders), len(full.ports))
    in_graph = torch.zeros(scores.shape, dtype=torch.bool)
    for edge, score in scores_of(circuit).items():
        scores[_place(full, edge)] = score
    nodes = torch.zeros(len(full.senders), dtype=torch.bool)
    nodes[0] = True  # the input is always there, and the logits have no row
    for edge in circuit:
        if not edge.is_projection:
            in_graph[_place(full, edge)] = True
            for node in {edge.sender, full.node_of(edge.receiver)} - {"logits"}:
                nodes[full.sender_index[node]] = True
    content = (cfg, list(full.senders), list(full.ports), scores, in_graph, nodes)
    buffer = io.BytesIO()
    torch.save(dict(zip(KEYS, content, strict=True)), buffer)
    write_atomically(path, buffer.getvalue())


def is_mib_pt(content: Any) -> bool:
    return isinstance(content, Mapping) and "cfg" in content


def from_mib_pt(content: Mapping[str, Any], source: str) -> Circuit:
    """The circuit in what a `.pt` file holds: its edges with their scores as effects.

    Raises
    ------
    FormatError: parts are missing or have another shape, or the circuit is one of single neurons.
    """
    if missing := [key for key in KEYS if key not in content]:
        raise FormatError(f"{source} is not a circuit in MIB's .pt format: it lacks {', '.join(missing)}")
    cfg = content["cfg"]
    try:
        config = config_of(cfg, attn_only=bool(cfg.get("attn_only", False)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {shown(str(error))}"
        raise FormatError(f"{source}: its cfg should hold {', '.join(CFG)} ({reason})") from error
    n_layers, n_heads = config.n_layers, config.n_heads
    shape = [1 + n_layers * (n_heads + 1), n_layers * (3 * n_heads + 1) + 1]
    scores, in_graph = (_matrix(content[key], shape, f"{source}: {key}") for key in ("edges_scores", "edges_in_graph"))
    graph, full = Graph(config), Graph(replace(config, attn_only=False))
    for key, names in (("src_nodes", full.senders), ("dst_nodes", full.ports)):
        if not isinstance(content[key], list | tuple) or tuple(content[key]) != names:
            raise FormatError(f"{source}: {key} should be {shown(names)}, but is {shown(content[key])}")
    neurons = numbers(content.get("neurons_in_graph"))
    if neurons is not None and not neurons.bool().all():
        raise FormatError(f"{source} is a circuit of single neurons, but edges here carry whole outputs of nodes")
    score_at, is_kept = scores.tolist(), in_graph.bool().tolist()
    edges, tested = {}, {}
    for edge in graph:
        row, column = _place(full, edge)
        score = score_at[row][column]
        if is_kept[row][column]:
            edges[edge] = score
        if score or edge in edges:
            tested[edge] = score
    return Circuit(graph, edges, tested)


def read_mib_pt(path: str | Path) -> Circuit:
    """Read a `.pt` file of MIB's; FormatError as in `from_mib_pt`, or if it is missing or is something else."""
    try:
        content = load(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise FormatError(f"the circuit file {path} cannot be read: {error.strerror}") from error
    if not is_mib_pt(content):
        raise FormatError(f"{path} is not a circuit in MIB's .pt format: it should be a dict of {', '.join(KEYS)}")
    return from_mib_pt(content, str(path))


def _matrix(value: Any, shape: list[int], what: str) -> Tensor:
    matrix = numbers(value)
    if matrix is None or list(matrix.shape) != shape:
        has = shown(value) if matrix is None else list(matrix.shape)
        raise FormatError(f"{what} should be a tensor of shape {shape}, but is {has}")
    return matrix


def _place(graph: Graph, edge: Edge) -> tuple[int, int]:
    """Row and column of an edge."""
    return graph.sender_index[edge.sender], graph.port_index[edge.receiver]
