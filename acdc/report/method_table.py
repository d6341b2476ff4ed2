"""The methods in one table: the page and the console of a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure as Drawing

from acdc.circuit import Circuit
from acdc.evaluation.comparison import CircuitComparison
from acdc.evaluation.method_table import SHARE, Judge, Judged, MethodTable
from acdc.evaluation.ranking import Size
from acdc.formats.dot import Marks
from acdc.report.comparison import comparison_section
from acdc.report.numbers import share
from acdc.report.picture import render_all
from acdc.report.roc import draw_roc
from acdc.report.style import new_figure
from acdc.report.view import Block, Bullets, Figure, Gallery, Graphic, Section, Subject, Table, View

TITLE = "The methods in one table"
COLOURS = ("#2563ab", "#c2571a", "#3f9c79", "#8e44ad", "#c0392b", "#7f6a2b", "#16a5b8", "#d16ba5", "#5d6d1e", "#34495e")
SHARED = {"alone": "#d9730d", "some": "#8fb3d9", "most": "#2f6db5", "all": "#0b2f66"}
_MOST_RECOVERY = 2.0  # of the axis; a few methods' first edges go far beyond
_SHORT = {
    "edges_at_90": "90% at",
    "on_path_at_90": "on path",
    "cpr": "CPR",
    "cmd": "CMD",
    "seconds": "s",
    "processor_seconds": "CPU s",
    "peak_mb": "MB",
}
_NOT_BRIEF = ("on_path_at_90", "processor_seconds")
_FEWEST_DIGITS = ("seconds", "processor_seconds")


def view(table: MethodTable, subject: Subject) -> View:
    """Say what is shown of a comparison of methods: the table, the curves, and the circuits of equal size."""
    judge, judged, rivals, shared = table.judge, table.judged, table.rivals, table.shared
    refused = [f"{name} has no numbers: {why}" for name, why in table.refused.items()]
    sections = [
        Section(TITLE, [methods_table(table), Bullets(refused)]),
        Section("What the columns say", [Bullets(_meanings(table))], open=False),
        Section("Recovery over the size of the circuit", [_curves(judged, "recovery")]),
    ]
    if any(size.kl is not None for one in judged for size in one.curve):
        sections.append(Section("KL over the size of the circuit", [_curves(judged, "kl")]))
    sections += [Section(f"Against the known circuit: {label}", [_roc(judge, judged, label)]) for label in judge.truths]
    sections.append(Section(f"The {judge.equal_size} best edges of each method", _circuits(rivals)))
    if shared is not None:
        plot = partial(_draw_jaccard, shared, f"Jaccard index of the {judge.equal_size} best edges")
        sections.append(Section("What they share", [Figure("jaccard", plot, "Jaccard indices"), _core(judged)]))
        sections.append(Section("Every edge of any of them", comparison_section(shared).blocks, open=False))
    experiment = judge.experiment
    return View(
        f"Methods · {subject.task} · {subject.model}",
        f"{len(rivals)} ways to find a circuit in {subject.model}, on {subject.pairs} pairs of the task {subject.task}"
        f" with metric={experiment.metric_name} and ablation={experiment.ablation.name}.",
        sections,
        [methods_table(table, brief=True), *refused],
    )


def methods_table(table: MethodTable, brief: bool = False) -> Table:
    """Make a row a method, and below that of several draws their standard deviation.

    Parameters
    ----------
    table : MethodTable
        Columns without any number are left out.
    brief : bool
        Show what fits a console: two sizes at most, one area under the ROC curve, no standard deviations.
    """
    judged = table.judged
    there = [name for name in table.judge.columns if any(one.numbers[name] is not None for one in judged)]
    columns = sorted(there, key=lambda name: name.startswith("kl_at_"))  # the many last
    if brief:
        kls = [name for name in columns if name.startswith("kl_at_")]
        left_out = {*_NOT_BRIEF, *kls[:-2], *(name for name in columns if name.startswith("auc_"))}
        columns = [name for name in columns if name not in left_out]
    rows = []
    for one in judged:
        rows.append([one.method, *(_cell(one.numbers[name], name) for name in columns)])
        if one.sd and not brief:
            rows.append([f"{one.method}, ±", *(f"{one.sd[name]:.2g}" if name in one.sd else "" for name in columns)])
    rows += [[name, "refused", *[""] * (len(columns) - 1)] for name in table.refused]
    return Table(TITLE, ["method", *map(short, columns)], rows)


def short(column: str) -> str:
    """Return a column's name as the table shows it."""
    if column.startswith("kl_at_"):
        return f"KL at {column.removeprefix('kl_at_')}"
    if column.startswith("auc"):
        return "AUC" + column.removeprefix("auc").replace("_", " ")
    return _SHORT.get(column, column)


def _cell(value: float | None, column: str) -> str:
    if value is None:
        return "—"
    if column.endswith("_at_90") or column == "peak_mb":
        return f"{value:,.0f}"
    if column in _FEWEST_DIGITS:
        return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
    return f"{value:.3f}" if column.startswith("auc") else f"{value:.3g}" if abs(value) > 1e-3 else f"{value:.1g}"


def _meanings(table: MethodTable) -> list[str]:
    """Say what the columns mean."""
    judge = table.judge
    rank = "by the size of their scores" if judge.absolute else "by their scores as they are"
    lines = [
        "all numbers are of the pairs that the circuits were found on; on others they may be worse",
        f"edges are ranked {rank}, those of a method that selects greedily by growing from the logits",
        "of the best ones those on no path from input to logits are dropped, then the circuit is evaluated in full",
        f"90% at: the least number of best edges that recovers {SHARE:.0%} of the metric; on path: how many of these"
        " lie on a path",
        "KL at N: KL(model ‖ circuit) of the N best edges, in nats",
        "CPR: area under the recovery over MIB's ten fractions, edges ranked by score; CMD: area between recovery and"
        " 1, ranked by size. Less CMD is better; CPR above 1 is more of the metric than the model itself has",
        "s: seconds by the clock; CPU s: of the processor, all threads; MB: memory that the method takes besides the"
        " model and its two runs",
        "random: mean and (±) standard deviation of random rankings; their circuit is that of the first",
    ]
    for label, truth in judge.truths.items():
        lines.append(
            f"AUC against the {label} circuit ({len(truth.edges)} edges; {', '.join(truth.sources)}): area under the"
            " ROC curve over edges, pessimistic as the original's; trapezoid: points joined by straight lines"
        )
    return [*lines, *(f"no AUC: {line}" for line in table.absent)]


def _circuits(judged: Sequence[Judged]) -> list[Block]:
    """Show the union, then one picture a method; edges are coloured by how many methods have them among their best."""
    n, size = len(judged), len(judged[0].best)
    counts = Counter(edge for one in judged for edge in one.best)
    kinds = {edge: _kind(count, n) for edge, count in counts.items()}
    colours = {edge: SHARED[kind] for edge, kind in kinds.items()}
    words = {"alone": "one method only", "some": "some", "most": "more than half", "all": f"all {n}"}
    key = {SHARED[kind]: words[kind] for kind in SHARED if kind in kinds.values()}
    graph, task = judged[0].best.graph, judged[0].best.task

    def picture(name: str, circuit: Circuit, title: str, width: str) -> Graphic:
        return Graphic(name, partial(render_all, circuit, title=title, marks=Marks(colours, key, width)))

    blocks: list[Block] = []
    if n > 1:
        drawn = Counter(edge for one in judged for edge in one.best.on_path())
        union = Circuit(graph, {edge: float(drawn[edge]) for edge in graph if edge in drawn})
        title = f"{task} · the {size} best edges of each of {n} methods"
        blocks.append(picture("circuits", union, title, "how many methods have it on a path"))
    drawings = []
    for one in judged:
        counted = f"{len(one.best):,} edges, {len(one.best.on_path()):,} on a path"
        caption = f"{one.method}: {counted}; recovery {share(one.best.metrics['recovery'])}."
        title = f"{task} · {one.method} · {size} best edges"
        drawings.append((caption, picture(f"circuit_{one.method}", one.best, title, "|score|")))
    return [*blocks, Gallery(drawings)]


def _kind(count: int, n: int) -> str:
    if count == n and n > 1:
        return "all"
    return "alone" if count == 1 else "most" if 2 * count > n else "some"


def _core(judged: Sequence[Judged]) -> str:
    """Name the edges that every method but the random ranking has among its best."""
    rivals = [one.best for one in judged if one.method != "random"]
    if len(rivals) < 2:
        return ""
    every = set.intersection(*(set(circuit) for circuit in rivals))
    edges = [edge for edge in rivals[0] if edge in every]
    text = f"{len(edges):,} of {len(rivals[0]):,} edges are among the best of all {len(rivals)} methods"
    return f"{text}{': ' if edges else ''}{', '.join(f'`{edge}`' for edge in edges)}."


# Plots.


def _styles(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """Say how each method's line looks, the same in every plot."""
    styles: dict[str, dict[str, Any]] = {}
    for one in judged:
        if one.method == "random":
            styles[one.method] = {"color": "0.55", "linestyle": ":", "linewidth": 2.0}
        else:
            i = len(styles)
            line = "-" if i < len(COLOURS) else "--"
            styles[one.method] = {"color": COLOURS[i % len(COLOURS)], "linestyle": line, "linewidth": 1.5}
    return styles


def _curves(judged: Sequence[Judged], what: str) -> Figure:
    words = {"recovery": "recovery", "kl": "KL"}
    return Figure(what, partial(_draw_curves, judged, what), f"{words[what]} of each method over edges")


def _draw_curves(judged: Sequence[Judged], what: str) -> Drawing:
    """Draw recovery or KL over the number of best edges."""
    figure = new_figure((8.4, 4.6))
    axes = figure.add_subplot()
    styles = _styles(judged)
    of: Callable[[Size], float] = lambda size: getattr(size, what)  # noqa: E731
    for one in judged:
        values = [of(size) for size in one.curve]
        axes.plot([size.edges for size in one.curve], values, label=one.method, **styles[one.method])
    axes.set_xscale("log")
    if what == "recovery":
        values = [of(size) for one in judged for size in one.curve]
        for level, dash in ((1.0, "-"), (SHARE, "--")):
            axes.axhline(level, color="0.8", linewidth=0.8, linestyle=dash, zorder=0)
        axes.set_ylim(max(min(values), -0.5) - 0.05, min(max(values), _MOST_RECOVERY) + 0.05)
    axes.set_xlabel("best edges taken")
    axes.set_ylabel("recovery (dashed: 90%)" if what == "recovery" else "KL(model ‖ circuit), nats")
    figure.legend(loc="outside right upper")
    return figure


def _roc(judge: Judge, judged: Sequence[Judged], label: str) -> Figure:
    """Draw ROC curves over edges; of several draws that of the first."""
    truth, styles = judge.truths[label], _styles(judged)
    names = {one.method: f"{one.method}, the first" if one.sd else one.method for one in judged}
    draw = partial(
        draw_roc,
        {names[one.method]: one.grades[label].edges for one in judged},
        f"{truth.name}, {label}: {len(truth.edges)} edges",
        styles={names[method]: style for method, style in styles.items()},
    )
    return Figure(f"roc_{label}", draw, f"ROC curves against the {label} circuit")


def _draw_jaccard(shared: CircuitComparison, title: str) -> Drawing:
    """Draw how alike every two circuits are, from white (nothing in common) to blue."""
    n = len(shared.labels)
    figure = new_figure((2.6 + 0.52 * n, 1.6 + 0.42 * n))
    axes = figure.add_subplot()
    axes.imshow(shared.jaccard, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(n), shared.labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n), shared.labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    for y, row in enumerate(shared.jaccard):
        for x, value in enumerate(row):
            axes.text(
                x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value > 0.6 else "0.2"
            )
    return figure
