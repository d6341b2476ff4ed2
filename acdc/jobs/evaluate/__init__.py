"""`job=evaluate circuit=FILE`: how well circuits do, and how they stand against known ones.

Each part is a module with `look(prepared, folder, console) -> Part`; `job.parts` says which. What all of them say
becomes `evaluate.json`, `evaluate.csv`, plots and one report.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from rich.console import Console

from acdc.files import write_csv, write_json
from acdc.jobs.common import Outcome, do_in_one_go
from acdc.jobs.evaluate.part import settings_of
from acdc.jobs.prepare import Prepared
from acdc.jobs.resolved import resolved_yaml
from acdc.report.html import configuration, notes_section, write_page
from acdc.report.pairs import pairs_section
from acdc.tracking import say


def run(prepared: Prepared, folder: Path, console: Console) -> None:
    """Evaluate the circuits and write everything about them into an existing folder."""
    experiment, circuits = prepared.experiment, prepared.circuits

    def work() -> Outcome:
        names = settings_of(prepared).chosen(len(circuits))
        parts = [importlib.import_module(f"{__name__}.{name}").look(prepared, folder, console) for name in names]
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
            [notes_section(prepared.notes), *sections, configuration(resolved_yaml(prepared))],
        )
        metrics = {key: value for part in parts for key, value in part.metrics.items()}
        return metrics, {name: path for part in parts for name, path in part.files.items()} | files

    do_in_one_go(prepared, folder, console, work)
    say(console, f"{'report':<20} {folder / 'report.html'}")
