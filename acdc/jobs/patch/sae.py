"""`patch=sae`: what single features of a sparse autoencoder do to the metric, and how well it fits the task."""

from __future__ import annotations

import io
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from acdc.files import write_atomically, write_csv
from acdc.jobs.common import Outcome, progress_bar
from acdc.jobs.prepare import Prepared
from acdc.jobs.resolved import resolved_yaml
from acdc.patching import sae
from acdc.patching.features import PatchedFeatures
from acdc.report.features import (
    draw_agreement,
    draw_top,
    features_section,
    features_table,
    reconstruction_rows,
    reconstruction_section,
    site_name,
)
from acdc.report.grades import image
from acdc.report.html import Section, configuration, notes_section, write_page
from acdc.report.numbers import number
from acdc.report.pairs import pairs_section
from acdc.tracking import say

log = logging.getLogger(__name__)


def work(prepared: Prepared, folder: Path, console: Console) -> Outcome:
    """Check the reconstruction, patch the features; write `patch.csv`, `patch.npz`, plots and `report.html`."""
    start = time.monotonic()
    experiment = prepared.experiment
    with progress_bar(console, "patching", "features") as progress:
        patched = sae.patch(experiment, prepared.settings.patch, progress)
    seconds = time.monotonic() - start
    notes = sae.notes(experiment, patched)
    for name, value, _ in reconstruction_rows(patched):
        say(console, f"{name:<34} {value}")
    for note in notes:
        log.warning("%s", note)
        say(console, f"note: {note}")
    console.print(features_table(patched))
    files = _write(patched, notes, prepared, folder)
    return {**_metrics(patched), "seconds": round(seconds, 3)}, files


def _metrics(patched: PatchedFeatures) -> dict[str, Any]:
    """Numbers for `metrics.json`: both ends of the scale, the reconstruction, the best feature of each direction."""
    check = patched.reconstruction
    metrics: dict[str, Any] = {
        "metric": patched.metric,
        "clean": patched.clean,
        "corrupted": patched.corrupted,
        "sae": patched.sae.name,
        "site": patched.sae.site,
        "pairs": len(patched.maps[0].clean),
        "features": patched.sae.d_sae,
        "active": len(check.active),
        "patched": len(patched.maps[0].grid.units),
        "l0": check.l0,
        "explained": check.explained,
        "explained_later": check.explained_later,
        "spliced": check.metric,
        "spliced_recovery": check.recovered,
        "loss": check.loss,
        "loss_recovered": check.loss_recovered,
    }
    for i, one in enumerate(patched.maps):
        best = int(patched.effects(i).flatten().abs().argmax())
        metrics[f"{one.direction}_strongest"] = site_name(patched, i, best)
        metrics[f"{one.direction}_recovery"] = float(one.recovery.flatten()[best])
        metrics[f"{one.direction}_rank_correlation"] = patched.correlation(i)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}


def _write(patched: PatchedFeatures, notes: list[str], prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Every file of the job but `metrics.json`."""
    top, agreement = [], []
    for i in range(len(patched.maps)):
        top += draw_top(patched, i, folder)
        agreement += draw_agreement(patched, i, folder)
    files = {path.name: path for path in [*top, *agreement]}
    files |= {name: folder / name for name in ("patch.csv", "patch.npz", "report.html")}
    write_csv(files["patch.csv"], patched.rows())
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **patched.arrays())
    write_atomically(files["patch.npz"], arrays.getvalue())
    experiment = prepared.experiment
    pictures = [path for path in [*top, *agreement] if path.suffix == ".svg"]
    sections = [
        notes_section([*prepared.notes, *notes]),
        reconstruction_section(patched),
        Section("Effect and attribution", "".join(image(path, f"plot {path.stem}") for path in pictures)),
        features_section(patched),
        *([pairs_section(prepared.check)] if prepared.check is not None else []),
        configuration(resolved_yaml(prepared)),
    ]
    write_page(
        files["report.html"],
        f"Autoencoder features · {experiment.task.name} · {experiment.model.name}",
        f"{len(patched.maps[0].grid.units):,} features of the autoencoder {patched.sae.name} ({patched.sae.site} of"
        f" {experiment.model.name}), patched one at a time on {len(experiment.pairs)} pairs of the task"
        f" {experiment.task.name}. Recovery is 1 at the clean run's {patched.metric} of {number(patched.clean)} and 0"
        f" at the corrupted run's of {number(patched.corrupted)}.",
        sections,
    )
    return files
