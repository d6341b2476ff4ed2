"""How much of a circuit is found again."""

from __future__ import annotations

from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console, RenderableType

from acdc.errors import AcdcError
from acdc.evaluation.stability import stability
from acdc.jobs.common import progress_bar
from acdc.jobs.evaluate.part import Part, Row, of, randoms_of, settings_of
from acdc.jobs.prepare import Prepared
from acdc.report.grid import Grid
from acdc.report.html import Section
from acdc.report.numbers import share

_CHANGED = {"pairs": "pairs, resampled", "seeds": "seed of the task", "orders": "order of the heads"}
_HEADER = ["changed", "Jaccard, mean", "least", "most", "of each other", "edges"]


def look(prepared: Prepared, folder: Path, console: Console) -> Part:
    """Find each circuit again with one thing changed."""
    job = settings_of(prepared)
    values: dict[str, Any] = {}
    rows: list[Row] = []
    metrics: dict[str, Any] = {}
    shown: list[RenderableType] = []
    sections = []
    for name, circuit in prepared.circuits.items():
        try:
            with progress_bar(console, "finding again", "searches") as progress:
                again = stability(
                    prepared.experiment, circuit, prepared.settings.task, job.stability, job.seed, progress=progress
                )
        except AcdcError as error:  # pairs that another seed does not give, say: the other parts are worth having
            values[name] = {"absent": str(error)}
            shown.append(f"not found again: {error}")
            sections.append(Section(f"Stability{of(name, prepared)}", f"<p>{escape(str(error))}.</p>"))
            continue
        values[name] = again.as_dict()
        lines = []
        for kind in again.found:
            numbers = again.summary(kind)
            lines.append(_line(_CHANGED[kind], numbers))
            rows += [(name, "", f"jaccard, {kind}, {key}", value) for key, value in numbers.items()]
            if len(prepared.circuits) == 1:
                metrics[f"jaccard_{kind}"] = numbers["mean"]
        if randoms := randoms_of(prepared, circuit):
            indices = [circuit.jaccard(other) for other in randoms]
            numbers = {"mean": fmean(indices), "min": min(indices), "max": max(indices), "edges": len(circuit)}
            values[name]["random"] = numbers
            rows.append((name, "", "jaccard, random, mean", numbers["mean"]))
            lines.append(_line(f"random circuits ({len(randoms)})", numbers))
        grid = Grid(f"Stability{of(name, prepared)}, searches of each kind: {job.stability}", _HEADER, lines)
        shown.append(grid.console())
        recurrence = [[str(edge), "yes" if edge in circuit else "", share(x)] for edge, x in again.recurrence().items()]
        edges = Grid("", ["edge", "in the circuit", "found again"], recurrence, left=2)
        html = (
            "<p>The circuit's own method searches again with one thing changed: pairs drawn with replacement, the"
            " task's pairs by another seed, or heads numbered otherwise, so that they are tested in another order. The"
            " Jaccard index of two circuits is their common edges over all their edges.</p>"
            + grid.html()
            + f"<details><summary>How often each edge is found again</summary>{edges.html()}</details>"
        )
        sections.append(Section(f"Stability{of(name, prepared)}", html))
    return Part("stability", values, rows, metrics, shown, sections)


def _line(name: str, numbers: dict[str, float]) -> list[str]:
    indices = [f"{numbers[key]:.2f}" if key in numbers else "—" for key in ("mean", "min", "max", "between")]
    return [name, *indices, f"{numbers['edges']:,.0f}"]
