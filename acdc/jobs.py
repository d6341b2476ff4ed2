"""The jobs as plain functions: settings in, a folder of files out. Knows no Hydra."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import acdc
from acdc import discovery, tasks
from acdc.ablation import AblationSettings
from acdc.circuit import Circuit
from acdc.discovery.base import NoObserver
from acdc.errors import AcdcError, ConfigError, TaskError
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
from acdc.tracking import (
    ConsoleTracker,
    Tracker,
    TrackerSettings,
    WandbTracker,
    Watchers,
    check_tracker,
    new_run_id,
    say,
)

log = logging.getLogger(__name__)
JOBS = ("discover",)
CHECKS = ("error", "warn", "off")


@dataclass(frozen=True)
class JobSettings:
    """`name`: what to do, the name of a function in this file."""

    name: str = "discover"

    def __post_init__(self) -> None:
        if self.name not in JOBS:
            raise ConfigError(f"job={self.name} does not exist; choose one of {', '.join(JOBS)}")


@dataclass(frozen=True)
class MetricSettings:
    """`name`: what is measured; None takes the task's own metric."""

    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and self.name not in METRICS:
            raise ConfigError(f"metric={self.name} is not known: choose one of {', '.join(METRICS)}")


@dataclass(frozen=True)
class RunSettings:
    """Everything a run is told; `config` is the same as a plain mapping, for files and trackers."""

    job: JobSettings
    model: ModelSettings
    task: TaskSettings
    method: Any
    metric: MetricSettings
    ablation: AblationSettings
    tracker: TrackerSettings
    config: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], base: Path) -> RunSettings:
        """Settings from the composed configuration.

        Parameters
        ----------
        base: the folder that relative paths start from; `config` gets them absolute, so that a run can be resumed
            from anywhere.

        Raises
        ------
        ConfigError: any wrong key, type or value.
        """
        groups = [f.name for f in fields(cls) if f.name != "config"]
        if unknown := [key for key in config if key not in groups]:
            raise ConfigError(f"{unknown[0]} does not exist; there are the groups {', '.join(groups)}")
        if missing := [group for group in groups if not isinstance(config.get(group), Mapping)]:
            raise ConfigError(f"{missing[0]} is missing: give {missing[0]}=OPTION (acdc --help lists them)")
        config = {group: _with_absolute_path(config[group], base) for group in groups}
        task = from_mapping(tasks.load(str(config["task"].get("name"))).Settings, config["task"], "task")
        if task.check not in CHECKS:
            raise ConfigError(f"task.check={task.check} is not known: choose one of {', '.join(CHECKS)}")
        return cls(
            job=from_mapping(JobSettings, config["job"], "job"),
            model=from_mapping(ModelSettings, config["model"], "model"),
            task=task,
            method=from_mapping(discovery.load(str(config["method"].get("name"))).Settings, config["method"], "method"),
            metric=from_mapping(MetricSettings, config["metric"], "metric"),
            ablation=from_mapping(AblationSettings, config["ablation"], "ablation"),
            tracker=from_mapping(TrackerSettings, config["tracker"], "tracker"),
            config=config,
        )

    @property
    def experiment_key(self) -> tuple[Any, ...]:
        """What the experiment is built from."""
        return self.model, self.task, self.metric.name, self.ablation


def _with_absolute_path(group: Mapping[str, Any], base: Path) -> Mapping[str, Any]:
    if isinstance(group.get("path"), str):
        return {**group, "path": os.path.abspath(base / Path(group["path"]).expanduser())}
    return group


@dataclass(frozen=True)
class Prepared:
    """A run that can start: everything that could be refused has been looked at, and nothing written."""

    settings: RunSettings
    experiment: Experiment
    notes: tuple[str, ...]


def prepare(settings: RunSettings, experiment: Experiment | None = None) -> Prepared:
    """Load the model, make and check the pairs.

    Parameters
    ----------
    experiment: one that was built from the same settings, if there is one already.

    Raises
    ------
    AcdcError: whatever makes the run impossible, and with `task.check=error` whatever makes it doubtful.
    """
    experiment = experiment or Experiment.build(*settings.experiment_key)
    if getattr(settings.method, "threshold", 0) is None and experiment.default_threshold is None:
        raise ConfigError(
            f"task={experiment.task.name} has no threshold of its own for metric={experiment.metric_name}:"
            " give method.threshold=NUMBER"
        )
    problems = check_pairs(experiment).problems() if settings.task.check != "off" else []
    if problems and settings.task.check == "error":
        raise TaskError(f"task.check=error: {'; '.join(problems)}")
    check_tracker(settings.tracker)
    return Prepared(settings, experiment, (*experiment.notes, *problems))


def prepare_all(runs: Sequence[RunSettings]) -> list[str]:
    """Prepare every run of a sweep, so that what one cannot do is known before any begins; returns what they note."""
    notes: list[str] = []
    key, experiment = None, None
    for settings in sorted(runs, key=lambda settings: repr(settings.experiment_key)):
        if settings.experiment_key != key:
            key, experiment = settings.experiment_key, None
        prepared = prepare(settings, experiment)
        experiment = prepared.experiment
        notes += prepared.notes
    return list(dict.fromkeys(notes))


def discover(prepared: Prepared, folder: Path, console: Console) -> Circuit:
    """Find a circuit and write everything about it into an existing folder; goes on where an earlier try stopped.

    Raises
    ------
    RunError: the journal is of another run, or the result does not pass its own check.
    """
    journal = Journal(folder)
    with closing(journal), _logging_to(folder / "run.log"):
        state = RunState(folder)
        state.update(wandb_id=state.values["wandb_id"] or new_run_id())
        for torn in folder.glob(".*.tmp"):
            torn.unlink()
        circuit = _discover(prepared, folder, console, journal, state)
        state.update(finished=True)
        log.info("finished: %s", json.dumps(circuit.metrics))
    _show(circuit, folder, console)
    return circuit


def _discover(prepared: Prepared, folder: Path, console: Console, journal: Journal, state: RunState) -> Circuit:
    settings, experiment = prepared.settings, prepared.experiment
    log.info("acdc %s: %s on %s, %s", acdc.__version__, settings.job.name, experiment.task.name, experiment.model.name)
    replay = journal.read()
    for note in prepared.notes:
        log.warning("%s", note)
        say(console, f"note: {note}")
    if replay:
        log.info("resuming behind %d decisions", len(replay))
        say(console, f"resuming behind {len(replay)} decisions")
    keeper = _Bookkeeper(state)
    trackers: list[Tracker] = [ConsoleTracker(console, experiment.metric_name)]
    failed = True
    try:
        if settings.tracker.name == "wandb":
            trackers.append(WandbTracker(settings.tracker, folder, settings.config, state.values["wandb_id"]))
        circuit = discovery.discover(experiment, settings.method, Watchers(journal, keeper, *trackers), replay)
        keeper.receiver("done", 0)
        _complete(circuit, prepared, state)
        files = _write_results(circuit, prepared, folder)
        for tracker in trackers:
            tracker.finished(circuit.metrics, files)
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
        self.start = time.monotonic()

    def receiver(self, name: str, remaining: int) -> None:
        self.state.update(seconds=self.before + time.monotonic() - self.start)
        log.info("%s: %d edges undecided", name, remaining)


def _complete(circuit: Circuit, prepared: Prepared, state: RunState) -> None:
    """Metrics, method and provenance of a found circuit."""
    experiment = prepared.experiment
    loop = circuit.metrics
    measured = faithfulness(experiment, circuit)
    if not math.isfinite(measured["recovery"]):
        measured["recovery"] = None  # the model with and without its edges gives the same
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
    recovery = "none: the metric is the same without any edge" if m["recovery"] is None else f"{m['recovery']:.1%}"
    for name, value in {
        "edges kept": f"{m['edges_kept']} of {m['edges_total']} ({m['on_path']} on a path)",
        m["metric"]: f"model {m['clean']:.4g}, circuit {m['circuit']:.4g}, no edges {m['corrupted']:.4g}",
        "recovery": recovery,
        "KL(model ‖ circuit)": f"{m['kl']:.4g}",
        "decisions": f"{m['decisions']} ({m['near_ties']} near-ties) in {m['seconds']:.1f} s",
        "report": folder / "report.html",
    }.items():
        say(console, f"{name:<20} {value}")


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Log lines go to a file while a job runs."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("acdc")
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    except AcdcError as error:
        log.error("%s", error)
        raise
    except KeyboardInterrupt:
        log.info("stopped")
        raise
    except Exception:
        log.exception("failed")
        raise
    finally:
        root.removeHandler(handler)
        handler.close()
