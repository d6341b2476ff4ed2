"""The table of methods for people: on the console and as sections of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from acdc.evaluation.comparison import CircuitComparison
from acdc.evaluation.method_table import SHARE, Judge, Judged
from acdc.report.comparison import comparison_section
from acdc.report.grades import image
from acdc.report.grid import Grid, listed
from acdc.report.html import Section, picture
from acdc.report.numbers import share

TITLE = "The methods in one table"
_SHORT = {
    "edges_at_90": "90% at",
    "on_path_at_90": "on path",
    "cpr": "CPR",
    "cmd": "CMD",
    "seconds": "s",
    "processor_seconds": "CPU s",
    "peak_mb": "MB",
}
_SIDE_BY_SIDE = "display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem"
_NOT_BRIEF = ("on_path_at_90", "processor_seconds")
_LEAST_DIGITS = ("seconds", "processor_seconds")


def table_grid(
    judge: Judge, judged: Sequence[Judged], refused: Mapping[str, str] | None = None, brief: bool = False
) -> Grid:
    """A row a method; below that of several draws their standard deviation. Columns without any number are left out.

    `brief`: what fits a console: two sizes at most, one AUC, no standard deviations.
    """
    there = [name for name in judge.columns if any(one.numbers[name] is not None for one in judged)]
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
    rows += [[name, "refused", *[""] * (len(columns) - 1)] for name in refused or ()]
    return Grid(TITLE, ["method", *map(short, columns)], rows)


def short(column: str) -> str:
    """A column's name as a table shows it."""
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
    if column in _LEAST_DIGITS:
        return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
    return f"{value:.3f}" if column.startswith("auc") else f"{value:.3g}" if abs(value) > 1e-3 else f"{value:.1g}"


def sections(
    judge: Judge,
    judged: Sequence[Judged],
    refused: Mapping[str, str],
    shared: CircuitComparison | None,
    files: Mapping[str, Path],
    absent: Sequence[str],
) -> list[Section]:
    """The table with what its columns mean, the curves, and the circuits of equal size."""
    grid = table_grid(judge, judged, refused)
    found = [
        Section(TITLE, grid.html() + listed([f"{name} has no numbers: {why}" for name, why in refused.items()])),
        Section("What the columns say", listed(_meanings(judge, absent)), open=False),
        Section(
            "Recovery over the size of the circuit", _plot(files, "recovery", "recovery of each method over edges")
        ),
        Section("KL over the size of the circuit", _plot(files, "kl", "KL of each method over edges")),
    ]
    for label in judge.truths:
        plot = _plot(files, f"roc_{label}", f"ROC curves against the {label} circuit")
        found.append(Section(f"Against the known circuit: {label}", plot))
    found.append(Section(f"The {judge.equal_size} best edges of each method", _circuits(judged, files)))
    if shared is not None:
        html = _plot(files, "jaccard", "Jaccard indices") + _core(judged)
        found += [Section("What they share", html), comparison_section(shared)]
        found[-1] = Section("Every edge of any of them", found[-1].html, open=False)
    return found


def _meanings(judge: Judge, absent: Sequence[str]) -> list[str]:
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
    return [*lines, *(f"no AUC: {line}" for line in absent)]


def _plot(files: Mapping[str, Path], name: str, alt: str) -> str:
    path = files.get(f"{name}.svg")
    return image(path, alt) if path is not None else ""


def _circuits(judged: Sequence[Judged], files: Mapping[str, Path]) -> str:
    """The union, then one picture a method, each with how much it recovers."""
    html = ""
    if union := files.get("circuits.svg"):
        html += picture(union.read_text(encoding="utf-8"))
    single = ""
    for one in judged:
        if path := files.get(f"circuit_{one.method}.svg"):
            size = f"{len(one.best):,} edges, {len(one.best.on_path()):,} on a path"
            says = f"recovery {share(one.best.metrics['recovery'])}"
            title = f"<h3>{escape(one.method)}</h3><p>{size}; {says}.</p>"
            single += f"<div>{title}{image(path, one.method)}</div>"
    return f'{html}<div style="{_SIDE_BY_SIDE}">{single}</div>' if single else html


def _core(judged: Sequence[Judged]) -> str:
    """Edges that every method but the random ranking has among its best."""
    rivals = [one.best for one in judged if one.method != "random"]
    if len(rivals) < 2:
        return ""
    every = set.intersection(*(set(circuit) for circuit in rivals))
    edges = [edge for edge in rivals[0] if edge in every]
    text = f"<p>{len(edges):,} of {len(rivals[0]):,} edges are among the best of all {len(rivals)} methods"
    names = ", ".join(f"<code>{escape(str(edge))}</code>" for edge in edges)
    return f"{text}{': ' if edges else ''}{names}.</p>"
