"""What an evaluation found, for people: how well circuits do, and how they stand against known ones."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from acdc.evaluation.grading import Graded
from acdc.evaluation.roc import RULES
from acdc.report.html import Section, table
from acdc.report.numbers import number, share

MOST_EDGES = 200  # listed
RATES = ("precision", "recall")


def partners_section(values: Sequence[Mapping[str, Any]], metric: str) -> Section:
    """How much the numbers depend on which corrupted partner is taken."""
    if not values:
        return Section("The choice of corrupted prompts", "")
    rows = [
        [str(i), number(v["corrupted"]), number(v["circuit"]), share(v["recovery"]), number(v["kl"])]
        for i, v in enumerate(values)
    ]
    header = ["partner", f"{metric}, no edges", f"{metric}, circuit", "recovery", "KL"]
    line = partners_line(values)
    html = (
        f"<p>{escape(line[0].upper() + line[1:])}. How much the circuit itself depends on that choice, a sweep"
        " shows (<code>acdc -m</code>, over corruptions or files of pairs): it compares the circuits.</p>"
        + table(header, rows, numeric=range(1, 5))
    )
    return Section("The choice of corrupted prompts", html)


def partners_line(values: Sequence[Mapping[str, Any]]) -> str:
    """The spread over the partners in a sentence."""
    recoveries = [v["recovery"] for v in values if v["recovery"] is not None and math.isfinite(v["recovery"])]
    kls = [v["kl"] for v in values]
    text = f"each clean prompt has {len(values)} corrupted partners; the circuit with one of them alone: "
    if recoveries:
        text += f"recovery {share(min(recoveries))} to {share(max(recoveries))}, "
    return text + f"KL {min(kls):.3g} to {max(kls):.3g}"


def grades_table(graded: Sequence[Graded]) -> Table:
    """A row for every known circuit and circuit, over edges and over nodes."""
    shown = Table(title="Against known circuits", title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(_RATES_HEADER):
        shown.add_column(Text(name), justify="left" if i < 2 else "right", overflow="fold")
    for result in graded:
        for row in _rate_rows(result):
            shown.add_row(*map(Text, row))
    return shown


def areas_table(graded: Sequence[Graded]) -> Table:
    """The areas under the curves by both rules."""
    shown = Table(title="Area under the ROC curve", title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(_AREAS_HEADER):
        shown.add_column(Text(name), justify="left" if i < 3 else "right", overflow="fold")
    for result in graded:
        for row in _areas_rows(result):
            shown.add_row(*map(Text, row))
    return shown


def grades_section(graded: Sequence[Graded], absent: Sequence[str], plots: Sequence[Path]) -> Section:
    """Rates, areas, curves and the edges in which the circuits differ from the known ones."""
    why = "".join(f"<li>{escape(line)}</li>" for line in absent)
    not_there = f"<p>Not graded against:</p><ul>{why}</ul>" if why else ""
    if not graded:
        return Section("Against known circuits", f"<p>No known circuit fits this task and model.</p>{not_there}")
    rows = [[escape(cell) for cell in row] for result in graded for row in _rate_rows(result)]
    areas = [[escape(cell) for cell in row] for result in graded for row in _areas_rows(result)]
    sources = "".join(
        f"<li>{escape(result.label)}: {escape('; '.join(result.truth.sources))}</li>" for result in graded
    )
    html = (
        table(_RATES_HEADER, rows, numeric=range(2, 9))
        + "<h3>Area under the ROC curve</h3>"
        + table(_AREAS_HEADER, areas, numeric=range(3, 5))
        + "<p>pessimistic: the rule of the original ACDC, between two points of the curve the worse one holds;"
        " trapezoid: the usual rule, points are joined by straight lines. Both begin at the empty and end at the whole"
        " graph.</p>"
        + "".join(image(path, f"ROC curves over {path.stem.partition('_')[2]}") for path in plots)
        + "".join(_differences(result) + _positions(result) for result in graded)
        + f"<h3>Where the known circuits are from</h3><ul>{sources}</ul>{not_there}"
    )
    return Section("Against known circuits", html)


def image(path: Path, alt: str) -> str:
    """A picture inside the page, by itself, so that its names do not meet those of another."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'


_RATES_HEADER = ["known circuit", "of", "true", "kept", "right", *RATES, *(f"{rate}, random" for rate in RATES)]
_AREAS_HEADER = ["known circuit", "of", "curve over", *RULES]


def _areas_rows(result: Graded) -> list[list[str]]:
    areas = result.areas()
    return [
        [result.label, of, result.cut_by, *(f"{areas[f'{of}_auc_{rule}']:.3f}" for rule in RULES)]
        for of in ("edges", "nodes")
    ]


def _rate_rows(result: Graded) -> list[list[str]]:
    rows = []
    for name, graded in result.points.items():
        label = f"{result.label}" + f", {name}" * (len(result.points) > 1)
        for of, curve in (("edges", graded.edges), ("nodes", graded.nodes)):
            (point,) = curve.points
            rates = (f"{point.precision:.3f}", f"{point.recall:.3f}")
            rivals = result.random.get(name)
            theirs = [f"{rivals[f'{of}_{rate}']:.3f}" if rivals else "—" for rate in RATES]
            rows.append([label, of, str(curve.true), str(point.kept), str(point.right), *rates, *theirs])
    return rows


def _differences(result: Graded) -> str:
    """Which edges are missed and which are too many, where one circuit is graded."""
    if len(result.points) != 1:
        return ""
    (name,) = result.points
    text = ""
    for title, edges in (("missed", result.missed(name)), ("not in it", result.extra(name))):
        if edges:
            shown = ", ".join(f"<code>{escape(edge)}</code>" for edge in edges[:MOST_EDGES])
            more = f" and {len(edges) - MOST_EDGES:,} more" if len(edges) > MOST_EDGES else ""
            summary = f"{escape(result.label)}: {len(edges):,} edges {title}"
            text += f"<details><summary>{summary}</summary><p>{shown}{more}</p></details>"
    return text


def _positions(result: Graded) -> str:
    """Which edges of a known circuit read at which labels of the prompt, where that is known."""
    at: dict[str, list[str]] = {}
    for edge, labels in result.truth.positions.items():
        at.setdefault(", ".join(labels), []).append(f"<code>{escape(str(edge))}</code>")
    if not at:
        return ""
    summary = f"{escape(result.label)}: the positions at which {len(result.truth.positions):,} edges read"
    rows = [
        [
            escape(labels),
            ", ".join(edges[:MOST_EDGES]) + f" and {len(edges) - MOST_EDGES:,} more" * (len(edges) > MOST_EDGES),
        ]
        for labels, edges in sorted(at.items())
    ]
    return f"<details><summary>{summary}</summary>{table(['positions', 'edges'], rows)}</details>"
