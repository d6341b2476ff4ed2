"""The jobs as plain functions: settings in, a folder of files out. Knows no Hydra."""

from __future__ import annotations

import json
import logging
import platform
import resource
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import acdc
from acdc import discovery, tasks
from acdc.ablation import AblationSettings
from acdc.circuit import Circuit
from acdc.discovery.base import NoObserver
from acdc.errors import ConfigError, RunError, TaskError
from acdc.evaluation.faithfulness import faithfulness
from acdc.evaluation.pair_check import check_pairs
from acdc.experiment import Experiment
from acdc.files import write_json
from acdc.formats.graphml import write_graphml
from acdc.formats.mib import write_mib_json
from acdc.journal import Journal, RunState
from acdc.metrics import METRICS
from acdc.model.load import ModelSettings
from acdc.report.html import write_report
from acdc.report.picture import render_all
from acdc.settings import from_mapping
from acdc.tasks.base import TaskSettings
from acdc.tracking import ConsoleTracker, TrackerSettings, WandbTracker, Watchers, new_run_id

log = logging.getLogger(__name__)
JOBS = ("discover",)
CHECKS = ("error", "warn", "off")


@dataclass(frozen=True)
class RunSettings:
    """Everything a run is told; `config` is the same as a plain mapping, for files and trackers."""

    job: str
    model: ModelSettings
    task: TaskSettings
    method: Any
    metric: str | None
    ablation: AblationSettings
    tracker: TrackerSettings
    config: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RunSettings:
        """Settings from the composed configuration; ConfigError for any wrong key, type or value."""
        job, metric = config["job"]["name"], config["metric"]["name"]
        if job not in JOBS:
            raise ConfigError(f"job={job} does not exist; choose one of {', '.join(JOBS)}")
        if metric is not None and metric not in METRICS:
            raise ConfigError(f"metric={metric} is not known: choose one of {', '.join(METRICS)}")
        task = from_mapping(tasks.load(str(config["task"]["name"])).Settings, config["task"], "task")
        if task.check not in CHECKS:
            raise ConfigError(f"task.check={task.check} is not known: choose one of {', '.join(CHECKS)}")
        method = discovery.load(str(config["method"]["name"]))
        return cls(
            job=job,
            model=from_mapping(ModelSettings, config["model"], "model"),
            task=task,
            method=from_mapping(method.Settings, config["method"], "method"),
            metric=metric,
            ablation=from_mapping(AblationSettings, config["ablation"], "ablation"),
            tracker=from_mapping(TrackerSettings, config["tracker"], "tracker"),
            config=config,
        )


@dataclass(frozen=True)
class Prepared:
    """A run that can start: everything that could be refused has been looked at, and nothing written."""

    settings: RunSettings
    experiment: Experiment
    notes: tuple[str, ...]


def prepare(settings: RunSettings) -> Prepared:
    """Load the model, make and check the pairs.

    Raises
    ------
    AcdcError: whatever makes the run impossible, and with `task.check=error` whatever makes it doubtful.
    """
    experiment = Experiment.build(settings.model, settings.task, settings.metric, settings.ablation)
    if getattr(settings.method, "threshold", 0) is None and experiment.default_threshold is None:
        raise ConfigError(
            f"task={experiment.task.name} has no threshold of its own for metric={experiment.metric_name}:"
            " give method.threshold=NUMBER"
        )
    problems = check_pairs(experiment) if settings.task.check != "off" else []
    if problems and settings.task.check == "error":
        raise TaskError(f"task.check=error: {'; '.join(problems)}")
    return Prepared(settings, experiment, (*experiment.notes, *problems))


def discover(prepared: Prepared, folder: Path, console: Console) -> Circuit:
    """Find a circuit and write everything about it into an existing folder; goes on where an earlier try stopped.

    Raises
    ------
    RunError: the journal is of another run, or the result does not pass its own check.
    """
    settings, experiment = prepared.settings, prepared.experiment
    state, journal = RunState(folder), Journal(folder)
    if state.exists:
        state.load()
    else:
        state.update(wandb_id=new_run_id())
    with _logging_to(folder / "run.log"):
        log.info("acdc %s: %s on %s, %s", acdc.__version__, settings.job, experiment.task.name, experiment.model.name)
        for note in prepared.notes:
            log.warning("%s", note)
            console.print(f"[yellow]note:[/yellow] {note}", highlight=False)
        replay = journal.read()
        if replay:
            log.info("resuming behind %d decisions", len(replay))
        trackers: list[Any] = [ConsoleTracker(console, experiment.metric_name)]
        if settings.tracker.name == "wandb":
            trackers.append(WandbTracker(settings.tracker, folder, settings.config, state.values["wandb_id"]))
        failed = True
        try:
            keeper = _Bookkeeper(state)
            circuit = discovery.discover(experiment, settings.method, Watchers(journal, keeper, *trackers), replay)
            journal.close()
            keeper.receiver("done", 0)
            _complete(circuit, prepared, state)
            files = _write_results(circuit, prepared, folder)
            for tracker in trackers:
                tracker.finished(circuit.metrics, files)
            failed = False
        finally:
            for tracker in trackers:
                tracker.closed(failed)
        state.update(finished=True)
        log.info("finished: %s", json.dumps(circuit.metrics))
    _show(circuit, folder, console)
    return circuit


class _Bookkeeper(NoObserver):
    """Notes in the log and in `run.json` how far the run is and how long it has taken, over all its tries."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        self.before = float(state.values["seconds"])
        self.start = time.monotonic()

    def receiver(self, name: str, remaining: int) -> None:
        self.state.update(seconds=self.before + time.monotonic() - self.start)
        log.info("%s: %d edges undecided", name, remaining)


def _complete(circuit: Circuit, prepared: Prepared, state: RunState) -> None:
    """Metrics, method and provenance of a found circuit."""
    experiment = prepared.experiment
    loop = circuit.metrics
    measured = faithfulness(experiment, circuit)
    circuit.metrics = {
        **measured,
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
        "order": "logits first, layers backward, m before v, k, q; heads descending; senders nearest first, input last",
        "device": str(experiment.model.device),
        "dtype": str(experiment.model.dtype).removeprefix("torch."),
        "ablation": experiment.ablation.name,
        "metric": experiment.metric_name,
        "pairs": len(experiment.pairs),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _peak_mb() -> float:
    """Largest memory of this process, and of the GPU where it used one."""
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit + gpu


def _write_results(circuit: Circuit, prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Every file of a finished discovery but the growing ones."""
    from yaml import safe_dump

    notes = list(prepared.notes)
    circuit.save(folder / "circuit.json")
    if circuit.graph.config.split_embedding:
        notes.append("circuit.mib.json was not written: MIB's format knows one embedding, not token and position apart")
    else:
        write_mib_json(circuit, folder / "circuit.mib.json")
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
        svg=svg.read_text() if svg.exists() else None,
        config_yaml=safe_dump(dict(prepared.settings.config), sort_keys=False, allow_unicode=True),
        notes=notes,
    )
    names = ("circuit.json", "circuit.mib.json", "circuit.graphml", "circuit.dot", "circuit.svg", "circuit.png")
    return {name: folder / name for name in (*names, "metrics.json", "report.html") if (folder / name).exists()}


def _show(circuit: Circuit, folder: Path, console: Console) -> None:
    """The result in a few lines."""
    m = circuit.metrics
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("edges kept", f"{m['edges_kept']} of {m['edges_total']} ({m['on_path']} on a path)")
    table.add_row(m["metric"], f"model {m['clean']:.4g}, circuit {m['circuit']:.4g}, no edges {m['corrupted']:.4g}")
    table.add_row("recovery", f"{m['recovery']:.1%}")
    table.add_row("KL(model ‖ circuit)", f"{m['kl']:.4g}")
    table.add_row("decisions", f"{m['decisions']} ({m['near_ties']} near-ties) in {m['seconds']:.1f} s")
    table.add_row("report", str(folder / "report.html"))
    console.print(table, highlight=False)


@contextmanager
def _logging_to(path: Path):  # type: ignore[no-untyped-def]
    """Log lines go to a file while a job runs."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("acdc")
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    except Exception:
        log.exception("failed")
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


def require_free(folder: Path) -> None:
    """RunError if a folder already holds a run."""
    if RunState(folder).exists or (folder / "decisions.jsonl").exists():
        raise RunError(f"{folder} already holds a run: resume it with resume={folder}, or choose another folder")
