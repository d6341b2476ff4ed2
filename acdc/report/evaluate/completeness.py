"""Completeness: the knock-outs in a table, and circuit against model in a plot."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from matplotlib.figure import Figure as Drawing

from acdc.evaluation.completeness import CompletenessOfCircuit, CompletenessPart
from acdc.report.evaluate.shown import Shown, by_circuit
from acdc.report.numbers import number, share
from acdc.report.style import BLUE, GREY, new_figure
from acdc.report.view import Figure, Section, Table

_HEADER = ["", "mean", "of clean − corrupted", "largest"]


def shown(part: CompletenessPart) -> Shown:
    """Say what knock-outs do to each circuit, to the model, and to random circuits."""
    says = Shown([], [])
    for title, stem, one in by_circuit(part):
        lines = [_line("circuit", one.own.summary())]
        if one.random:
            lines.append(_line(f"random circuits ({len(one.randoms)})", one.random.mean))
        table = Table(f"Completeness{title}: |{part.metric} of C∖K − of M∖K|", _HEADER, lines)
        says.console.append(table)
        text = (
            f"{len(one.own.knockouts)} random sets K of the circuit's {part.kind} are taken out of the circuit C and"
            " out of the model M. A complete circuit goes with the model whatever is taken out: its dots lie on the"
            " diagonal."
        )
        plot = Figure(f"completeness{stem}", partial(_draw, one, part.metric), "circuit and model without K")
        says.sections.append(Section(f"Completeness{title}", [text, table, plot]))
    return says


def _line(name: str, numbers: Mapping[str, float | None]) -> list[str]:
    return [name, number(numbers.get("mean")), share(numbers.get("mean_share")), number(numbers.get("max"))]


def _draw(one: CompletenessOfCircuit, metric: str) -> Drawing:
    """Draw the metric of the circuit against that of the model, a dot for each knock-out."""
    figure = new_figure((5.2, 5.0))
    axes = figure.add_subplot()
    groups = [("random circuits", GREY, [k for other in one.randoms for k in other.knockouts])] if one.randoms else []
    groups.append(("the circuit", BLUE, list(one.own.knockouts)))
    values = [value for _, _, knockouts in groups for k in knockouts for value in (k.model, k.circuit)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.05 * ((high - low) or 1.0)
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color="0.75", linewidth=1, linestyle=":")
    for label, colour, knockouts in groups:
        x, y = [k.model for k in knockouts], [k.circuit for k in knockouts]
        axes.scatter(x, y, s=16, color=colour, alpha=0.7, linewidths=0, label=label)
    axes.set(xlabel=f"{metric}, model without K", ylabel=f"{metric}, circuit without K", xlim=limits, ylim=limits)
    axes.legend()
    return figure
