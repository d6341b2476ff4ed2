"""Minimality: what edges are worth in a table, and against their effects in a plot."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from matplotlib.figure import Figure as Drawing

from acdc.evaluation.minimality import MinimalityOfCircuit, MinimalityPart, Pruned
from acdc.report.evaluate.shown import Shown, by_circuit
from acdc.report.numbers import number, share
from acdc.report.style import BLUE, ORANGE, new_figure
from acdc.report.view import Block, Figure, Folded, Section, Table


def shown(part: MinimalityPart) -> Shown:
    """Say what edges are worth inside each circuit, and what became of the circuit that was pruned again."""
    says = Shown([], [])
    for title, stem, one in by_circuit(part):
        lines = [_line("circuit", one.of_own())]
        if one.randoms:
            lines.append(_line(f"random circuits ({part.n_randoms})", one.of_randoms()))
        tau = "τ" if one.threshold is None else f"τ = {one.threshold:g}"
        table = Table(
            f"Minimality{title}: what an edge is worth inside the circuit",
            ["", "edges", f"below {tau}", "share", "median", "least"],
            lines,
        )
        says.console.append(table)
        blocks: list[Block] = [
            "An edge's worth is the loss of the circuit without it less the loss of the circuit. An edge that was kept"
            " for its effect while others were still there may be worth less in the end, with the original ACDC too.",
            table,
        ]
        if one.pruned and one.threshold is not None:
            line = _pruned(one, one.pruned, one.threshold)
            says.console.append(line)
            blocks.append(f"{line[0].upper()}{line[1:]}.")
        plot = partial(_draw, one)
        blocks.append(Figure(f"minimality{stem}", plot, "worth of each edge against its effect or score"))
        says.sections.append(
            Section(f"Minimality{title}", [*blocks, Folded("The edges, the least first", [_edges(one)])])
        )
    return says


def _line(name: str, numbers: Mapping[str, float | None]) -> list[str]:
    edges, below, part, median, least = numbers.values()
    return [name, number(edges), number(below), share(part), number(median), number(least)]


def _pruned(one: MinimalityOfCircuit, pruned: Pruned, threshold: float) -> str:
    before, after = (metrics["recovery"] for metrics in (pruned.before, pruned.circuit.metrics))
    return (
        f"pruned again at τ = {threshold:g}: {len(pruned.removed)} of {len(one.circuit)} edges went,"
        f" {len(pruned.circuit)} are left; recovery {share(before)} before, {share(after)} after; circuit.pruned.json"
    )


def _edges(one: MinimalityOfCircuit) -> Table:
    rows = [
        [edge.sender, edge.receiver, number(worth), number(one.circuit.edges[edge])]
        for edge, worth in sorted(one.own.worth.items(), key=lambda item: item[1])
    ]
    return Table("", ["sender", "receiver", "worth", "effect or score in the file"], rows, left=2)


def _draw(one: MinimalityOfCircuit) -> Drawing:
    """Draw what each edge is worth inside the circuit against its effect or score; dotted: the threshold."""
    figure = new_figure((5.2, 5.0))
    axes = figure.add_subplot()
    threshold = one.threshold
    x, y = [one.circuit.edges[edge] for edge in one.own.worth], list(one.own.worth.values())
    below = [threshold is not None and value < threshold for value in y]
    axes.scatter(x, y, s=16, c=[ORANGE if low else BLUE for low in below], alpha=0.75, linewidths=0)
    linear = abs(threshold) if threshold else max((abs(v) for v in [*x, *y]), default=1.0) / 100 or 1.0
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("symlog", linthresh=linear)
    ends = [min([*x, *y, 0.0]), max([*x, *y, linear])]
    axes.plot(ends, ends, color="0.75", linewidth=1, linestyle=":")
    if threshold is not None:
        axes.axhline(threshold, color=ORANGE, linewidth=1, linestyle=":", label=f"τ = {threshold:g}")
        axes.legend()
    axes.set(xlabel="effect or score in the circuit file", ylabel="worth inside the finished circuit")
    return figure
