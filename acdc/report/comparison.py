"""Circuits beside each other: a table for the console, a section of the page."""

from __future__ import annotations

from acdc.evaluation.comparison import CircuitComparison
from acdc.report.meanings import OWN_PAIRS
from acdc.report.numbers import number, share
from acdc.report.view import Block, Cell, Folded, Section, Shaded, Table, View

MAX_ROWS = 100  # edges listed
MOST_IN_MATRIX = 8  # circuits whose Jaccard matrix fits a console


def view(comparison: CircuitComparison, sweep: str) -> View:
    """Say what is shown of the circuits that a sweep has found."""
    found = comparison.compared
    tasks, models = (", ".join(dict.fromkeys(getattr(one, what) for one in found)) for what in ("task", "model"))
    matrix = [comparison_table(comparison)] if len(found) <= MOST_IN_MATRIX else []
    return View(
        f"{len(found)} circuits · {tasks} · {models}",
        f"The circuits that the sweep in {sweep} has found, and what they have in common.",
        [comparison_section(comparison)],
        [*matrix, comparison.words()],
    )


def comparison_table(comparison: CircuitComparison) -> Table:
    """Make a row a circuit: its edges, its recovery, and the Jaccard index with each circuit."""
    rows: list[list[Cell]] = [
        [label, f"{len(circuit):,}", share(circuit.metrics.get("recovery")), *(f"{value:.2f}" for value in row)]
        for label, circuit, row in zip(comparison.labels, comparison.compared, comparison.jaccard, strict=True)
    ]
    rows += [[""], ["in common", f"{len(comparison.core):,}"], ["in any", f"{len(comparison.union):,}"]]
    title = f"Jaccard index of the circuits' edges; recovery is {OWN_PAIRS}"
    return Table(title, ["", "edges", "recovery", *comparison.labels], rows)


def comparison_section(comparison: CircuitComparison) -> Section:
    """Show sizes, Jaccard indices, how many edges how many circuits keep, and the edges themselves."""
    n = len(comparison.labels)
    matrix: list[list[Cell]] = [
        [
            label,
            f"{len(circuit):,}",
            share(circuit.metrics.get("recovery")),
            *(Shaded(f"{value:.2f}", value) for value in row),
        ]
        for label, circuit, row in zip(comparison.labels, comparison.compared, comparison.jaccard, strict=True)
    ]
    counts = [
        [f"{k} of {n}" + " (the common core)" * (k == n), f"{count:,}"]
        for k, count in reversed(list(enumerate(comparison.kept_by_exactly(), 1)))
    ]
    blocks: list[Block] = [
        f"{comparison.words()} Each circuit's recovery is {OWN_PAIRS}.",
        Table("", ["", "edges", "recovery", *comparison.labels], matrix),
        "How many circuits keep an edge:",
        Table("", ["kept by", "edges"], counts),
        *_edges(comparison),
    ]
    return Section("The circuits beside each other", blocks)


def _edges(comparison: CircuitComparison) -> list[Block]:
    rows = comparison.edge_rows()
    if not rows:
        return []
    cells = [
        [row["sender"], row["receiver"], str(row["kept_by"])]
        + [number(row[f"effect {label}"]) for label in comparison.labels]
        for row in rows[:MAX_ROWS]
    ]
    table = Table("", ["sender", "receiver", "kept by", *comparison.labels], cells, left=2, code=[0, 1])
    rest = f"{len(rows) - MAX_ROWS:,} more are not listed." if len(rows) > MAX_ROWS else ""
    scales = {circuit.method.get("score", "effect") for circuit in comparison.compared}
    each = " or scores, each circuit's on a scale of its own" if len(scales) > 1 else ""
    return [Folded(f"The edges and their effects{each}", [table, rest])]
