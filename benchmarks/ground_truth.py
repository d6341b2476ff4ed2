"""Grade ACDC on models whose circuit is known: python -m benchmarks.ground_truth [--output DIR]

ACDC runs over the original's grid of thresholds (10^-5 … 10^-1, 21 of them) on both tracr tasks and both logic gates,
with zero and corrupted ablation, L2 and projection edges, as the original did. Every sweep is held against the circuit
derived from the weights, and against the published sets. Writes into DIR:

    ground_truth.json   a row for each task, prompts, ablation, truth and rule: the area under the ROC curve over edges
    details.json        every curve, and the further comparisons of docs/ground_truth.md
    ground_truth.md     the table of docs/ground_truth.md
    roc/*               the curves

Exits with 1 if a tracr task with zero ablation is below 1.000 against the published sets, what the original reports.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from acdc import Experiment, discover
from acdc.circuit import Circuit
from acdc.evaluation.derive import derive_truth
from acdc.evaluation.grading import RULES, Grade, grade
from acdc.evaluation.ground_truth import Truth, published
from acdc.files import write_atomically, write_json
from acdc.graph import Graph
from acdc.model import ModelSettings
from acdc.report.roc import draw_roc
from acdc.report.style import draw_files

THRESHOLDS = [10 ** (-5 + i / 5) for i in range(21)]
ABLATIONS = ("zero", "corrupted")


@dataclass(frozen=True)
class Sweep:
    """A task with its settings, and the truths to hold it against.

    `main`: truths of the table proper; `further`: of the comparisons that explain it.
    """

    task: str
    main: tuple[str, ...]
    further: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def prompts(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.options.items()) or "default"


SWEEPS = (
    Sweep("tracr_reverse", ("derived", "published", "published_resample")),
    Sweep("tracr_proportion", ("derived", "published_resample"), ("published",)),
    # The published sets come from runs on the original's own prompts.
    Sweep("tracr_proportion", ("published",), ("derived", "published_resample"), {"prompts": "original", "size": 50}),
    Sweep("gate_or", ("derived",)),
    Sweep("gate_and", ("derived",)),
    Sweep("tracr_reverse", (), ("derived", "published"), {"length": 4}),
    Sweep("gate_or", (), ("derived",), {"inputs": "all"}),
    Sweep("gate_and", (), ("derived",), {"inputs": "all"}),
)


def run(sweep: Sweep, ablation: str) -> tuple[Experiment, list[Circuit]]:
    """The circuits of all thresholds."""
    model = ModelSettings(name=sweep.task, device="cpu")
    experiment = Experiment.build(model, sweep.task, ablation=ablation, **sweep.options)
    return experiment, [discover(experiment, threshold=t, projection_edges=True) for t in THRESHOLDS]


def truth_of(kind: str, sweep: Sweep, experiment: Experiment, ablation: str) -> Truth | None:
    """The truth of that kind, or None where there is none: the resample sets are of corrupted ablation."""
    graph = Graph(experiment.model.config, projection_edges=True)
    if kind == "derived":
        return derive_truth(experiment, projection_edges=True)
    if kind == "published":
        return published(sweep.task, graph)
    return published(f"{sweep.task}_resample", graph) if ablation == "corrupted" else None


def grades() -> list[tuple[Sweep, str, str, bool, Grade]]:
    """Sweep, ablation, truth, whether it belongs to the table proper, and the grade."""
    found = []
    todo = [(sweep, ablation) for sweep in SWEEPS for ablation in ABLATIONS]
    for sweep, ablation in track(todo, "ACDC over 21 thresholds", console=Console(stderr=True)):
        experiment, circuits = run(sweep, ablation)
        for kind in (*sweep.main, *sweep.further):
            if truth := truth_of(kind, sweep, experiment, ablation):
                found.append((sweep, ablation, kind, kind in sweep.main, grade(circuits, truth)))
    return sorted(found, key=lambda row: not row[3])


HEADER = ["task", "prompts", "ablation", "truth", "true", "kept", "right", *RULES, "nodes"]


def table_row(sweep: Sweep, ablation: str, kind: str, graded: Grade) -> list[str]:
    """Edges of the truth; edges kept at the smallest threshold, and how many of them are right; the areas."""
    first = graded.edges.points[0]
    return [
        sweep.task,
        sweep.prompts,
        ablation,
        kind,
        str(graded.edges.true),
        str(first.kept),
        str(first.right),
        *(f"{graded.edges.auc(rule):.3f}" for rule in RULES),
        f"{graded.nodes.auc():.3f}",
    ]


def markdown(rows: list[list[str]]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write(found: list[tuple[Sweep, str, str, bool, Grade]], output: Path, console: Console) -> list[dict[str, Any]]:
    """Print the tables and write every file; returns the rows of ground_truth.json."""
    (output / "roc").mkdir(parents=True, exist_ok=True)
    texts = []
    for title, proper in (("Table", True), ("Further comparisons", False)):
        rows = [table_row(s, a, k, g) for s, a, k, is_main, g in found if is_main == proper]
        shown = Table(*HEADER, title=title)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
        texts.append(f"{title}:\n\n{markdown(rows)}")
    machine = f"{platform.machine()}, torch {torch.__version__}, {date.today()}"
    texts.append(f"Made by `python -m benchmarks.ground_truth` ({machine}).\n")
    write_atomically(output / "ground_truth.md", "\n".join(texts))
    summary = [
        {"task": s.task, "prompts": s.prompts, "ablation": a, "truth": k, "rule": rule, "auc": g.edges.auc(rule)}
        for s, a, k, is_main, g in found
        if is_main
        for rule in RULES
    ]
    write_json(output / "ground_truth.json", summary)
    details = [
        {"task": s.task, "options": s.options, "ablation": a, "against": k, **g.as_dict()} for s, a, k, _, g in found
    ]
    write_json(output / "details.json", details)
    for task, ablation in sorted({(s.task, a) for s, a, *_ in found}):
        curves = {f"{k}, prompts {s.prompts}": g.edges for s, a, k, _, g in found if (s.task, a) == (task, ablation)}
        draw = partial(draw_roc, curves, f"{task}, {ablation} ablation")
        draw_files(draw, output / "roc", f"{task}_{ablation}")
    console.print(f"written to {output}")
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description="Grade ACDC on models whose circuit is known.")
    parser.add_argument("--output", type=Path, default=Path("outputs/ground_truth"), help="folder to write")
    output = parser.parse_args().output
    console = Console()
    if not console.is_terminal:
        console.width = 150
    low = [
        row
        for row in write(grades(), output, console)
        if row["task"].startswith("tracr") and row["ablation"] == "zero" and row["truth"] == "published"
        if row["auc"] < 1 - 5e-4
    ]
    for row in low:
        console.print(f"[red]{row['task']}: {row['auc']:.3f} ({row['rule']}) where the original reports 1.000[/red]")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
