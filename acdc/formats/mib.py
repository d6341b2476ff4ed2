"""The circuit file of MIB and EAP-IG: every edge of the model's graph with a score, and whether it is in the circuit.

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {name: {"in_graph"}}, "edges": {name: {"score", "in_graph"}}}

The format has one input node and no projection edges: graphs with a split embedding are refused, projection edges left
out. It does not say which edges were tested, so an edge with score 0 that is not in the circuit reads as untested.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.files import write_atomically
from acdc.graph import Edge, Graph, GraphConfig

CFG = ("n_layers", "n_heads", "parallel_attn_mlp", "d_model")


def write_mib_json(circuit: Circuit, path: str | Path) -> None:
    """Write a circuit with the scores (tested effects, 0 where untested) of all edges.

    Raises
    ------
    FormatError: the graph has token and position embeddings apart, which the format cannot say.
    """
    cfg, scores = mib_cfg(circuit.graph.config, path), scores_of(circuit)
    used = {circuit.graph.node_of(name) for edge in circuit if not edge.is_projection for name in edge} | {
        "input",
        "logits",
    }
    content = {
        "cfg": cfg,
        "nodes": {name: {"in_graph": name in used} for name in (*circuit.graph.senders, "logits")},
        "edges": {
            str(edge): {"score": scores.get(edge, 0.0), "in_graph": edge in circuit}
            for edge in circuit.graph
            if not edge.is_projection
        },
    }
    write_atomically(path, json.dumps(content))


def mib_cfg(config: GraphConfig, path: str | Path) -> dict[str, Any]:
    """The `cfg` of MIB's files; FormatError if the embedding is split."""
    if config.split_embedding:
        raise FormatError(
            f"{path}: MIB's format knows one input node, but this graph has input.tok and input.pos;"
            " save it as circuit.json or GraphML"
        )
    return {key: getattr(config, key) for key in CFG}


def config_of(cfg: Mapping[str, Any], attn_only: bool) -> GraphConfig:
    """The shape in the `cfg` of a file of MIB's; KeyError, TypeError or ValueError if it is none."""
    for key in CFG:
        if key != "parallel_attn_mlp" and (type(cfg[key]) is not int or cfg[key] < 1):
            raise ValueError(f"{key} is {cfg[key]!r}")
    return GraphConfig(**{key: cfg[key] for key in CFG}, attn_only=attn_only)


def scores_of(circuit: Circuit) -> dict[Edge, float]:
    """The scores that MIB's files give: what was tested, and what is kept; no projection edges."""
    return {edge: float(s) for edge, s in {**circuit.edges, **circuit.tested}.items() if not edge.is_projection}


def read_mib_json(path: str | Path) -> Circuit:
    """Read a MIB or EAP-IG circuit: its edges with their scores as effects.

    Raises
    ------
    FormatError: the file is missing, is something else, or names an edge that a model of its shape does not have.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"the circuit file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {error}") from error
    try:
        # The format has no word for a model without MLPs; such a file simply names none.
        graph = Graph(config_of(data["cfg"], attn_only="m0" not in data["nodes"]))
        by_name = {str(edge): edge for edge in graph}
        records = {by_name[name]: record for name, record in data["edges"].items() if name in by_name}
        unknown = [name for name in data["edges"] if name not in by_name]
        scores = {edge: float(record["score"]) for edge, record in records.items()}
        kept = {edge: score for edge, score in scores.items() if records[edge]["in_graph"]}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FormatError(
            f"{path} is not a circuit in MIB's format: it should have cfg, nodes and edges, each edge with score and"
            f" in_graph ({type(error).__name__}: {error})"
        ) from error
    if unknown:
        raise FormatError(f"{path}: the edge {unknown[0]} does not exist in a graph of this shape: {graph.config}")
    return Circuit(graph, kept, {edge: score for edge, score in scores.items() if score or edge in kept})
