"""MIB's areas: CPR and CMD in a table, recovery over sizes of circuits in a plot."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure as Drawing

from acdc.evaluation.areas import FRACTIONS, Areas, AreasOfCircuit, AreasPart
from acdc.evaluation.part import Spread
from acdc.report.evaluate.shown import Shown, by_circuit
from acdc.report.numbers import number, share
from acdc.report.style import BLUE, GREY, ORANGE, new_figure
from acdc.report.view import Figure, Section, Table

_TITLE = "Areas over sizes of circuits (MIB)"


def shown(part: AreasPart) -> Shown:
    """Say what the areas of each circuit's scores are, and how much they depend on ties."""
    if part.absent:
        return Shown([f"no areas: {part.absent}"], [Section(_TITLE, [f"{part.absent}."])])
    says = Shown([], [])
    for title, stem, one in by_circuit(part):
        lines = [["scores", number(one.areas.cpr), number(one.areas.cmd)]]
        if one.reversed:
            lines.append(["with ties reversed", number(one.reversed.cpr), number(one.reversed.cmd)])
        if one.random:
            lines.append([f"random scores ({len(one.randoms)})", *(_both(one.random, key) for key in ("cpr", "cmd"))])
        table = Table(f"{_TITLE}{title}", ["", "CPR", "CMD"], lines)
        says.console.extend([table, *([one.note] if one.note else [])])
        text = (
            f"{len(one.circuit.tested):,} of {len(one.circuit.graph):,} edges have a score; one without has 0. At each"
            " share of the edges the best ones are kept alone, less those on no path. CPR is the area under their"
            " recovery f, of edges ranked by score; CMD the area between f and 1, ranked by size. Low CMD and a CPR"
            " near 1 go together in a good ranking; CPR alone can be gamed."
        )
        plot = Figure(f"areas{stem}", partial(_draw, one), "recovery over shares of the edges")
        says.sections.append(Section(f"{_TITLE}{title}", [text, table, one.note, plot, _sizes(one.areas)]))
    says.console.extend(f"no areas: {name} has {why}" for name, why in part.found.items() if isinstance(why, str))
    return says


def _both(random: Spread, key: str) -> str:
    return f"{number(random.mean[key])} ± {number(random.sd[key])}"


def _sizes(areas: Areas) -> Table:
    rows = [
        [f"{fraction:g}", f"{a.on_path:,}", share(a.recovery), f"{b.on_path:,}", share(b.recovery)]
        for fraction, a, b in zip(FRACTIONS, areas.signed, areas.absolute, strict=True)
    ]
    return Table("", ["share of the edges", "on a path, by score", "f", "on a path, by size", "f"], rows)


def _draw(one: AreasOfCircuit) -> Drawing:
    """Draw the recovery f over the share of the edges, by both rankings, with the range of random scores."""
    figure = new_figure((6.4, 4.4))
    axes = figure.add_subplot()
    axes.axhline(1, color="0.75", linewidth=1, linestyle=":")
    if one.randoms:
        columns = list(zip(*([size.recovery for size in areas.signed] for areas in one.randoms), strict=True))
        low, high = list(map(min, columns)), list(map(max, columns))
        axes.fill_between(FRACTIONS, low, high, color=GREY, alpha=0.35, linewidth=0, label="random scores, their range")
    for label, sizes, colour, width in (
        (f"by score: CPR {one.areas.cpr:.3f}", one.areas.signed, BLUE, 3.2),
        (f"by size: CMD {one.areas.cmd:.3f}", one.areas.absolute, ORANGE, 1.6),
    ):
        ys = [size.recovery for size in sizes]
        axes.plot(FRACTIONS, ys, marker="o", markersize=4, color=colour, linewidth=width, label=label)
    axes.set_xscale("log")
    axes.set(xlabel="share of the edges", ylabel="recovery f")
    axes.legend()
    return figure
