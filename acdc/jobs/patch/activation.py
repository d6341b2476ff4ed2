"""`patch=activation`: what every site does to the metric when it gets its value from the other run."""

from __future__ import annotations

import io
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from acdc.files import write_atomically, write_csv
from acdc.jobs.common import Outcome, progress_bar
from acdc.jobs.prepare import Prepared
from acdc.jobs.resolved import resolved_yaml
from acdc.patching import activation
from acdc.patching.result import CLASSES, Patched
from acdc.report.html import configuration, notes_section, number, write_page
from acdc.report.maps import draw_classes, draw_map
from acdc.report.pairs import pairs_section
from acdc.report.patching import classes_section, maps_section, sites_section, sites_table, skipped_notes
from acdc.tracking import say

log = logging.getLogger(__name__)


def work(prepared: Prepared, folder: Path, console: Console) -> Outcome:
    """Patch the chosen sites; write `patch.csv`, `patch.npz`, the maps and `report.html`."""
    start = time.monotonic()
    with progress_bar(console, "patching", "sites") as progress:
        patched = activation.patch(prepared.experiment, prepared.settings.patch, progress)
    seconds = time.monotonic() - start
    console.print(sites_table(patched))
    for note in (skipped := skipped_notes(patched)):
        log.warning("%s", note)
        say(console, f"note: {note}")
    files = _write(patched, [*prepared.notes, *skipped], prepared, folder)
    return {**_metrics(patched), "seconds": round(seconds, 3)}, files


def _metrics(patched: Patched) -> dict[str, Any]:
    """Numbers for `metrics.json`: both ends of the scale, how much was patched, the best site of each map."""
    metrics: dict[str, Any] = {
        "metric": patched.metric,
        "clean": patched.clean,
        "corrupted": patched.corrupted,
        "sites": sum(len(one.grid) - one.skipped for one in patched.maps),
        "skipped": sum(one.skipped for one in patched.maps),
        "pairs": len(patched.maps[0].clean),
    }
    for one in patched.maps:
        name = f"{one.grid.kind.name}_{one.direction}"
        best = int(one.importance.nan_to_num(0).abs().flatten().argmax())
        metrics[f"{name}_strongest"] = str(list(one.grid)[best])
        metrics[f"{name}_recovery"] = float(one.recovery.flatten()[best])
        if one.skipped:
            metrics |= {f"{name}_skipped": one.skipped, f"{name}_largest_skipped": one.largest_skipped}
    if classes := Counter(patched.classes().values()):
        metrics |= {name: classes[name] for name in CLASSES.values()}
    return metrics


def _write(patched: Patched, notes: list[str], prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Every file of the job but `metrics.json`; `notes` stand first on the page."""
    maps = [path for one in patched.maps for path in draw_map(one, patched.metric, folder)]
    quadrants = [path for pair in patched.both() for path in draw_classes(*pair, patched, folder)]
    files = {path.name: path for path in [*maps, *quadrants]}
    files |= {name: folder / name for name in ("patch.csv", "patch.npz", "report.html")}
    write_csv(files["patch.csv"], patched.rows())
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **patched.arrays())
    write_atomically(files["patch.npz"], arrays.getvalue())
    experiment = prepared.experiment
    sites = ", ".join(dict.fromkeys(one.grid.kind.name for one in patched.maps))
    sections = [
        notes_section(notes),
        maps_section(patched, [path for path in maps if path.suffix == ".svg"]),
        classes_section(patched, [path for path in quadrants if path.suffix == ".svg"]),
        sites_section(patched),
        *([pairs_section(prepared.check)] if prepared.check is not None else []),
        configuration(resolved_yaml(prepared)),
    ]
    write_page(
        files["report.html"],
        f"Activation patching · {experiment.task.name} · {experiment.model.name}",
        f"{sites} of {experiment.model.name}, patched one site at a time on {len(experiment.pairs)} pairs of the task"
        f" {experiment.task.name}. Recovery is 1 at the clean run's {patched.metric} of {number(patched.clean)} and 0"
        f" at the corrupted run's of {number(patched.corrupted)}.",
        sections,
    )
    return files
