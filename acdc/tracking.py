"""Who watches a run: the console and Weights & Biases, behind one small interface. Only this file knows wandb."""

from __future__ import annotations

import logging
import os
import struct
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pandas import DataFrame
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from acdc.discovery.base import Decision, Observer
from acdc.errors import ConfigError, RunError
from acdc.graph import Graph
from acdc.settings import Settings, option

log = logging.getLogger(__name__)
MODES = ("online", "offline", "disabled")
_VARIABLES = {
    "mode": "WANDB_MODE",
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "tags": "WANDB_TAGS",
    "run_name": "WANDB_NAME",
}
_MOST_ROWS = 10_000  # of a table, for W&B
_ROUNDING = 1e-8  # a KL of −4.9e-10 is 0
_OLD_MODES = {"run": "online", "dryrun": "offline"}  # W&B's names of old


@dataclass(frozen=True)
class TrackerSettings(Settings):
    """Weights & Biases: configuration, a point per tested edge, summary, the picture, the circuit as an artifact."""

    GROUP: ClassVar[str] = "tracker"

    name: str = option("none", "none or wandb", ("none", "wandb"))
    mode: str | None = option(
        None,
        "online, offline (nothing leaves the machine; `wandb sync` later) or disabled; null: WANDB_MODE, or online",
        MODES,
    )
    project: str | None = option(None, "where the run is listed; null: WANDB_PROJECT, or acdc")
    entity: str | None = option(None, "a user or team; null: WANDB_ENTITY, or your own")
    group: str | None = option(
        None,
        "a name that keeps runs together; null: WANDB_RUN_GROUP, or in a sweep its folder's name",
    )
    tags: list[str] | None = option(
        None,
        "words to find the run by: [paper, seed0]; null: WANDB_TAGS, or in a sweep its task, model and method",
    )
    run_name: str | None = option(None, "null: WANDB_NAME, or in a sweep the run's own settings, or what W&B chooses")
    every: int = option(1, "tested edges per point", least=1)

    def really(self, **defaults: Any) -> TrackerSettings:
        """These settings with every None filled: by W&B's environment variable, `defaults`, or the usual value.

        Raises
        ------
        ConfigError: a mode in the environment that is none.
        """
        if self.name != "wandb":
            return self
        given = {key: os.environ.get(variable) or None for key, variable in _VARIABLES.items()}
        mode = _OLD_MODES.get(given["mode"] or "", given["mode"])
        if self.mode is None and mode not in (None, *MODES):
            raise ConfigError(f"WANDB_MODE={mode} is not known: choose one of {', '.join(MODES)}")
        tags = [tag.strip() for tag in (given["tags"] or "").split(",") if tag.strip()]
        usual: dict[str, Any] = {"mode": "online", "project": "acdc", "tags": []}
        ways: tuple[dict[str, Any], ...] = (usual, defaults, {**given, "mode": mode, "tags": tags or None}, vars(self))
        return replace(self, **{key: value for way in ways for key, value in way.items() if value is not None})


class Tracker(Observer, Protocol):
    """An observer that also hears of the result."""

    def finished(self, summary: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """The run's metrics and the files it wrote."""

    def closed(self, failed: bool) -> None:
        """Nothing more will come."""


class Watchers:
    """Several observers as one."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def started(self, graph: Graph, metric: float) -> None:
        for observer in self.observers:
            observer.started(graph, metric)

    def receiver(self, name: str, remaining: int) -> None:
        for observer in self.observers:
            observer.receiver(name, remaining)

    def decided(self, decision: Decision, remaining: int) -> None:
        for observer in self.observers:
            observer.decided(decision, remaining)

    def replayed(self, decision: Decision, remaining: int) -> None:
        for observer in self.observers:
            observer.replayed(decision, remaining)

    def progressed(self, done: int, total: int, values: Mapping[str, float]) -> None:
        for observer in self.observers:
            observer.progressed(done, total, values)


def say(console: Console, text: object) -> None:
    """Print a line as it is: no markup, no colours, and not cut where the terminal ends."""
    console.print(str(text), markup=False, emoji=False, highlight=False, soft_wrap=True)


class ConsoleTracker:
    """A live line: receiver at hand, edges tested, kept and left, metric, time to go; or, of a method that makes no
    decisions, how far it is.

    Where the console is no terminal, a plain line now and then instead.
    """

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self, console: Console, metric: str) -> None:
        self.console, self.metric = console, metric
        self.tested = self.kept = 0
        self.value = 0.0
        self.last_line = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.fields[receiver]:<10}", style="bold", markup=False),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
            TextColumn("{task.fields[text]}", markup=False),
            TextColumn("to go"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=8,
            expand=True,
            disable=console.quiet or not console.is_terminal,
        )

    def started(self, graph: Graph, metric: float) -> None:
        self.value, self.total = metric, len(graph)
        self.task = self.progress.add_task("edges", total=self.total, receiver="", text="")
        self.progress.start()

    def receiver(self, name: str, remaining: int) -> None:
        self._show(remaining, receiver=name)
        self._line(f"{name}: {self._text(remaining)}")

    def decided(self, decision: Decision, remaining: int) -> None:
        self.tested += 1
        self.kept += decision.kept
        self.value = decision.metric
        self._show(remaining)

    replayed = decided

    def progressed(self, done: int, total: int, values: Mapping[str, float]) -> None:
        text = " ".join([f"{done} of {total}", *(f"{name} {value:.4g}" for name, value in values.items())])
        self.progress.update(self.task, completed=done, total=total, text=text)
        self._line(text)

    def _line(self, text: str) -> None:
        if self.progress.disable and time.monotonic() - self.last_line > self.SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            say(self.console, text)

    def _text(self, remaining: int) -> str:
        left = remaining + self.kept
        value = self.value if abs(self.value) > _ROUNDING else 0.0
        return f"{self.tested} tested {self.kept} kept {left} left {self.metric} {value:.4g}"

    def _show(self, remaining: int, **fields: Any) -> None:
        self.progress.update(self.task, completed=self.total - remaining, text=self._text(remaining), **fields)

    def finished(self, summary: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        if self.tested:
            self._show(0)  # the last edges may have gone untested

    def closed(self, failed: bool) -> None:
        self.progress.stop()


def check_tracker(settings: TrackerSettings) -> None:
    """What W&B would refuse is refused now, not when the folder is made.

    Parameters
    ----------
    settings: those of `TrackerSettings.really`.

    Raises
    ------
    ConfigError: a project, group, tag, … that W&B does not take. RunError: W&B would have to be reached and cannot be.
    """
    if settings.name != "wandb":
        return
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(f"tracker=wandb needs what is not installed ({error}): pip install 'acdc[wandb]'") from error

    own = {"project": "project", "entity": "entity", "group": "run_group", "tags": "run_tags", "run_name": "run_name"}
    for key, name in own.items():
        value = getattr(settings, key)
        try:
            wandb.Settings(**{name: value})
        except Exception as error:  # its own or pydantic's
            why = error.errors()[0]["msg"] if hasattr(error, "errors") else error
            raise ConfigError(f"W&B does not take tracker.{key}={value}: {why}") from error
    if settings.mode == "online":
        _reach_wandb()


@cache
def _reach_wandb() -> None:
    advice = "log in with `wandb login`, or give tracker.mode=offline"
    try:
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))
        reached = wandb.login(verify=True)
    except Exception as error:  # W&B has many, for what is wrong with the account, the network and its settings
        raise RunError(f"tracker=wandb cannot reach W&B ({error}): {advice}") from error
    if not reached:
        raise RunError(f"tracker=wandb has no account to use: {advice}")


class WandbTracker:
    """Configuration, a point per n tested edges, the summary, the picture and the circuit as an artifact.

    Parameters
    ----------
    settings: those of `TrackerSettings.really`. config: every setting as really used. run_id: of the run to go on
        with, or of a new one.
    """

    def __init__(self, settings: TrackerSettings, folder: Path, config: Mapping[str, Any], run_id: str) -> None:
        import wandb  # imported only where it is asked for

        self.every = settings.every
        self.there = max(map(_last_step, folder.glob(f"wandb/*run-*-{run_id}/*.wandb")), default=0)
        self.tested = self.kept = self.done = 0
        try:
            self.run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                group=settings.group,
                tags=settings.tags or None,
                name=settings.run_name,
                job_type=config["job"]["name"],
                mode=settings.mode,  # type: ignore[arg-type]
                dir=str(folder),
                config=dict(config),
                id=run_id,
                resume="allow",
                settings=wandb.Settings(silent=True),
            )
        except Exception as error:
            raise RunError(f"tracker=wandb could not start ({error}): try tracker.mode=offline") from error
        if settings.mode == "online":  # what a killed process wrote to its file may not have arrived
            self.there = max(self.run.starting_step - 1, 0)
        self.run.define_metric("tested")
        self.run.define_metric("*", step_metric="tested")

    def started(self, graph: Graph, metric: float) -> None:
        return

    def receiver(self, name: str, remaining: int) -> None:
        return

    def decided(self, decision: Decision, remaining: int) -> None:
        self.tested += 1
        self.kept += decision.kept
        if self.tested > self.there and (self.tested % self.every == 0 or remaining == 0):
            edge = {"sender": decision.edge.sender, "receiver": decision.edge.receiver}
            point = {"metric": decision.metric, "effect": decision.effect}
            self._log(self.tested, kept=self.kept, left=remaining + self.kept, **edge, **point)

    replayed = decided  # a point that a killed process did not get through is told again

    def progressed(self, done: int, total: int, values: Mapping[str, float]) -> None:
        if values and done > self.there and (done % self.every == 0 or done == total):
            if not self.done:
                for name in values:
                    self.run.define_metric(name, step_metric="done")
            self.done = done
            self.run.log({"done": done, **values}, step=done)

    def _log(self, step: int, **point: Any) -> None:
        # The step is given, so that a resumed run goes on behind the points it has.
        self.run.log({"tested": self.tested, **point}, step=step)

    def tables(self, tables: Mapping[str, DataFrame]) -> None:
        """Send tables, of long ones the first rows."""
        import wandb

        shown = {}
        for name, table in tables.items():
            cells = table.head(_MOST_ROWS).astype(object)
            rows = cells.where(cells.notna(), None).values.tolist()  # W&B takes neither pandas' NA nor NaN in a column
            shown[name] = wandb.Table(columns=list(table.columns), data=rows, allow_mixed_types=True)
        self.run.log(shown, step=max(self.tested, self.done) + 1)

    def finished(self, summary: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        import wandb

        # The points have a number called metric; its name goes beside it.
        self.run.summary.update({"metric_name" if key == "metric" else key: value for key, value in summary.items()})
        pictures = {name: path for name, path in files.items() if path.suffix == ".png"}
        if pictures:
            images = {name.removesuffix(".png"): wandb.Image(str(path)) for name, path in pictures.items()}
            if "circuit" in images:
                images["picture"] = images.pop("circuit")
            self._log(max(self.tested, self.done) + 1, **images)
        kind = "circuit" if "circuit.json" in files else "results"
        artifact = wandb.Artifact(f"{kind}-{self.run.id}", type=kind, metadata=dict(summary))
        for path in files.values():
            artifact.add_file(str(path), policy="immutable", skip_cache=True)  # as it lies there, not a copy elsewhere
        self.run.log_artifact(artifact)

    def closed(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def _last_step(path: Path) -> int:
    """The step of the last point in a W&B run file; 0 where it has none."""
    from wandb.proto import wandb_internal_pb2

    last = 0
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(data)
        except Exception:  # torn by a kill
            break
        if record.WhichOneof("record_type") == "history":
            last = max(last, record.history.step.num)
    return last


def _records(data: bytes) -> Iterator[bytes]:
    """The whole records of a W&B run file: LevelDB's log format, blocks of 32 KiB, behind a header of seven bytes."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # what is left of a block is too short for a record
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if kind not in (1, 2, 3, 4) or at + 7 + size > len(data):
            return
        record = (b"" if kind in (1, 2) else record) + data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # full, or the last part
            yield record


def new_run_id() -> str:
    """An id for a tracked run, kept in the run folder so that a resumed run goes on under it."""
    return uuid.uuid4().hex[:12]
