"""The HTML report: one file that needs nothing else, for a screen, dark or light, and for paper.

A page is a lead sentence and sections (`write_page`); `write_report` is the page of a discovery run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from acdc.circuit import Circuit
from acdc.graph import LETTERS, Edge, node_of, parse_node
from acdc.report import view, writer
from acdc.report.numbers import number

MAX_ROWS = 500  # edges listed in a report; circuit.json has all of them

OWN_PAIRS = "on the pairs it was found on"  # where a search does better than on others

EXPLANATIONS = {
    "clean": "the metric of the full model on the clean prompts",
    "corrupted": "the metric with no edge kept: every edge carries its ablated value",
    "circuit": "the metric with only the circuit's edges kept",
    "recovery": "(circuit − corrupted) / (clean − corrupted): 100% is as good as the full model",
    "accuracy": "how often the circuit's top token is an answer (without answers: the model's top token)",
    "accuracy_model": "the same for the full model",
    "agreement": "how often the circuit's top token is the full model's",
    "partner_recovery_min": "the least recovery with one corrupted partner of each clean prompt alone",
    "partner_recovery_max": "the largest",
    "kl": "KL(model ‖ circuit) of the next-token distributions, in nats: 0 is the same prediction",
    "edges_kept": "edges in the circuit",
    "edges_total": "edges in the model's computational graph",
    "scored": "edges that the method gave a score",
    "asked": "edges that the settings ask for",
    "chosen": "edges that were chosen, before those on no path were dropped",
    "path_at": "how many of the best edges it takes until a path leads from the input to the logits",
    "decisions": "edges that were tested; the others were removed untested: nothing used their receiver, or a shortlist"
    " ruled them out",
    "near_ties": "tests so close to the threshold that they were settled in float64",
    "compared": "the share of tests made again in float64: near-ties, and others to see how far rounding reaches",
    "largest_rounding": "the largest rounding error seen, as a share of what counts as close to the threshold then",
    "made_again": "tests made again because rounding was found to reach further than was thought",
    "tested": "decisions that were evaluated, at all thresholds",
    "shared": "decisions that were taken over from the threshold before",
    "ruled_out": "edges that the shortlist rules out",
    "plain_edges": "edges that ACDC keeps without a shortlist",
    "plain_differs": "edges that only one of the two keeps",
    "verified": "tests that the full engine made again, with the same result",
    "on_path": "kept edges on a path from the input to the logits",
    "seconds": "time the search took",
    "peak_mb": "largest memory use, in megabytes",
}


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading and what stands below it, as HTML. `open` False folds it away at first."""

    title: str
    html: str
    open: bool = True


def write_page(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write a self-contained HTML page; `title` and `lead` are plain text, empty sections are left out."""
    writer.write_page(path, title, lead, [as_view(section) for section in sections])


def as_view(section: Section) -> view.Section:
    """A section that is HTML already, as a part of a view."""
    return view.Section(section.title, [Markup(section.html)] if section.html else [], section.open)


def write_report(
    path: str | Path,
    circuit: Circuit,
    *,
    svg: str | None,
    config_yaml: str,
    notes: Sequence[str] = (),
    sections: Sequence[Section] = (),
) -> None:
    """Write the report of a discovery run.

    Parameters
    ----------
    svg: the picture, or None where none could be drawn.
    config_yaml: the run's configuration. notes: warnings the reader should see first, one line each.
    sections: more of them, shown behind the list of edges.
    """
    on_path = circuit.on_path()
    title = " · ".join(part for part in ("Circuit", circuit.task, circuit.model) if part)
    write_page(
        path,
        title,
        summary(circuit),
        [
            notes_section(notes),
            Section("The circuit", picture(svg) if svg else "<p>No picture: no Graphviz was found to draw it.</p>"),
            Section("Numbers", _on_own_pairs(circuit) + metrics_table(circuit.metrics)),
            Section("Edges by score" if "score" in circuit.method else "Edges by effect", edges_table(circuit)),
            Section("Edges by layer", layers_table(circuit)),
            Section("Edges on no path", _off_path(circuit, on_path)),
            *sections,
            configuration(config_yaml),
            Section("Where it comes from", _provenance(circuit), open=False),
        ],
    )


def notes_section(notes: Sequence[str]) -> Section:
    """What the reader should see first, one line each."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in notes)
    return Section("Please note", f'<ul class="notes">{lines}</ul>' if lines else "")


def configuration(config_yaml: str) -> Section:
    """The run's configuration, folded away."""
    return Section("Configuration", f"<pre>{escape(config_yaml)}</pre>" if config_yaml.strip() else "", open=False)


def summary(circuit: Circuit) -> str:
    """What was found, in a sentence or two."""
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


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = ()) -> str:
    """An HTML table of cells that are HTML already; columns in `numeric` are right-aligned."""
    right = set(numeric)

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{' class=n' * (i in right)}>{c}</{tag}>" for i, c in enumerate(cells)) + "</tr>"

    head = f"<thead>{row(header, 'th')}</thead>" if any(header) else ""
    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def picture(svg: str) -> str:
    """An SVG picture in a frame that scrolls and zooms."""
    drawing = re.sub(r"^.*?(?=<svg\b)", "", svg, flags=re.DOTALL)  # no XML head inside HTML
    drawing = drawing.replace("<svg ", '<svg role="img" aria-label="drawing of the circuit" ', 1)
    buttons = "".join(f'<button type="button" data-zoom="{z}">{label}</button>' for z, label in ZOOMS)
    return f'<figure class="picture"><div class="zoom">{buttons}</div><div class="canvas">{drawing}</div></figure>'


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """The figures of a run, each with what it means."""
    names = [*(name for name in EXPLANATIONS if name in metrics), *(n for n in metrics if n not in EXPLANATIONS)]
    names = [name for name in names if not isinstance(metrics[name], Mapping)]  # they have sections of their own
    if "scored" in metrics:  # no loop, and so no decisions
        names = [name for name in names if name not in ("decisions", "near_ties")]
    rows = []
    for name in names:
        value = metrics[name]
        share = name == "recovery" and isinstance(value, int | float) and math.isfinite(value)
        shown = f"{value:z.1%}" if share else number(value)
        rows.append([f"<code>{escape(name)}</code>", escape(shown), escape(EXPLANATIONS.get(name, ""))])
    return table(["", "value", "meaning"], rows, numeric=[1]) if rows else ""


def _on_own_pairs(circuit: Circuit) -> str:
    if "recovery" not in circuit.metrics:
        return ""
    return (
        f"<p>What the circuit does is measured {OWN_PAIRS}. On other pairs of the task it often does worse:"
        " <code>job=evaluate</code> measures it on fresh ones.</p>"
    )


def edges_table(circuit: Circuit) -> str:
    """The edges, the strongest first, with bars that show their effects beside each other."""
    edges = sorted(circuit.edges.items(), key=lambda item: -abs(item[1]))
    if not edges:
        return "<p>No edge was kept.</p>"
    finite = [abs(effect) for _, effect in edges if math.isfinite(effect)]
    largest = max(finite, default=0.0) or 1.0

    def row(edge: Edge, effect: float) -> list[str]:
        width = 100 * min(abs(effect) / largest, 1) if math.isfinite(effect) else 0
        bar = f'<span class="bar{" minus" if effect < 0 else ""}" style="width:{width:.1f}%"></span>'
        return [f"<code>{escape(edge.sender)}</code>", f"<code>{escape(edge.receiver)}</code>", number(effect), bar]

    word, meaning = (
        "effect",
        "the loss after removing the edge minus the loss before: positive means that the edge helps",
    )
    if "score" in circuit.method:  # of a method that scores every edge
        word, meaning = "score", str(circuit.method["score"])
    header = ["sender", "receiver", word, '<span class="sr">size</span>']
    rows = [row(edge, effect) for edge, effect in edges]
    text = f"<p>{'An' if word == 'effect' else 'A'} {word} is {escape(meaning)}.</p>{table(header, rows[:20], [2])}"
    if rest := rows[20:MAX_ROWS]:
        text += f"<details><summary>{len(rest)} more</summary>{table(header, rest, numeric=[2])}</details>"
    if len(rows) > MAX_ROWS:
        text += f"<p>{len(rows) - MAX_ROWS:,} weaker edges are not listed; circuit.json has them all.</p>"
    return text


def layers_table(circuit: Circuit) -> str:
    """How many edges go into and come out of each layer's parts, the output on top."""
    into: dict[tuple[int, str], int] = {}
    out: dict[int, int] = {}
    heads: dict[int, set[int]] = {}
    for edge in circuit:
        if edge.is_projection:
            continue
        sender, receiver = parse_node(edge.sender), parse_node(edge.receiver)
        kind = receiver.letter or receiver.kind
        into[receiver.layer, kind] = into.get((receiver.layer, kind), 0) + 1
        out[sender.layer] = out.get(sender.layer, 0) + 1
        for node in (sender, receiver):
            if node.kind == "head":
                heads.setdefault(node.layer, set()).add(node.unit)
    most = max(into.values(), default=1)

    def cell(layer: int, kind: str) -> str:
        count = into.get((layer, kind), 0)
        return f'<span class="heat" style="--share:{100 * count / most:.0f}%">{count}</span>' if count else ""

    logits, embedding = parse_node("logits").layer, parse_node("input").layer
    rows = [["logits", "", *[""] * 4, cell(logits, "logits"), ""]]
    for layer in range(circuit.graph.config.n_layers - 1, -1, -1):
        names = ", ".join(f"{layer}.{head}" for head in sorted(heads.get(layer, ())))
        ports = [cell(layer, kind) for kind in (*LETTERS, "mlp")]
        rows.append([f"layer {layer}", names, *ports, "", str(out.get(layer, ""))])
    rows.append(["input", "", *[""] * 5, str(out.get(embedding, ""))])
    header = ["", "heads in the circuit", "into q", "into k", "into v", "into MLP", "into logits", "out of it"]
    return table(header, rows, numeric=range(2, 8)) if len(circuit) else ""


def _off_path(circuit: Circuit, on_path: Circuit) -> str:
    off = [edge for edge in circuit if edge not in on_path]
    text = f"<p>{len(on_path):,} of the {len(circuit):,} kept edges lie on a path from the input to the logits. "
    if not off:
        return text + "None is left over.</p>" if len(circuit) else ""
    nodes = {node_of(name) for name in on_path.nodes()}
    dead = list(dict.fromkeys(node_of(n) for e in off for n in e if node_of(n) not in nodes))
    text += (
        f"Left over and not drawn: {len(off):,}; what they would carry does not come from the input or does not reach"
        " the output"
    )
    if dead:
        text += f". No path uses {', '.join(dead[:20])}{' and others' if len(dead) > 20 else ''}"
    text += ".</p>"
    names = ", ".join(f"<code>{escape(str(edge))}</code>" for edge in off[:MAX_ROWS])
    return text + f"<details><summary>Which</summary><p>{names}</p></details>"


def _provenance(circuit: Circuit) -> str:
    shape = {key: value for key, value in circuit.graph.config.as_dict().items() if value is not None}
    groups = {"model": {"name": circuit.model, **shape}, "method": circuit.method, **{"": circuit.provenance}}
    rows = [[f"<code>{escape(key)}</code>", escape(value)] for key, value in _flat(groups) if value != ""]
    return table(["", ""], rows)


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested mappings as dotted keys with their values as text."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}".strip("."))
    elif isinstance(value, list | tuple):
        yield prefix, ", ".join(map(str, value))
    else:
        yield prefix, "" if value is None else str(value)


ZOOMS = (("fit", "Fit"), ("0.8", "−"), ("1.25", "+"), ("full", "100%"))
