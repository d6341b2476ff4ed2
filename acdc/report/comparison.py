"""The comparison of circuits for people: a table on the console, a section of the report."""

from __future__ import annotations

from html import escape

from rich.table import Table
from rich.text import Text

from acdc.evaluation.comparison import CircuitComparison
from acdc.report.html import OWN_PAIRS, Section, table
from acdc.report.numbers import number

MAX_ROWS = 100  # edges listed


def console_table(comparison: CircuitComparison) -> Table:
    """One row a circuit: its edges, its recovery, and the Jaccard index with each circuit."""
    title = f"Jaccard index of the circuits' edges; recovery is {OWN_PAIRS}"
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, min_width=len(title))
    for name in ("", "edges", "recovery", *comparison.labels):
        shown.add_column(Text(name), justify="left" if not name else "right")
    rows = zip(comparison.labels, comparison.circuits, comparison.jaccard, strict=True)
    for label, circuit, row in rows:
        recovery = _share(circuit.metrics.get("recovery"))
        shown.add_row(Text(label), f"{len(circuit):,}", recovery, *(f"{value:.2f}" for value in row))
    shown.add_row()
    shown.add_row("in common", f"{len(comparison.core):,}")
    shown.add_row("in any", f"{len(comparison.union):,}")
    return shown


def comparison_section(comparison: CircuitComparison) -> Section:
    """Sizes, Jaccard indices, how many edges how many circuits keep, and the edges themselves."""
    labels, n = [escape(label) for label in comparison.labels], len(comparison.labels)
    matrix = [
        [label, f"{len(circuit):,}", _share(circuit.metrics.get("recovery")), *(_heat(value) for value in row)]
        for label, circuit, row in zip(labels, comparison.circuits, comparison.jaccard, strict=True)
    ]
    counts = [
        [f"{k} of {n}" + " (the common core)" * (k == n), f"{count:,}"]
        for k, count in reversed(list(enumerate(comparison.kept_by_exactly(), 1)))
    ]
    html = (
        f"<p>{escape(comparison.summary())} Each circuit's recovery is {OWN_PAIRS}.</p>"
        + table(["", "edges", "recovery", *labels], matrix, numeric=range(1, n + 3))
        + "<h3>How many circuits keep an edge</h3>"
        + table(["kept by", "edges"], counts, numeric=[1])
        + _edges(comparison, labels)
    )
    return Section("The circuits beside each other", html)


def _edges(comparison: CircuitComparison, labels: list[str]) -> str:
    rows = comparison.edge_rows()
    if not rows:
        return ""
    cells = [
        [f"<code>{escape(row[key])}</code>" for key in ("sender", "receiver")]
        + [str(row["kept_by"]), *(number(row[f"effect {label}"]) for label in comparison.labels)]
        for row in rows[:MAX_ROWS]
    ]
    listed = table(["sender", "receiver", "kept by", *labels], cells, numeric=range(2, len(labels) + 3))
    rest = f"<p>{len(rows) - MAX_ROWS:,} more are not listed.</p>" if len(rows) > MAX_ROWS else ""
    scales = {circuit.method.get("score", "effect") for circuit in comparison.circuits}
    each = " or scores, each circuit's on a scale of its own" if len(scales) > 1 else ""
    return f"<details><summary>The edges and their effects{each}</summary>{listed}{rest}</details>"


def _share(recovery: float | None) -> str:
    return "—" if recovery is None else f"{recovery:z.1%}"


def _heat(value: float) -> str:
    return f'<span class="heat" style="--share:{100 * value:.0f}%">{value:.2f}</span>'
