"""DOT: a circuit as Graphviz draws it.

Layers go from bottom to top, the input below, the logits above. A head is a box with its q, k and v ports at the
bottom, so an edge shows which of them it feeds. An edge has its sender's colour, the same in every picture. Its
width is its |effect| relative to the largest one, and it is dashed where the effect is negative. Projection edges lie
inside a head and are not drawn.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import graphviz

from acdc.circuit import Circuit
from acdc.files import write_atomically
from acdc.graph import LETTERS, Edge, Graph, Node

FONT = "Helvetica,Arial,sans-serif"
WIDTHS = (0.6, 5.0)  # in points, of an effect of zero and of the largest one
PORT_COLOURS = {"q": "#b9d5ff", "k": "#ffd5a0", "v": "#b5e4b1"}
FRAME, FAINT, INK, PLAIN = "#5b6470", "#b9bfc7", "#1c2126", "#f4f5f7"
HUES = (0.58, 0.07, 0.36, 0.88, 0.49, 0.98, 0.74, 0.13, 0.65, 0.28, 0.81, 0.03)  # neighbours are easily told apart


@dataclass(frozen=True)
class Marks:
    """Colours of edges that say something other than who sends.

    Attributes
    ----------
    colours : mapping of Edge to str
        Other edges are faint.
    key : mapping of str to str
        What each colour means.
    width : str
        What the widths say.
    """

    colours: Mapping[Edge, str]
    key: Mapping[str, str]
    width: str


def dot_source(
    circuit: Circuit,
    *,
    title: str | None = None,
    on_path: bool = True,
    max_edges: int | None = None,
    legend: bool = True,
    marks: Marks | None = None,
) -> str:
    """Return the DOT text of a circuit.

    Parameters
    ----------
    circuit : Circuit
    title : str, optional
        A line above the picture. None describes the circuit (task, model, method, edges); "" leaves it out.
    on_path : bool
        Draw only what lies on a path from the input to the logits, not every kept edge.
    max_edges : int, optional
        Draw at most this many edges, the strongest by |effect|; the picture says so. With `on_path` each lies on
        a drawn path from the input to the logits, and at least one whole path is drawn.
    legend : bool
        Explain ports, widths and dashes below the title.
    marks : Marks, optional
        Colour edges by something other than their senders.
    """
    graph = circuit.graph
    edges, notes = drawn_edges(circuit, on_path=on_path, max_edges=max_edges)
    strongest = max((abs(effect) for effect in edges.values() if math.isfinite(effect)), default=0.0)
    lines = [describe(circuit) if title is None else title, *notes]
    dashes = any(effect < 0 for effect in edges.values())
    scale = min(max(1.0, math.sqrt(len(edges) / 80)), 2.0)  # many edges make a wide picture, seen from further away
    word = "score" if "score" in circuit.method else "effect"
    dot = _digraph(scale, _label(lines, _legend(strongest, dashes, word, marks) if legend and edges else ""))

    used = {graph.node_of(name) for edge in edges for name in edge} or {*graph.inputs, graph.ports[-1]}
    nodes = [name for name in (*graph.senders, graph.ports[-1]) if name in used]
    colours = {name: (FRAME, PLAIN) if marks else _colour(graph[name]) for name in nodes}
    rows = _rows(graph, nodes)
    _add_nodes(dot, graph, rows, {edge.receiver for edge in edges}, colours)
    height = {name: i for i, row in enumerate(rows) for name in row}
    for edge, effect in sorted(edges.items(), key=lambda item: abs(item[1])):  # the strongest on top
        dot.edge(
            f"{edge.sender}:n",
            _anchor(graph, edge.receiver),
            color=marks.colours.get(edge, FAINT) if marks else colours[edge.sender][0],
            minlen=str(
                height[graph.node_of(edge.receiver)] - height[edge.sender]
            ),  # puts every node into its layer's row
            **_style(edge, effect, strongest, scale),
        )
    return str(dot.source)


def write_dot(circuit: Circuit, path: str | Path, **options: Any) -> None:
    """Write the DOT file; the options are those of `dot_source`."""
    write_atomically(path, dot_source(circuit, **options))


def drawn_edges(
    circuit: Circuit, *, on_path: bool = True, max_edges: int | None = None
) -> tuple[dict[Edge, float], list[str]]:
    """Return the edges that a picture shows, and what must be said about those it leaves out."""
    shown = circuit.on_path() if on_path else circuit
    edges = {edge: effect for edge, effect in shown.edges.items() if not edge.is_projection}
    notes = []
    n_kept = sum(not edge.is_projection for edge in circuit)
    if len(edges) < n_kept:
        notes.append(f"not drawn: {n_kept - len(edges):,} of {n_kept:,} kept edges, on no path from input to logits")
    if max_edges is not None and len(edges) > max_edges:
        ranked = sorted(edges, key=lambda edge: -abs(edges[edge]))
        strongest = _with_ways(circuit.graph, ranked, max_edges) if on_path else set(ranked[:max_edges])
        which = "those on the strongest paths from input to logits" if on_path else "the strongest"
        notes.append(f"drawn: {len(strongest):,} of {len(edges):,} edges, {which}")
        edges = {edge: effect for edge, effect in edges.items() if edge in strongest}
    return edges, notes


def _with_ways(graph: Graph, ranked: Sequence[Edge], max_edges: int) -> set[Edge]:
    """Choose edges from the strongest on, each with a way from the input to it and on to the logits.

    A way takes every node's strongest edge until it meets a node that is drawn already. A way that is too long for what
    is left of `max_edges` is passed over, but never the first.
    """
    node_of = graph.node_of
    into: dict[str, Edge] = {}
    out: dict[str, Edge] = {}
    for edge in ranked:
        into.setdefault(node_of(edge.receiver), edge)
        out.setdefault(edge.sender, edge)
    chosen: set[Edge] = set()
    drawn = {*graph.inputs, graph.ports[-1]}
    for edge in ranked:
        way, first, last = {edge}, edge, edge
        while first.sender not in drawn:
            way.add(first := into[first.sender])
        while node_of(last.receiver) not in drawn:
            way.add(last := out[node_of(last.receiver)])
        if not chosen or len(chosen | way) <= max_edges:
            chosen |= way
            drawn |= {edge.sender for edge in way} | {node_of(edge.receiver) for edge in way}
    return chosen


def describe(circuit: Circuit) -> str:
    """Describe a circuit in a line: task, model, method and threshold, number of edges."""
    method, threshold = str(circuit.method.get("name", "")), circuit.method.get("threshold")
    if isinstance(threshold, int | float):
        method = f"{method} τ = {threshold:g}".strip()
    counts = f"{len(circuit):,} of {len(circuit.graph):,} edges"
    return " · ".join(
        part for part in (circuit.provenance.get("title") or circuit.task, circuit.model, method, counts) if part
    )


def _digraph(scale: float, label: str) -> graphviz.Digraph:
    dot = graphviz.Digraph("circuit")
    dot.attr("graph", rankdir="BT", nodesep="0.12", ranksep=f"{0.42 * scale:.2f}", pad="0.15")
    dot.attr("graph", fontname=FONT, fontsize=f"{11 * scale:.1f}", fontcolor=INK, labelloc="t", label=label)
    dot.attr("graph", bgcolor="white", outputorder="edgesfirst")
    dot.attr("node", fontname=FONT, fontsize=f"{12 * scale:.1f}", fontcolor=INK)
    dot.attr("node", margin="0.1,0.03", height="0.3", width="0.4", penwidth="1.2")
    dot.attr("edge", arrowsize=f"{0.5 * scale:.2f}")
    return dot


def _colour(node: Node) -> tuple[str, str]:
    """Return a dark colour for a node's frame and outgoing edges, and a light one of the same hue to fill it.

    It depends on the node alone, so a node looks the same in every picture. The heads of a layer differ, up to two
    dozen of them. MLPs are paler, and inputs darker, than any head.
    """
    layer = 5 * node.layer  # 5 and 12, the number of hues, have no common divisor: twelve layers differ
    if node.kind == "head":
        place, shade, strength = layer + node.unit, 0.42 - 0.1 * (node.unit // len(HUES) % 2), 0.62
    elif node.kind == "mlp":
        place, shade, strength = layer + 8, 0.48, 0.35
    else:
        place, shade, strength = int(node.unit == 2), 0.22, 0.62  # input.pos
    lines, fill = (colorsys.hls_to_rgb(HUES[place % len(HUES)], light, strength) for light in (shade, 0.93))
    return _hex(lines), _hex(fill)


def _hex(rgb: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _rows(graph: Graph, nodes: Sequence[str]) -> list[list[str]]:
    """Put nodes side by side with their like, from the bottom: the input, a layer's heads, its MLP, …, the logits."""
    rows: dict[tuple[int, str], list[str]] = {}
    for name in nodes:
        rows.setdefault((graph[name].layer, graph[name].kind), []).append(name)
    return list(rows.values())


def _add_nodes(
    dot: graphviz.Digraph,
    graph: Graph,
    rows: Sequence[Sequence[str]],
    receivers: Collection[str],
    colours: Mapping[str, tuple[str, str]],
) -> None:
    for row in rows:
        kind = graph[row[0]].kind
        with dot.subgraph() as rank:
            rank.attr(rank={"input": "source", "logits": "sink"}.get(kind, "same"))
            for name in row:
                line, fill = colours[name]
                if kind == "head":
                    label = _head(graph, name, receivers, line, fill)
                    rank.node(name, shape="plain", tooltip=name, label=label)
                else:
                    style = {"shape": "box", "style": "filled,rounded", "color": line, "fillcolor": fill}
                    rank.node(name, label=name, tooltip=name, **style)


def _head(graph: Graph, name: str, receivers: Collection[str], line: str, fill: str) -> str:
    """Return a head's label: its name above its three ports; ports that no edge feeds are faint."""
    cells = "".join(
        f'<TD PORT="{letter}" BGCOLOR="{PORT_COLOURS[letter]}">{letter}</TD>'
        if port in receivers
        else f'<TD PORT="{letter}"><FONT COLOR="{FAINT}">{letter}</FONT></TD>'
        for letter, port in zip(LETTERS, graph.ports_of(name), strict=True)
    )
    return (
        f'<<TABLE BORDER="1" STYLE="rounded" COLOR="{line}" BGCOLOR="{fill}" CELLBORDER="0" CELLSPACING="1"'
        f' CELLPADDING="2"><TR><TD COLSPAN="3">{escape(name)}</TD></TR><TR>{cells}</TR></TABLE>>'
    )


def _anchor(graph: Graph, receiver: str) -> str:
    """Return where an edge ends: at the bottom of the receiving node, or of its q, k or v port."""
    letter = graph[receiver].letter
    return f"{graph.node_of(receiver)}:{letter}:s" if letter else f"{receiver}:s"


def _style(edge: Edge, effect: float, strongest: float, scale: float) -> dict[str, str]:
    share = min(abs(effect) / strongest, 1.0) if strongest and math.isfinite(effect) else 0.0
    width = scale * (WIDTHS[0] + share * (WIDTHS[1] - WIDTHS[0]))
    style = {"penwidth": f"{width:.2f}", "tooltip": f"{edge}  effect {effect:.4g}", "effect": repr(float(effect))}
    return style | ({"style": "dashed"} if effect < 0 else {})


def _legend(strongest: float, dashes: bool, word: str, marks: Marks | None) -> str:
    words = zip(LETTERS, ("query", "key", "value"), strict=True)
    ports = "  ".join(f'<FONT COLOR="{PORT_COLOURS[letter]}">■</FONT> {letter} {word}' for letter, word in words)
    if marks:
        what = "  ".join(f'<FONT COLOR="{colour}">■</FONT> {escape(text)}' for colour, text in marks.key.items())
        lines = f"line: {what}; width by {escape(marks.width)}"
    else:
        lines = f"line: colour of its sender, width by |{word}| (widest {strongest:.3g})"
    if dashes:
        lines += ", dashed where negative"
    return f"<TR><TD>port of a head:  {ports}</TD></TR><TR><TD>{lines}</TD></TR>"


def _label(lines: list[str], legend: str) -> str:
    """Return the graph's label: a title in bold, further lines, the legend; empty if there is none of them."""
    title, *notes = (escape("".join(c if c.isprintable() else " " for c in line)) for line in lines)
    rows = [f"<TR><TD>{line}</TD></TR>" for line in (title and f"<B>{title}</B>", *notes) if line]
    if not rows and not legend:
        return ""
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2">{"".join(rows)}{legend}</TABLE>>'
