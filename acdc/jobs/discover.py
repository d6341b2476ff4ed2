"""`job=discover`: find a circuit, measure it, draw it."""

from __future__ import annotations

import json
import logging
import math
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import acdc
from acdc import discovery
from acdc.circuit import Circuit
from acdc.discovery.base import NoObserver
from acdc.evaluation.faithfulness import by_partner, faithfulness
from acdc.files import write_json
from acdc.formats.graphml import write_graphml
from acdc.formats.mib import write_mib_json
from acdc.formats.mib_pt import write_mib_pt
from acdc.jobs.as_found import how_found
from acdc.jobs.common import announce, begin, logging_to
from acdc.jobs.prepare import Prepared
from acdc.jobs.resolved import resolved, resolved_yaml
from acdc.journal import Journal, RunState, TensorStore
from acdc.process import peak_memory
from acdc.report.grades import partners_section
from acdc.report.html import OWN_PAIRS, write_report
from acdc.report.methods import method_sections, path_notes
from acdc.report.pairs import pairs_section, short_table
from acdc.report.picture import render_all
from acdc.tracking import ConsoleTracker, Tracker, WandbTracker, Watchers, say

log = logging.getLogger(__name__)
ORDER = "logits first, layers backward, m before v, k, q; heads descending; senders nearest first, input last"
SECONDS_BETWEEN_NOTES = 5.0  # of a method that makes no decisions


def run(prepared: Prepared, folder: Path, console: Console) -> Circuit:
    """Find a circuit and write everything about it into an existing folder; goes on where an earlier try stopped.

    Raises
    ------
    RunError: the journal is of another run, or the result does not pass its own check.
    """
    journal = Journal(folder)
    with closing(journal), logging_to(folder / "run.log"):
        state = begin(prepared, folder)
        circuit = _discover(prepared, folder, console, journal, state)
        state.update(finished=True)
        log.info("finished: %s", json.dumps(circuit.metrics))
    _show(circuit, folder, console)
    return circuit


def _discover(prepared: Prepared, folder: Path, console: Console, journal: Journal, state: RunState) -> Circuit:
    settings, experiment = prepared.settings, prepared.experiment
    announce(prepared, console)
    replay = journal.read()
    if prepared.check is not None:
        console.print(short_table(prepared.check))
    if replay:
        log.info("resuming behind %d decisions", len(replay))
        say(console, f"resuming behind {len(replay)} decisions")
    keeper = _Bookkeeper(state)
    trackers: list[Tracker] = [ConsoleTracker(console, experiment.metric_name)]
    failed = True
    try:
        if settings.tracker.name == "wandb":
            trackers.append(WandbTracker(settings.tracker, folder, resolved(prepared), state.values["wandb_id"]))
        watchers, store = Watchers(journal, keeper, *trackers), TensorStore(folder)
        circuit = discovery.discover(experiment, settings.method, watchers, replay, store)
        keeper.receiver("done", 0)
        partners = _complete(circuit, prepared, state)
        files = _write_results(circuit, prepared, folder, partners)
        for tracker in trackers:
            tracker.finished(circuit.metrics, files)
        store.remove()
        failed = False
    finally:
        for tracker in trackers:
            tracker.closed(failed)
    return circuit


class _Bookkeeper(NoObserver):
    """Notes in the log and in `run.json` how far the run is and how long it has taken, over all its tries."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        self.before = float(state.values["seconds"])
        self.start = self.noted = time.monotonic()

    def receiver(self, name: str, remaining: int) -> None:
        self.state.update(seconds=self.before + time.monotonic() - self.start)
        log.info("%s: %d edges undecided", name, remaining)

    def progressed(self, done: int, total: int, values: Mapping[str, float]) -> None:
        if time.monotonic() - self.noted > SECONDS_BETWEEN_NOTES:
            self.noted = time.monotonic()
            self.state.update(seconds=self.before + self.noted - self.start)
            log.info("%d of %d: %s", done, total, json.dumps(dict(values)))


def _complete(circuit: Circuit, prepared: Prepared, state: RunState) -> list[dict[str, Any]]:
    """Metrics, method and provenance of a found circuit; returns what it does with each corrupted partner alone."""
    experiment = prepared.experiment
    loop = circuit.metrics
    measured = faithfulness(experiment, circuit)
    if not math.isfinite(measured["recovery"]):
        measured["recovery"] = None  # the model with and without its edges gives the same
    partners = by_partner(experiment, circuit)
    recoveries = [one["recovery"] for one in partners if math.isfinite(one["recovery"])]
    spread = {"partner_recovery_min": min(recoveries), "partner_recovery_max": max(recoveries)} if recoveries else {}
    circuit.metrics = {
        **measured,
        **spread,
        **loop,
        "on_path": len(circuit.on_path()),
        "seconds": round(state.values["seconds"], 3),
        "peak_mb": round(_peak_mb(), 1),
        "metric": experiment.metric_name,
    }
    circuit.provenance = {
        "versions": {
            "acdc": acdc.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformer-lens", "transformers")},
        },
        "seed": prepared.settings.task.seed,
        **({"order": ORDER} if circuit.metrics["decisions"] else {}),
        "device": str(experiment.model.device),
        "dtype": str(experiment.model.dtype).removeprefix("torch."),
        "ablation": experiment.ablation.name,
        "metric": experiment.metric_name,
        "settings": how_found(prepared.settings, experiment),
        "pairs": len(experiment.pairs),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return partners


def _peak_mb() -> float:
    """Largest memory of this process, and of the GPU where it used one."""
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    return peak_memory() / 2**20 + gpu


def _write_results(
    circuit: Circuit, prepared: Prepared, folder: Path, partners: Sequence[Mapping[str, Any]]
) -> dict[str, Path]:
    """Every file of a finished discovery but the growing ones."""
    notes = [*prepared.notes, *path_notes(circuit)]
    sections = [partners_section(partners, prepared.experiment.metric_name)] if partners else []
    sections = [*method_sections(circuit), *sections]
    if prepared.check is not None:
        sections.append(pairs_section(prepared.check))
    circuit.save(folder / "circuit.json")
    if not circuit.graph.config.split_embedding:  # what MIB's format cannot say; `prepare` has told so
        write_mib_json(circuit, folder / "circuit.mib.json")
        write_mib_pt(circuit, folder / "circuit.mib.pt")
    write_graphml(circuit, folder / "circuit.graphml")
    _, warning = render_all(circuit, [folder / f"circuit.{kind}" for kind in ("dot", "svg", "png")])
    if warning:
        log.warning("%s", warning)
        notes.append(warning)
    write_json(folder / "metrics.json", circuit.metrics)
    svg = folder / "circuit.svg"
    write_report(
        folder / "report.html",
        circuit,
        svg=svg.read_text(encoding="utf-8") if svg.exists() else None,
        config_yaml=resolved_yaml(prepared),
        notes=notes,
        sections=sections,
    )
    suffixes = ("json", "mib.json", "mib.pt", "graphml", "dot", "svg", "png")
    names = (*(f"circuit.{suffix}" for suffix in suffixes), "metrics.json", "report.html")
    return {name: folder / name for name in names if (folder / name).exists()}


def _show(circuit: Circuit, folder: Path, console: Console) -> None:
    """The result in a few lines."""
    m = circuit.metrics
    for note in path_notes(circuit):
        say(console, f"note: {note}")
    recovery = (
        "none: the metric is the same without any edge"
        if m["recovery"] is None
        else f"{m['recovery']:z.1%} {OWN_PAIRS}"
    )
    for name, value in {
        "edges kept": f"{m['edges_kept']} of {m['edges_total']} ({m['on_path']} on a path)",
        m["metric"]: f"model {m['clean']:.4g}, circuit {m['circuit']:.4g}, no edges {m['corrupted']:.4g}",
        "recovery": recovery,
        **({"with one partner": f"recovery {_range(m)}"} if "partner_recovery_min" in m else {}),
        "KL(model ‖ circuit)": f"{m['kl']:.4g}",
        **_what_was_done(m),
        "report": folder / "report.html",
    }.items():
        say(console, f"{name:<20} {value}")


def _what_was_done(metrics: Mapping[str, Any]) -> dict[str, str]:
    """A loop's decisions, or that edges were scored; what was compared with plain ACDC."""
    seconds = f"in {metrics['seconds']:.1f} s"
    if "scored" in metrics:
        lines = {"edges scored": f"{metrics['scored']} {seconds}"}
    else:
        ties = f"{metrics['near_ties']} near-tie{'s' * (metrics['near_ties'] != 1)}"
        lines = {"decisions": f"{metrics['decisions']} ({ties}) {seconds}"}
    if "ruled_out" in metrics:
        lines["shortlist"] = f"{metrics['ruled_out']} edge{'s' * (metrics['ruled_out'] != 1)} ruled out"
    if "plain_edges" in metrics:
        lines["plain ACDC"] = (
            f"{metrics['plain_edges']} edges; {metrics['plain_differs']} are kept by one of the two only"
        )
    if "acdc" in metrics:
        other = metrics["acdc"]
        lines["ACDC"] = (
            f"{other['edges']} edges, {other['shared']} of them here too (Jaccard {other['jaccard']:.2f}); recovery"
            f" {other['recovery']:z.1%}; {other['seconds']:.1f} s of the time"
        )
    return lines


def _range(metrics: Mapping[str, Any]) -> str:
    return f"{metrics['partner_recovery_min']:z.1%} to {metrics['partner_recovery_max']:z.1%}"
