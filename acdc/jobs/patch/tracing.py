"""`patch=tracing`: what the metric gets back when a state of the noised run is restored."""

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
from acdc.patching import tracing
from acdc.patching.traced import Traced
from acdc.report.html import configuration, notes_section, write_page
from acdc.report.pairs import pairs_section
from acdc.report.traces import draw_by_layer, draw_trace
from acdc.report.tracing import by_layer_section, lead, states_section, states_table, traces_section


def work(prepared: Prepared, folder: Path, console: Console) -> Outcome:
    """Restore every state; write `patch.csv`, `patch.npz`, the pictures and `report.html`."""
    start = time.monotonic()
    with progress_bar(console, "tracing", "states") as progress:
        traced = tracing.patch(prepared.experiment, prepared.settings.patch, progress)
    seconds = time.monotonic() - start
    console.print(states_table(traced))
    files = _write(traced, prepared, folder)
    return {**_metrics(traced), "seconds": round(seconds, 3)}, files


def _metrics(traced: Traced) -> dict[str, Any]:
    """Numbers for `metrics.json`: both ends of the scale, the noise, the best state of each site."""
    metrics: dict[str, Any] = {
        "metric": traced.metric,
        "clean": float(traced.clean.mean()),
        "noised": float(traced.noised.mean()),
        "total_effect": float(traced.total_effects.mean()),
        "noise_std": traced.noise_std,
        "draws": len(traced.noised),
        "pairs": len(traced.clean),
        "states": len(traced.rows()),
    }
    for one in traced.maps:
        best = traced.ranked(one.site)[0]
        metrics[f"{one.site}_strongest"] = f"{best['layer']} @{best['label']}"
        metrics |= {f"{one.site}_{key}": best[key] for key in ("recovery", "effect", "se")}
    return metrics


def _write(traced: Traced, prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Every file of the job but `metrics.json`."""
    maps = [path for one in traced.maps for path in draw_trace(traced, one, folder)]
    lines = draw_by_layer(traced, folder)
    files = {path.name: path for path in (*maps, *lines)}
    files |= {name: folder / name for name in ("patch.csv", "patch.npz", "report.html")}
    write_csv(files["patch.csv"], traced.rows())
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **traced.arrays())
    write_atomically(files["patch.npz"], arrays.getvalue())
    experiment = prepared.experiment
    sections = [
        notes_section(prepared.notes),
        traces_section(traced, [path for path in maps if path.suffix == ".svg"]),
        by_layer_section(traced, [path for path in lines if path.suffix == ".svg"]),
        states_section(traced),
        *([pairs_section(prepared.check)] if prepared.check is not None else []),
        configuration(resolved_yaml(prepared)),
    ]
    title = f"Causal tracing · {experiment.task.name} · {experiment.model.name}"
    write_page(files["report.html"], title, lead(traced), sections)
    return files
