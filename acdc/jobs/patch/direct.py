"""`patch=direct`: what each part of the model writes into the logit difference itself."""

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
from acdc.patching import direct
from acdc.patching.direct import Direct
from acdc.report.direct import draw_shares, shares_section, shares_table
from acdc.report.html import configuration, notes_section, write_page
from acdc.report.numbers import number
from acdc.report.pairs import pairs_section


def work(prepared: Prepared, folder: Path, console: Console) -> Outcome:
    """Take the logit difference apart; write `direct.csv`, `direct.npz`, the pictures and `report.html`."""
    start = time.monotonic()
    with progress_bar(console, "direct shares", "sums") as progress:
        found = direct.patch(prepared.experiment, prepared.settings.patch, progress)
    seconds = time.monotonic() - start
    console.print(shares_table(found))
    files = _write(found, prepared, folder)
    return {**_metrics(found), "seconds": round(seconds, 3)}, files


def _metrics(found: Direct) -> dict[str, Any]:
    """Numbers for `metrics.json`: the metric of both runs, and the largest share of each way."""
    metrics: dict[str, Any] = {
        "metric": found.metric,
        "clean": float(found.clean.mean()),
        "corrupted": float(found.corrupted.mean()),
        "pairs": len(found.clean),
    }
    for one in found.shares:
        means = one.clean.mean(-1)
        metrics[f"{one.by}_parts"] = len(one.parts)
        metrics[f"{one.by}_largest"] = str(one.parts[int(means.argmax())])
        metrics[f"{one.by}_largest_share"] = float(means.max())
    return metrics


def _write(found: Direct, prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Every file of the job but `metrics.json`."""
    pictures = {one.by: draw_shares(one, found.metric, folder) for one in found.shares}
    files = {path.name: path for paths in pictures.values() for path in paths}
    files |= {name: folder / name for name in ("direct.csv", "direct.npz", "report.html")}
    write_csv(files["direct.csv"], found.rows())
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **found.arrays())
    write_atomically(files["direct.npz"], arrays.getvalue())
    experiment = prepared.experiment
    sections = [
        notes_section(prepared.notes),
        *(shares_section(found, one, [p for p in pictures[one.by] if p.suffix == ".svg"]) for one in found.shares),
        *([pairs_section(prepared.check)] if prepared.check is not None else []),
        configuration(resolved_yaml(prepared)),
    ]
    write_page(
        files["report.html"],
        f"Direct logit attribution · {experiment.task.name} · {experiment.model.name}",
        f"What each part of {experiment.model.name} writes into the logit difference itself, on"
        f" {len(experiment.pairs)} pairs of the task {experiment.task.name}: {number(float(found.clean.mean()))} on"
        f" clean and {number(float(found.corrupted.mean()))} on corrupted prompts, each with its own final norm's"
        " scale.",
        sections,
    )
    return files
