"""`job=discover`: find a circuit, measure it, draw it."""

from __future__ import annotations

import json
import logging
import math
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
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
from acdc.formats.dot import write_dot
from acdc.formats.graphml import write_graphml
from acdc.formats.mib import write_mib_json
from acdc.formats.mib_pt import write_mib_pt
from acdc.jobs.as_found import how_found
from acdc.jobs.common import announce, begin, closing_sections, logging_to
from acdc.jobs.prepare import Prepared
from acdc.jobs.resolved import resolved
from acdc.journal import Journal, RunState, TensorStore
from acdc.process import peak_memory
from acdc.report.discovery import view
from acdc.report.methods import path_notes
from acdc.report.pairs import short_table
from acdc.report.writer import Written, show, write
from acdc.result import Result
from acdc.tracking import ConsoleTracker, Tracker, WandbTracker, Watchers, say

log = logging.getLogger(__name__)
ORDER = "logits first, layers backward, m before v, k, q; heads descending; senders nearest first, input last"
SECONDS_BETWEEN_NOTES = 5.0  # of a method that makes no decisions


def run(prepared: Prepared, folder: Path, console: Console) -> Circuit:
    """Find a circuit and write everything about it into an existing folder; go on where an earlier try stopped.

    Raises
    ------
    RunError
        The journal is of another run, or the result does not pass its own check.
    """
    journal = Journal(folder)
    with closing(journal), logging_to(folder / "run.log"):
        state = begin(prepared, folder)
        circuit = _discover(prepared, folder, console, journal, state)
        state.update(finished=True)
        log.info("finished: %s", json.dumps(circuit.metrics))
    return circuit


def _discover(prepared: Prepared, folder: Path, console: Console, journal: Journal, state: RunState) -> Circuit:
    settings, experiment = prepared.settings, prepared.experiment
    announce(prepared, console)
    replay = journal.read()
    if prepared.check is not None:
        show(console, short_table(prepared.check))
    if replay:
        log.info("resuming behind %d decisions", len(replay))
        say(console, f"resuming behind {len(replay)} decisions")
    keeper = _Bookkeeper(state)
    bar = ConsoleTracker(console, experiment.metric_name)
    trackers: list[Tracker] = [bar]
    failed = True
    try:
        if settings.tracker.name == "wandb":
            trackers.append(WandbTracker(settings.tracker, folder, resolved(prepared), state.values["wandb_id"]))
        watchers, store = Watchers(journal, keeper, *trackers), TensorStore(folder)
        circuit = discovery.discover(experiment, settings.method, watchers, replay, store)
        keeper.receiver("done", 0)
        partners = _complete(circuit, prepared, state)
        bar.finished(circuit.metrics, {})
        bar.closed(False)  # what is shown from now on stands below it
        written = _write_results(circuit, prepared, folder, console, partners)
        for tracker in trackers[1:]:
            tracker.finished(written.summary, written.files)
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
    """Add metrics and provenance to a found circuit; return what it does with each corrupted partner alone."""
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
        **({"title": experiment.task.title} if experiment.task.title else {}),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return partners


def _peak_mb() -> float:
    """Return the largest memory of this process and, if it used one, of the GPU."""
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    return peak_memory() / 2**20 + gpu


@dataclass(frozen=True)
class _Found(Result):
    """A circuit with its metrics, as the writer takes it."""

    circuit: Circuit

    def circuits(self) -> dict[str, Circuit]:
        return {"circuit": self.circuit}

    def summary(self) -> dict[str, object]:
        return self.circuit.metrics

    def notes(self) -> tuple[str, ...]:
        return tuple(path_notes(self.circuit))


def _write_results(
    circuit: Circuit, prepared: Prepared, folder: Path, console: Console, partners: Sequence[Mapping[str, Any]]
) -> Written:
    """Write every file of a finished discovery but the growing ones, and show the result in a few lines."""
    written = write(
        _Found(circuit),
        view(circuit, partners),
        folder,
        console,
        notes=prepared.notes,
        closing=closing_sections(prepared),
    )
    write_dot(circuit, folder / "circuit.dot")
    write_graphml(circuit, folder / "circuit.graphml")
    others = ["circuit.dot", "circuit.graphml"]
    if not circuit.graph.config.split_embedding:  # what MIB's format cannot say; `prepare` has told so
        write_mib_json(circuit, folder / "circuit.mib.json")
        write_mib_pt(circuit, folder / "circuit.mib.pt")
        others += ["circuit.mib.json", "circuit.mib.pt"]
    return replace(written, files={**written.files, **{name: folder / name for name in others}})
