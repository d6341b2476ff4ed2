"""Against every known circuit of the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from acdc.evaluation.grading import grade_all, known_circuits
from acdc.evaluation.roc import plot_roc
from acdc.jobs.evaluate.part import Part, Row, randoms_of, settings_of
from acdc.jobs.prepare import Prepared
from acdc.report.grades import areas_table, grades_section, grades_table

MOST_ON_CONSOLE = 8  # circuits whose grades are listed one by one


def look(prepared: Prepared, folder: Path, console: Console) -> Part:
    """Grade the circuits, or the scores of the one there is, beside random circuits of the same size."""
    job, circuits = settings_of(prepared), prepared.circuits
    projections = any(circuit.graph.projection_edges for circuit in circuits.values())
    truths, absent = known_circuits(prepared.experiment, projections, job.truth)
    randoms = {name: randoms_of(prepared, circuit) for name, circuit in circuits.items()} if truths else {}
    graded = grade_all(circuits, truths, job.absolute, randoms)
    files: dict[str, Path] = {}
    for of in ("edges", "nodes") if graded else ():
        curves = {result.label: getattr(result.curve, of) for result in graded}
        for kind in ("svg", "png"):
            name = f"roc_{of}.{kind}"
            files[name] = plot_roc(curves, folder / name, title=f"{prepared.experiment.task.name}, over {of}")
    rows: list[Row] = []
    metrics: dict[str, Any] = {}
    for result in graded:
        for name in result.points:
            rows += [(name, result.label, key, value) for key, value in result.rates(name).items()]
            rows += [(name, result.label, f"{key}, random", v) for key, v in result.random.get(name, {}).items()]
            if len(circuits) == 1:
                metrics |= {f"{result.label}_{key}": value for key, value in result.rates(name).items()}
        what = next(iter(circuits)) if len(circuits) == 1 else "all"
        rows += [(what, result.label, key, value) for key, value in result.areas().items()]
        metrics |= {f"{result.label}_{key}": value for key, value in result.areas().items()}
    shown: list[RenderableType] = [grades_table(graded)] if graded and len(circuits) <= MOST_ON_CONSOLE else []
    shown += [areas_table(graded)] if graded else []
    shown += [f"not graded: {line}" for line in absent]
    values = {"against": [result.as_dict() for result in graded], "absent": absent}
    section = grades_section(graded, absent, [path for name, path in files.items() if name.endswith("svg")])
    return Part("grades", values, rows, metrics, shown, [section], files)
