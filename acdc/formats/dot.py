"""DOT: a circuit as Graphviz draws it.

Layers stand bottom to top, the input below, the logits above. A head is a box with its q, k and v ports at the bottom,
so an edge shows which of them it feeds. An edge has its sender's colour, which is the same in every picture, is as wide
as its |effect| relative to the largest one, and is dashed where the effect is negative. Projection edges lie inside a
head and are not drawn.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import graphviz

from acdc.circuit import Circuit
from acdc.files import write_atomically
from acdc.graph import LETTERS, Edge, node_of, parse_node

FONT = "Helvetica,Arial,sans-serif"
WIDTHS = (0.6, 5.0)  # in points, of an effect of zero and of the largest one
PORT_COLOURS = {"q": "#b9d5ff", "k": "#ffd5a0", "v": "#b5e4b1"}
FRAME, FAINT, INK, PLAIN = "#5b6470", "#b9bfc7", "#1c2126", "#f4f5f7"
HUES = (0.58, 0.07, 0.36, 0.88, 0.49, 0.98, 0.74, 0.13, 0.65, 0.28, 0.81, 0.03)  # neighbours are easily told apart


@dataclass(frozen=True)
class Marks:
    """Colours of edges that say something else than who sends.

    `colours`: of edges, the others are faint. `key`: what the colours mean. `width`: what the widths are by.
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
    """The DOT text of a circuit.

    Parameters
    ----------
    title: a line above the picture; None describes the circuit (task, model, method, edges), "" leaves it out.
    on_path: draw only what lies on a path from the input to the logits (the default), not every kept edge.
    max_edges: draw only so many, the strongest by |effect|; the picture says so. With `on_path` each of them lies on a
        drawn path from the input to the logits, and one whole path is drawn at least.
    legend: explain ports, widths and dashes below the title. marks: colour edges by something else than their senders.
    """
    edges, notes = drawn_edges(circuit, on_path=on_path, max_edges=max_edges)
    strongest = max((abs(effect) for effect in edges.values() if math.isfinite(effect)), default=0.0)
    lines = [describe(circuit) if title is None else title, *notes]
    dashes = any(effect < 0 for effect in edges.values())
    scale = min(max(1.0, math.sqrt(len(edges) / 80)), 2.0)  # many edges make a wide picture, seen from further away
    word = "score" if "score" in circuit.method else "effect"
    dot = _digraph(scale, _label(lines, _legend(strongest, dashes, word, marks) if legend and edges else ""))

    used = {node_of(name) for edge in edges for name in edge} or {*circuit.graph.inputs, "logits"}
    nodes = [name for name in (*circuit.graph.senders, "logits") if name in used]
    colours = {name: (FRAME, PLAIN) if marks else _colour(name) for name in nodes}
    rows = _rows(nodes)
    _add_nodes(dot, rows, {edge.receiver for edge in edges}, colours)
    height = {name: i for i, row in enumerate(rows) for name in row}
    for edge, effect in sorted(edges.items(), key=lambda item: abs(item[1])):  # the strongest on top
        dot.edge(
            f"{edge.sender}:n",
            _anchor(edge.receiver),
            color=marks.colours.get(edge, FAINT) if marks else colours[edge.sender][0],
            minlen=str(height[node_of(edge.receiver)] - height[edge.sender]),  # puts every node into its layer's row
            **_style(edge, effect, strongest, scale),
        )
    return str(dot.source)


def write_dot(circuit: Circuit, path: str | Path, **options: Any) -> None:
    """Write the DOT file; options as in `dot_source`."""
    write_atomically(path, dot_source(circuit, **options))


def drawn_edges(
    circuit: Circuit, *, on_path: bool = True, max_edges: int | None = None
) -> tuple[dict[Edge, float], list[str]]:
    """The edges a picture shows, and what must be said about those it leaves out."""
    shown = circuit.on_path() if on_path else circuit
    edges = {edge: effect for edge, effect in shown.edges.items() if not edge.is_projection}
    notes = []
    n_kept = sum(not edge.is_projection for edge in circuit)
    if len(edges) < n_kept:
        notes.append(f"not drawn: {n_kept - len(edges):,} of {n_kept:,} kept edges, on no path from input to logits")
    if max_edges is not None and len(edges) > max_edges:
        ranked = sorted(edges, key=lambda edge: -abs(edges[edge]))
        strongest = _with_ways(ranked, max_edges, circuit.graph.inputs) if on_path else set(ranked[:max_edges])
        which = "those on the strongest paths from input to logits" if on_path else "the strongest"
        notes.append(f"drawn: {len(strongest):,} of {len(edges):,} edges, {which}")
        edges = {edge: effect for edge, effect in edges.items() if edge in strongest}
    return edges, notes


def _with_ways(ranked: Sequence[Edge], max_edges: int, inputs: Iterable[str]) -> set[Edge]:
    """Edges from the strongest on, each with a way from the input to it and on to the logits, so that nothing hangs.

    A way takes every node's strongest edge until it meets a node that is drawn already. One that is too long for what
    is left of `max_edges` is passed over, but never the first.
    """
    into: dict[str, Edge] = {}
    out: dict[str, Edge] = {}
    for edge in ranked:
        into.setdefault(node_of(edge.receiver), edge)
        out.setdefault(edge.sender, edge)
    chosen: set[Edge] = set()
    drawn = {*inputs, "logits"}
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
    """One line about a circuit: task, model, method and threshold, number of edges."""
    method, threshold = str(circuit.method.get("name", "")), circuit.method.get("threshold")
    if isinstance(threshold, int | float):
        method = f"{method} τ = {threshold:g}".strip()
    counts = f"{len(circuit):,} of {len(circuit.graph):,} edges"
    return " · ".join(part for part in (circuit.task, circuit.model, method, counts) if part)


def short_name(node: str) -> str:
    """A node's name as pictures write it: `a9.h6` → `a9.6`."""
    return node.replace(".h", ".")


def _digraph(scale: float, label: str) -> graphviz.Digraph:
    dot = graphviz.Digraph("circuit")
    dot.attr("graph", rankdir="BT", nodesep="0.12", ranksep=f"{0.42 * scale:.2f}", pad="0.15")
    dot.attr("graph", fontname=FONT, fontsize=f"{11 * scale:.1f}", fontcolor=INK, labelloc="t", label=label)
    dot.attr("graph", bgcolor="white", outputorder="edgesfirst")
    dot.attr("node", fontname=FONT, fontsize=f"{12 * scale:.1f}", fontcolor=INK)
    dot.attr("node", margin="0.1,0.03", height="0.3", width="0.4", penwidth="1.2")
    dot.attr("edge", arrowsize=f"{0.5 * scale:.2f}")
    return dot


def _colour(name: str) -> tuple[str, str]:
    """A dark colour for a node's frame and outgoing edges, and a light one of the same hue to fill it.

    It follows from the name alone, so that a node looks the same in every picture. The heads of a layer differ, up to
    two dozen of them; MLPs are paler, and inputs darker, than any head.
    """
    node = parse_node(name)
    layer = 5 * node.layer  # 5 and 12, the number of hues, have no common divisor: twelve layers differ
    if node.kind == "head":
        place, shade, strength = layer + node.unit, 0.42 - 0.1 * (node.unit // len(HUES) % 2), 0.62
    elif node.kind == "mlp":
        place, shade, strength = layer + 8, 0.48, 0.35
    else:
        place, shade, strength = int(name == "input.pos"), 0.22, 0.62
    lines, fill = (colorsys.hls_to_rgb(HUES[place % len(HUES)], light, strength) for light in (shade, 0.93))
    return _hex(lines), _hex(fill)


def _hex(rgb: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _rows(nodes: list[str]) -> list[list[str]]:
    """Nodes side by side with their like, from the bottom: the input, a layer's heads, its MLP, …, the logits."""
    rows: dict[tuple[int, str], list[str]] = {}
    for name in nodes:
        node = parse_node(name)
        rows.setdefault((node.layer, node.kind), []).append(name)
    return list(rows.values())


def _add_nodes(
    dot: graphviz.Digraph, rows: list[list[str]], receivers: set[str], colours: dict[str, tuple[str, str]]
) -> None:
    for row in rows:
        kind = parse_node(row[0]).kind
        with dot.subgraph() as rank:
            rank.attr(rank="source" if kind == "input" else "sink" if kind == "logits" else "same")
            for name in row:
                line, fill = colours[name]
                if kind == "head":
                    rank.node(name, shape="plain", tooltip=name, label=_head(name, receivers, line, fill))
                else:
                    rank.node(
                        name, label=name, shape="box", style="filled,rounded", color=line, fillcolor=fill, tooltip=name
                    )


def _head(name: str, receivers: set[str], line: str, fill: str) -> str:
    """A head: its name above its three ports; ports that no edge feeds are faint."""
    cells = "".join(
        f'<TD PORT="{letter}" BGCOLOR="{PORT_COLOURS[letter]}">{letter}</TD>'
        if f"{name}<{letter}>" in receivers
        else f'<TD PORT="{letter}"><FONT COLOR="{FAINT}">{letter}</FONT></TD>'
        for letter in LETTERS
    )
    return (
        f'<<TABLE BORDER="1" STYLE="rounded" COLOR="{line}" BGCOLOR="{fill}" CELLBORDER="0" CELLSPACING="1"'
        f' CELLPADDING="2"><TR><TD COLSPAN="3">{escape(short_name(name))}</TD></TR><TR>{cells}</TR></TABLE>>'
    )


def _anchor(receiver: str) -> str:
    """Where an edge ends: at the bottom of the receiving node, or of its q, k or v port."""
    node = parse_node(receiver)
    return f"{node_of(receiver)}:{node.letter}:s" if node.letter else f"{receiver}:s"


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
    """The graph's label: a title in bold, further lines, the legend; empty if there is none of them."""
    title, *notes = (escape("".join(c if c.isprintable() else " " for c in line)) for line in lines)
    rows = [f"<TR><TD>{line}</TD></TR>" for line in (title and f"<B>{title}</B>", *notes) if line]
    if not rows and not legend:
        return ""
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2">{"".join(rows)}{legend}</TABLE>>'
