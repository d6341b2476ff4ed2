"""`patch=ablation`: what is lost without each site and without many, what rises, and how sites interact."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from acdc.files import write_atomically, write_csv
from acdc.jobs.common import Outcome, progress_bar
from acdc.jobs.prepare import Prepared
from acdc.jobs.resolved import resolved_yaml
from acdc.patching import ablation
from acdc.patching.ablated import Ablation
from acdc.report.ablation import (
    additivity_section,
    backup_section,
    curve_section,
    effects_section,
    effects_table,
    summary_lines,
)
from acdc.report.ablation_plots import draw_backup, draw_curve, draw_effects, draw_interactions
from acdc.report.html import configuration, notes_section, write_page
from acdc.report.numbers import number
from acdc.report.pairs import pairs_section
from acdc.tracking import say

log = logging.getLogger(__name__)


def work(prepared: Prepared, folder: Path, console: Console) -> Outcome:
    """Ablate; write `patch.csv`, `knockout.csv`, `backup.csv`, `additivity.csv` as far as they were asked for,
    `patch.npz`, the pictures and `report.html`."""
    start = time.monotonic()
    with progress_bar(console, "ablating", "runs") as progress:
        result = ablation.patch(prepared.experiment, prepared.settings.patch, progress)
    seconds = time.monotonic() - start
    console.print(effects_table(result))
    for line in summary_lines(result):
        say(console, line)
    notes = []
    if prepared.settings.patch.backup and not result.backups:
        notes.append("backup: none of the sites has both a direct effect on the logits and a head or MLP behind it")
        log.warning("%s", notes[0])
        say(console, f"note: {notes[0]}")
    files = _write(result, [*prepared.notes, *notes], prepared, folder)
    return {**_metrics(result), "seconds": round(seconds, 3)}, files


def _metrics(result: Ablation) -> dict[str, Any]:
    """Numbers for `metrics.json`: both ends of the scale, how much was ablated, and the main findings."""
    site, effects = max(result.ranked(), key=lambda item: float(item[1].mean()))
    metrics: dict[str, Any] = {
        "metric": result.metric,
        "clean": float(result.scale.clean.mean()),
        "corrupted": float(result.scale.corrupted.mean()),
        "sites": sum(len(one.grid) for one in result.maps),
        "pairs": len(result.scale.clean),
        "shifted": sum(bool(row["shifted"]) for row in result.rows()),
        "strongest": result.names.name(site),
        "strongest_effect": float(effects.mean()),
    }
    if result.curve is not None:
        areas = result.curve.areas
        metrics |= {"knockout_area": areas.get(result.curve.ranking), "knockout_area_random": areas.get("random")}
    for one in result.backups:
        metrics[f"compensation_{result.names.name(one.site)}"] = one.compensation
    if rows := result.additivity_rows():
        metrics |= {"joint_effect": rows[-1]["joint"], "interaction": rows[-1]["interaction"]}
    return metrics


def _write(result: Ablation, notes: list[str], prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Every file of the job but `metrics.json`; `notes` stand first on the page."""
    tables = {
        "patch.csv": result.rows(),
        "knockout.csv": result.curve_rows(),
        "backup.csv": result.backup_rows(),
        "additivity.csv": result.additivity_rows(),
    }
    files = {name: folder / name for name, rows in tables.items() if rows}
    for name, path in files.items():
        write_csv(path, tables[name])
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **result.arrays())
    files["patch.npz"] = folder / "patch.npz"
    write_atomically(files["patch.npz"], arrays.getvalue())
    effects = draw_effects(result, folder)
    curve = [] if result.curve is None else draw_curve(result, folder)
    rising = [p for i, one in enumerate(result.backups, 1) for p in draw_backup(result, one, folder, f"backup_{i}")]
    interactions = [] if result.additivity is None else draw_interactions(result, result.additivity, folder)
    files |= {path.name: path for path in (*effects, *curve, *rising, *interactions)}
    files["report.html"] = folder / "report.html"
    experiment = prepared.experiment
    sections = [
        notes_section(notes),
        effects_section(result, _svg(effects)),
        curve_section(result, _svg(curve)),
        backup_section(result, _svg(rising)),
        additivity_section(result, _svg(interactions)),
        *([pairs_section(prepared.check)] if prepared.check is not None else []),
        configuration(resolved_yaml(prepared)),
    ]
    sites = ", ".join(one.grid.kind.name for one in result.maps)
    clean, corrupted = (number(float(end.mean())) for end in (result.scale.clean, result.scale.corrupted))
    write_page(
        files["report.html"],
        f"Ablation · {experiment.task.name} · {experiment.model.name}",
        f"{sites} of {experiment.model.name}, ablated on {len(experiment.pairs)} pairs of the task"
        f" {experiment.task.name}: in the clean run it gets {result.stands_in}. The {result.metric} is"
        f" {clean} in the clean and {corrupted} in the corrupted run.",
        sections,
    )
    return files


def _svg(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.suffix == ".svg"]
