"""`job=evaluate circuit=FILE`: how well circuits do, and how they stand against known ones.

Each function of `PARTS` looks at one side of the circuits; what all of them say becomes `evaluate.json`,
`evaluate.csv`, plots and one report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from acdc.evaluation.faithfulness import by_partner, faithfulness
from acdc.evaluation.grading import grade_all, known_circuits
from acdc.evaluation.roc import plot_roc
from acdc.files import write_csv, write_json
from acdc.jobs.common import Outcome, config_yaml, do_in_one_go
from acdc.jobs.prepare import Prepared
from acdc.jobs.settings import EvaluateSettings
from acdc.report.grades import (
    areas_table,
    faithfulness_section,
    faithfulness_table,
    grades_section,
    grades_table,
    partners_line,
    partners_section,
)
from acdc.report.html import Section, configuration, notes_section, write_page
from acdc.report.pairs import pairs_section
from acdc.tracking import say

MOST_ON_CONSOLE = 8  # circuits whose grades are listed one by one


@dataclass(frozen=True)
class Part:
    """What one part of an evaluation says.

    Attributes
    ----------
    name, values: its key in `evaluate.json`, and what stands there.
    rows: lines of `evaluate.csv`: circuit, against (a known circuit, or nothing), measure, value.
    metrics: numbers for `metrics.json` and trackers. shown: for the console. files: that it wrote, by name.
    """

    name: str
    values: Any
    rows: list[tuple[str, str, str, float | None]]
    metrics: Mapping[str, Any]
    shown: list[RenderableType]
    sections: list[Section]
    files: Mapping[str, Path] = field(default_factory=dict)


def run(prepared: Prepared, folder: Path, console: Console) -> None:
    """Evaluate the circuits and write everything about them into an existing folder."""
    experiment, circuits = prepared.experiment, prepared.circuits

    def work() -> Outcome:
        parts = [part(prepared, folder) for part in PARTS]
        for part in parts:
            for shown in part.shown:
                say(console, shown) if isinstance(shown, str) else console.print(shown)
        files = {name: folder / name for name in ("evaluate.json", "evaluate.csv", "report.html")}
        about = {"task": experiment.task.name, "model": experiment.model.name, "metric": experiment.metric_name}
        about |= {"ablation": experiment.ablation.name, "circuits": list(circuits), "notes": list(prepared.notes)}
        write_json(files["evaluate.json"], about | {part.name: part.values for part in parts})
        header = ("circuit", "against", "measure", "value")
        write_csv(files["evaluate.csv"], [dict(zip(header, row, strict=True)) for part in parts for row in part.rows])
        sections = [section for part in parts for section in part.sections]
        if prepared.check is not None:
            sections.append(pairs_section(prepared.check))
        what = next(iter(circuits)) if len(circuits) == 1 else f"{len(circuits)} circuits"
        write_page(
            files["report.html"],
            f"Evaluation · {experiment.task.name} · {experiment.model.name}",
            f"{what} in {experiment.model.name}, on {len(experiment.pairs)} pairs of the task {experiment.task.name}"
            f" with ablation={experiment.ablation.name}.",
            [notes_section(prepared.notes), *sections, configuration(config_yaml(prepared))],
        )
        metrics = {key: value for part in parts for key, value in part.metrics.items()}
        return metrics, {name: path for part in parts for name, path in part.files.items()} | files

    do_in_one_go(prepared, folder, console, work)
    say(console, f"{'report':<20} {folder / 'report.html'}")


def _faithfulness(prepared: Prepared, folder: Path) -> Part:
    """Each circuit by complete evaluations; with each corrupted partner alone, where there are several."""
    experiment, circuits = prepared.experiment, prepared.circuits
    results = {name: _finite(faithfulness(experiment, circuit)) for name, circuit in circuits.items()}
    rows = [(name, "", key, value) for name, values in results.items() for key, value in values.items()]
    shown: list[RenderableType] = [faithfulness_table(results, experiment.metric_name)]
    sections = [faithfulness_section(results, experiment.metric_name)]
    metrics: dict[str, Any] = {"circuits": len(circuits), "metric": experiment.metric_name}
    values: dict[str, Any] = dict(results)
    if len(circuits) == 1:
        ((name, circuit),) = circuits.items()
        metrics |= results[name]
        if partners := [_finite(one) for one in by_partner(experiment, circuit)]:
            values = {name: results[name] | {"by_partner": partners}}
            shown.append(partners_line(partners))
            sections.append(partners_section(partners, experiment.metric_name))
            rows += [(name, "", f"{key}, partner {i}", v) for i, one in enumerate(partners) for key, v in one.items()]
    return Part("faithfulness", values, rows, metrics, shown, sections)


def _grades(prepared: Prepared, folder: Path) -> Part:
    """Against every known circuit of the task."""
    job, circuits = prepared.settings.job, prepared.circuits
    assert isinstance(job, EvaluateSettings)
    projections = any(circuit.graph.projection_edges for circuit in circuits.values())
    truths, absent = known_circuits(prepared.experiment, projections, job.truth)
    graded = grade_all(circuits, truths, job.absolute)
    files: dict[str, Path] = {}
    for of in ("edges", "nodes") if graded else ():
        curves = {result.label: getattr(result.curve, of) for result in graded}
        for kind in ("svg", "png"):
            name = f"roc_{of}.{kind}"
            files[name] = plot_roc(curves, folder / name, title=f"{prepared.experiment.task.name}, over {of}")
    rows: list[tuple[str, str, str, float | None]] = []
    metrics: dict[str, Any] = {}
    for result in graded:
        for name in result.points:
            rows += [(name, result.label, key, value) for key, value in result.rates(name).items()]
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


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """A recovery that does not exist is None: the model with and without its edges gives the same."""
    return values if math.isfinite(values["recovery"]) else {**values, "recovery": None}


PARTS: tuple[Callable[[Prepared, Path], Part], ...] = (_faithfulness, _grades)
