"""`patch=attribution`: the effect of every site estimated from gradients, beside the real one."""

from __future__ import annotations

import io
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
from acdc.patching import attribution
from acdc.patching.attribution import Attributed
from acdc.report.attribution import (
    agreement_section,
    agreement_table,
    disagreement_section,
    disagreement_table,
    draw_agreement,
    of_map,
)
from acdc.report.html import configuration, notes_section, number, write_page
from acdc.report.maps import draw_map
from acdc.report.pairs import pairs_section
from acdc.report.patching import maps_section, sites_section, sites_table

ESTIMATED = "The sites that matter most, as estimated"


def work(prepared: Prepared, folder: Path, console: Console) -> Outcome:
    """Estimate the chosen sites and patch them; write `attribution.csv`, `attribution.npz`, `disagreements.csv`, the
    maps, the scatter plots and `report.html`."""
    start = time.monotonic()
    with progress_bar(console, "attribution", "sites") as progress:
        found = attribution.patch(prepared.experiment, prepared.settings.patch, progress)
    seconds = time.monotonic() - start
    console.print(sites_table(found.estimated, ESTIMATED))
    if found.agreements:
        console.print(agreement_table(found))
    if found.disagreements:
        console.print(disagreement_table(found))
    files = _write(found, prepared, folder)
    return {**_metrics(found), "seconds": round(seconds, 3)}, files


def _metrics(found: Attributed) -> dict[str, Any]:
    """Numbers for `metrics.json`: both ends of the scale, how much was estimated, the correlations of each map."""
    estimated = found.estimated
    metrics: dict[str, Any] = {
        "metric": estimated.metric,
        "clean": estimated.clean,
        "corrupted": estimated.corrupted,
        "sites": sum(len(one.grid) for one in estimated.maps),
        "pairs": len(estimated.maps[0].clean),
    }
    for one in estimated.maps:
        best = int(one.importance.flatten().abs().argmax())
        metrics[f"{one.grid.kind.name}_{one.direction}_strongest"] = str(list(one.grid)[best])
    for both in found.agreements:
        name = f"{both.real.grid.kind.name}_{both.real.direction}"
        for what, value in (("pearson", both.pearson), ("spearman", both.spearman)):
            metrics[f"{name}_{what}"] = None if math.isnan(value) else value
    return metrics


def _write(found: Attributed, prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Every file of the job but `metrics.json`."""
    estimated, settings = found.estimated, prepared.settings.patch
    maps = [path for one in estimated.maps for path in draw_map(one, estimated.metric, folder, estimated=True)]
    plots = [
        path for one in found.agreements for path in draw_agreement(one, estimated.metric, of_map(found, one), folder)
    ]
    files = {path.name: path for path in [*maps, *plots]}
    files |= {name: folder / name for name in ("attribution.csv", "attribution.npz", "report.html")}
    write_csv(files["attribution.csv"], found.rows())
    if found.disagreements:
        files["disagreements.csv"] = folder / "disagreements.csv"
        write_csv(files["disagreements.csv"], found.disagreement_rows())
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **found.arrays())
    write_atomically(files["attribution.npz"], arrays.getvalue())
    experiment = prepared.experiment
    corrections = [name for name, on in (("QK fix", settings.qk_fix), ("GradDrop", settings.grad_drop)) if on]
    sections = [
        notes_section(prepared.notes),
        agreement_section(found, [path for path in plots if path.suffix == ".svg"]),
        disagreement_section(found),
        maps_section(estimated, [path for path in maps if path.suffix == ".svg"], "attribution.csv"),
        sites_section(estimated, ESTIMATED),
        *([pairs_section(prepared.check)] if prepared.check is not None else []),
        configuration(resolved_yaml(prepared)),
    ]
    write_page(
        files["report.html"],
        f"Attribution patching · {experiment.task.name} · {experiment.model.name}",
        f"The effect of patching each site of {experiment.model.name}, estimated from gradients on"
        f" {len(experiment.pairs)} pairs of the task {experiment.task.name}"
        + f" with AtP*'s {' and '.join(corrections)}"
        * bool(corrections)
        + f". Recovery is 1 at the clean run's {estimated.metric} of {number(estimated.clean)} and 0 at the corrupted"
        f" run's of {number(estimated.corrupted)}.",
        sections,
    )
    return files
