"""`patch=path`: what chosen paths do to the metric, or who feeds a node, level by level backward."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from acdc.files import write_atomically, write_csv
from acdc.jobs.common import Outcome, progress_bar
from acdc.jobs.prepare import Prepared
from acdc.jobs.resolved import resolved_yaml
from acdc.patching import path
from acdc.patching.path_result import PatchedPaths
from acdc.report.html import configuration, notes_section, write_page
from acdc.report.numbers import number
from acdc.report.pairs import pairs_section
from acdc.report.path_tables import levels_section, levels_tree, path_maps_section, paths_section, paths_table
from acdc.report.paths import draw_levels, draw_paths


def work(prepared: Prepared, folder: Path, console: Console) -> Outcome:
    """Patch the chosen paths; write `patch.csv`, `patch.npz`, pictures and `report.html`."""
    start = time.monotonic()
    with progress_bar(console, "patching", "paths") as progress:
        patched = path.patch(prepared.experiment, prepared.settings.patch, progress)
    seconds = time.monotonic() - start
    if patched.root:
        for direction, _ in patched.directions():
            console.print(levels_tree(patched, direction), highlight=False)
    else:
        console.print(paths_table(patched))
    files = _write(patched, prepared, folder)
    return {**_metrics(patched), "seconds": round(seconds, 3)}, files


def _metrics(patched: PatchedPaths) -> dict[str, Any]:
    """Numbers for `metrics.json`: both ends of the scale, how many paths, the strongest of each map."""
    metrics: dict[str, Any] = {
        "metric": patched.metric,
        "clean": patched.clean,
        "corrupted": patched.corrupted,
        "paths": sum(len(one.paths) for one in patched.maps),
        "pairs": len(patched.maps[0].clean),
    }
    for one in patched.maps:
        best = int(one.importance.abs().argmax())
        strongest = one.paths[best]
        metrics[f"{one.name}_strongest"] = f"{strongest.senders.name}->{strongest.receivers.name}"
        metrics[f"{one.name}_recovery"] = float(one.recovery[best])
        metrics[f"{one.name}_effect"] = float(one.importance[best])
        if one.level:
            metrics[f"{one.name}_followed"] = ", ".join(one.followed)
    return metrics


def _write(patched: PatchedPaths, prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Every file of the job but `metrics.json`."""
    experiment, notes = prepared.experiment, list(prepared.notes)
    maps = [file for one in patched.maps for file in draw_paths(one, patched.metric, folder)]
    levels: list[Path] = []
    if patched.root:
        levels, warning = draw_levels(patched, experiment.graph, folder)
        notes += [warning] * bool(warning)
    files = {file.name: file for file in [*maps, *levels]}
    files |= {name: folder / name for name in ("patch.csv", "patch.npz", "report.html")}
    write_csv(files["patch.csv"], patched.rows())
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **patched.arrays())
    write_atomically(files["patch.npz"], arrays.getvalue())
    sections = [
        notes_section(notes),
        levels_section(patched, [file for file in levels if file.suffix == ".svg"]),
        path_maps_section(patched, [file for file in maps if file.suffix == ".svg"]),
        paths_section(patched),
        *([pairs_section(prepared.check)] if prepared.check is not None else []),
        configuration(resolved_yaml(prepared)),
    ]
    n_paths = sum(len(one.paths) for one in patched.maps)
    write_page(
        files["report.html"],
        f"Path patching · {experiment.task.name} · {experiment.model.name}",
        f"{n_paths:,} paths of {experiment.model.name}, one at a time, on {len(experiment.pairs)} pairs of the task"
        f" {experiment.task.name}. Recovery is 1 at the clean run's {patched.metric} of {number(patched.clean)} and 0"
        f" at the corrupted run's of {number(patched.corrupted)}.",
        sections,
    )
    return files
