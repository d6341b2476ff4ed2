"""Who watches a run: the console and Weights & Biases, behind one small interface. Only this file knows wandb."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from acdc.discovery.base import Decision, Observer
from acdc.errors import ConfigError, RunError
from acdc.graph import Graph

log = logging.getLogger(__name__)
MODES = ("online", "offline", "disabled")


@dataclass(frozen=True)
class TrackerSettings:
    """Where a run is tracked.

    Attributes
    ----------
    name: `none` or `wandb`. The rest is for wandb: mode: `online`, `offline` or `disabled`. project, entity, group,
    tags, run_name: as W&B has them. every: one point per so many tested edges.
    """

    name: str = "none"
    mode: str = "online"
    project: str = "acdc"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    run_name: str | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.name not in ("none", "wandb"):
            raise ConfigError(f"tracker={self.name} is not known: choose none or wandb")
        if self.mode not in MODES:
            raise ConfigError(f"tracker.mode={self.mode} is not known: choose one of {', '.join(MODES)}")
        if self.every < 1:
            raise ConfigError(f"tracker.every={self.every} is not allowed: give 1 or more")


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
        return f"{self.tested} tested {self.kept} kept {left} left {self.metric} {self.value:.4g}"

    def _show(self, remaining: int, **fields: Any) -> None:
        self.progress.update(self.task, completed=self.total - remaining, text=self._text(remaining), **fields)

    def finished(self, summary: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        if self.tested:
            self._show(0)  # the last edges may have gone untested

    def closed(self, failed: bool) -> None:
        self.progress.stop()


def check_tracker(settings: TrackerSettings) -> None:
    """RunError if W&B would have to be reached and cannot be; better now than when the folder is made."""
    if settings.name == "wandb" and settings.mode == "online":
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
    run_id: of the run to go on with, or of a new one.
    """

    def __init__(self, settings: TrackerSettings, folder: Path, config: Mapping[str, Any], run_id: str) -> None:
        import wandb  # imported only where it is asked for

        self.every = settings.every
        self.tested = self.kept = self.done = 0
        try:
            self.run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                group=settings.group,
                tags=settings.tags or None,
                name=settings.run_name,
                mode=settings.mode,  # type: ignore[arg-type]
                dir=str(folder),
                config=dict(config),
                id=run_id,
                resume="allow",
                settings=wandb.Settings(silent=True),
            )
        except Exception as error:
            raise RunError(f"tracker=wandb could not start ({error}): try tracker.mode=offline") from error
        self.run.define_metric("tested")
        self.run.define_metric("*", step_metric="tested")

    def started(self, graph: Graph, metric: float) -> None:
        return

    def receiver(self, name: str, remaining: int) -> None:
        return

    def decided(self, decision: Decision, remaining: int) -> None:
        self.replayed(decision, remaining)
        if self.tested % self.every == 0 or remaining == 0:
            point = {"metric": decision.metric, "effect": decision.effect}
            self._log(self.tested, kept=self.kept, left=remaining + self.kept, **point)

    def replayed(self, decision: Decision, remaining: int) -> None:
        self.tested += 1
        self.kept += decision.kept

    def progressed(self, done: int, total: int, values: Mapping[str, float]) -> None:
        if values and (done % self.every == 0 or done == total):
            if not self.done:
                for name in values:
                    self.run.define_metric(name, step_metric="done")
            self.done = done
            self.run.log({"done": done, **values}, step=done)

    def _log(self, step: int, **point: Any) -> None:
        # The step is given, so that a resumed run goes on behind the points it has.
        self.run.log({"tested": self.tested, **point}, step=step)

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


def new_run_id() -> str:
    """An id for a tracked run, kept in the run folder so that a resumed run goes on under it."""
    return uuid.uuid4().hex[:12]
