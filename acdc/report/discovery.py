"""The page of a discovery: the circuit, its numbers and its edges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from acdc.circuit import Circuit
from acdc.graph import LETTERS, Edge
from acdc.report.meanings import MEANINGS, OWN_PAIRS
from acdc.report.methods import method_sections
from acdc.report.numbers import number, share
from acdc.report.partners import partners_section
from acdc.report.picture import render_all
from acdc.report.view import Bar, Block, Cell, Folded, Graphic, Section, Shaded, Table, View

MAX_ROWS = 500  # edges listed; circuit.json has all of them
FIRST_ROWS = 20  # of them not folded away


def view(circuit: Circuit, partners: Sequence[Mapping[str, Any]] = ()) -> View:
    """Say what is shown of a circuit that was found.

    Parameters
    ----------
    circuit : Circuit
        With its metrics and provenance.
    partners : sequence of mapping
        Its numbers with each corrupted partner alone.
    """
    word = "score" if "score" in circuit.method else "effect"
    sections = [
        Section("The circuit", [Graphic("circuit", partial(render_all, circuit))]),
        Section("Numbers", [_on_own_pairs(circuit), *_numbers(circuit.metrics)]),
        Section(f"Edges by {word}", _edges(circuit, word)),
        Section("Edges by layer", _layers(circuit)),
        Section("Edges on no path", _off_path(circuit)),
        *method_sections(circuit),
        *([partners_section(partners, circuit.metrics["metric"])] if partners else []),
        Section("Where it comes from", [_provenance(circuit)], open=False),
    ]
    title = " · ".join(
        part for part in ("Circuit", circuit.provenance.get("title") or circuit.task, circuit.model) if part
    )
    return View(title, _lead(circuit), sections, _console(circuit.metrics) if "edges_kept" in circuit.metrics else [])


def _lead(circuit: Circuit) -> str:
    """Say what was found, in a sentence or two."""
    name, threshold = str(circuit.method.get("name", "")), circuit.method.get("threshold")
    kept = f"{len(circuit):,} of {len(circuit.graph):,} edges"
    text = f"{name.upper() if name == 'acdc' else name} kept {kept}" if name else f"The circuit has {kept}"
    text += f" of {circuit.model}" * bool(circuit.model) + f" on the task {circuit.task}" * bool(circuit.task)
    if isinstance(threshold, int | float):
        text += f" (threshold τ = {threshold:g})"
    recovery = circuit.metrics.get("recovery")
    if isinstance(recovery, int | float) and math.isfinite(recovery):
        text += (
            f"; alone they recover {recovery:z.0%} of the metric's way from the model with every edge ablated"
            f" ({number(circuit.metrics.get('corrupted'))}) to the full model ({number(circuit.metrics.get('clean'))}),"
            " on the pairs they were found on"
        )
    return text + "."


def _console(metrics: Mapping[str, Any]) -> list[str]:
    """Make the few lines that the console shows."""
    m = metrics
    partners = [share(m[key]) for key in ("partner_recovery_min", "partner_recovery_max") if key in m]
    lines = {
        "edges kept": f"{m['edges_kept']} of {m['edges_total']} ({m['on_path']} on a path)",
        m["metric"]: f"model {m['clean']:.4g}, circuit {m['circuit']:.4g}, no edges {m['corrupted']:.4g}",
        "recovery": f"{share(m['recovery'])} {OWN_PAIRS}",
        **({"with one partner": f"recovery {' to '.join(partners)}"} if partners else {}),
        "KL(model ‖ circuit)": f"{m['kl']:.4g}",
        **_what_was_done(m),
    }
    if m["recovery"] is None:
        lines["recovery"] = "none: the metric is the same without any edge"
    return [f"{name:<20} {value}" for name, value in lines.items()]


def _what_was_done(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Say how many edges were decided on, or scored, and what was compared with plain ACDC."""
    seconds = f"in {metrics['seconds']:.1f} s"
    if "scored" in metrics:
        lines = {"edges scored": f"{metrics['scored']} {seconds}"}
    else:
        ties = f"{metrics['near_ties']} near-tie{'s' * (metrics['near_ties'] != 1)}"
        lines = {"decisions": f"{metrics['decisions']} ({ties}) {seconds}"}
    if "ruled_out" in metrics:
        lines["shortlist"] = f"{metrics['ruled_out']} edge{'s' * (metrics['ruled_out'] != 1)} ruled out"
    if "plain_edges" in metrics:
        lines["plain ACDC"] = (
            f"{metrics['plain_edges']} edges; {metrics['plain_differs']} are kept by one of the two only"
        )
    if "acdc" in metrics:
        other = metrics["acdc"]
        lines["ACDC"] = (
            f"{other['edges']} edges, {other['shared']} of them here too (Jaccard {other['jaccard']:.2f}); recovery"
            f" {other['recovery']:z.1%}; {other['seconds']:.1f} s of the time"
        )
    return lines


def _on_own_pairs(circuit: Circuit) -> str:
    if "recovery" not in circuit.metrics:
        return ""
    return (
        f"What the circuit does is measured {OWN_PAIRS}. On other pairs of the task it often does worse:"
        " `job=evaluate` measures it on fresh ones."
    )


def _numbers(metrics: Mapping[str, Any]) -> list[Block]:
    """List the numbers of a run, each with what it means."""
    names = [*(name for name in MEANINGS if name in metrics), *(name for name in metrics if name not in MEANINGS)]
    names = [name for name in names if not isinstance(metrics[name], Mapping)]  # they have sections of their own
    if "scored" in metrics:  # no loop, and so no decisions
        names = [name for name in names if name not in ("decisions", "near_ties")]
    rows = []
    for name in names:
        shown = share(metrics[name]) if name == "recovery" and metrics[name] is not None else number(metrics[name])
        rows.append([name, shown, MEANINGS.get(name, "")])
    return [Table("", ["", "value", "meaning"], rows, code=[0], words=[2])] if rows else []


def _edges(circuit: Circuit, word: str) -> list[Block]:
    """List the edges, the strongest first, with bars that show their effects beside each other."""
    edges = sorted(circuit.edges.items(), key=lambda item: -abs(item[1]))
    if not edges:
        return ["No edge was kept."]
    largest = max((abs(effect) for _, effect in edges if math.isfinite(effect)), default=0.0) or 1.0

    def row(edge: Edge, effect: float) -> list[Cell]:
        width = min(abs(effect) / largest, 1) if math.isfinite(effect) else 0
        return [edge.sender, edge.receiver, number(effect), Bar(width, effect < 0)]

    def table(rows: Sequence[Sequence[Cell]]) -> Table:
        return Table("", ["sender", "receiver", word, "size"], rows, left=2, code=[0, 1], words=[3])

    meaning = str(
        circuit.method.get(
            "score", "the loss after removing the edge minus the loss before: positive means that the edge helps"
        )
    )
    rows = [row(edge, effect) for edge, effect in edges]
    blocks: list[Block] = [f"{'An' if word == 'effect' else 'A'} {word} is {meaning}.", table(rows[:FIRST_ROWS])]
    if rest := rows[FIRST_ROWS:MAX_ROWS]:
        blocks.append(Folded(f"{len(rest)} more", [table(rest)]))
    if len(rows) > MAX_ROWS:
        blocks.append(f"{len(rows) - MAX_ROWS:,} weaker edges are not listed; circuit.json has them all.")
    return blocks


def _layers(circuit: Circuit) -> list[Block]:
    """Count the edges into and out of each layer's parts, the output on top."""
    graph = circuit.graph
    into: Counter[tuple[int, str]] = Counter()
    out: Counter[int] = Counter()
    heads: dict[int, set[int]] = {}
    for edge in circuit:
        if edge.is_projection:
            continue
        sender, receiver = graph[edge.sender], graph[edge.receiver]
        into[receiver.layer, receiver.letter or receiver.kind] += 1
        out[sender.layer] += 1
        for node in (sender, receiver):
            if node.kind == "head":
                heads.setdefault(node.layer, set()).add(node.unit)
    most = max(into.values(), default=1)

    def cell(layer: int, kind: str) -> Cell:
        count = into[layer, kind]
        return Shaded(str(count), count / most) if count else ""

    logits, embedding = graph["logits"].layer, graph[graph.inputs[0]].layer
    rows: list[list[Cell]] = [["logits", "", *[""] * 4, cell(logits, "logits"), ""]]
    for layer in range(graph.config.n_layers - 1, -1, -1):
        names = ", ".join(graph.heads(layer)[unit] for unit in sorted(heads.get(layer, ())))
        ports = [cell(layer, kind) for kind in (*LETTERS, "mlp")]
        rows.append([f"layer {layer}", names, *ports, "", str(out[layer] or "")])
    rows.append(["input", "", *[""] * 5, str(out[embedding] or "")])
    header = ["", "heads in the circuit", "into q", "into k", "into v", "into MLP", "into logits", "out of it"]
    return [Table("", header, rows, left=2)] if len(circuit) else []


def _off_path(circuit: Circuit) -> list[Block]:
    """Say which edges are on no path from the input to the logits."""
    if not len(circuit):
        return []
    on_path, node_of = circuit.on_path(), circuit.graph.node_of
    off = [edge for edge in circuit if edge not in on_path]
    text = f"{len(on_path):,} of the {len(circuit):,} kept edges lie on a path from the input to the logits. "
    if not off:
        return [text + "None is left over."]
    nodes = {node_of(name) for name in on_path.nodes()}
    dead = list(dict.fromkeys(node_of(name) for edge in off for name in edge if node_of(name) not in nodes))
    text += (
        f"Left over and not drawn: {len(off):,}; what they would carry does not come from the input or does not reach"
        " the output"
    )
    if dead:
        text += f". No path uses {', '.join(dead[:20])}{' and others' if len(dead) > 20 else ''}"
    return [f"{text}.", Folded("Which", [", ".join(f"`{edge}`" for edge in off[:MAX_ROWS])])]


def _provenance(circuit: Circuit) -> Table:
    shape = {key: value for key, value in circuit.graph.config.as_dict().items() if value is not None}
    groups = {"model": {"name": circuit.model, **shape}, "method": circuit.method, **{"": circuit.provenance}}
    return Table("", ["", ""], [[key, value] for key, value in _flat(groups) if value != ""], left=2, code=[0])


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield nested mappings as dotted keys with their values as text."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}".strip("."))
    elif isinstance(value, list | tuple):
        yield prefix, ", ".join(map(str, value))
    else:
        yield prefix, "" if value is None else str(value)
