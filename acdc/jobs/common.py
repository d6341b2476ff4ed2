"""What the jobs share: a log, notes, and the frame of a job that is done in one go."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import acdc
from acdc.errors import AcdcError
from acdc.files import write_atomically, write_json
from acdc.jobs.prepare import Prepared
from acdc.jobs.resolved import resolved, resolved_yaml
from acdc.journal import RESOLVED, RunState
from acdc.tracking import WandbTracker, new_run_id, say

log = logging.getLogger(__name__)

Outcome = tuple[Mapping[str, Any], Mapping[str, Path]]  # metrics, and the files that were written by name


def do_in_one_go(prepared: Prepared, folder: Path, console: Console, work: Callable[[], Outcome]) -> None:
    """Run a job that keeps no journal: resumed, it begins again. Writes `metrics.json`, `run.json` and `run.log`."""
    with logging_to(folder / "run.log"):
        state = begin(prepared, folder)
        announce(prepared, console)
        settings = prepared.settings
        tracker = None
        if settings.tracker.name == "wandb":
            tracker = WandbTracker(settings.tracker, folder, resolved(prepared), state.values["wandb_id"])
        failed = True
        try:
            metrics, files = work()
            write_json(folder / "metrics.json", dict(metrics))
            if tracker is not None:
                tracker.finished(metrics, {**files, "metrics.json": folder / "metrics.json"})
            failed = False
        finally:
            if tracker is not None:
                tracker.closed(failed)
        state.update(finished=True)
        log.info("finished: %s", json.dumps(dict(metrics)))


def begin(prepared: Prepared, folder: Path) -> RunState:
    """The state of a run that starts or goes on; what a killed process left half-written is removed.

    Writes `resolved.yaml`.
    """
    state = RunState(folder)
    write_atomically(folder / RESOLVED, resolved_yaml(prepared))
    state.update(wandb_id=state.values["wandb_id"] or new_run_id())
    for torn in folder.glob(".*.tmp"):
        torn.unlink()
    return state


def announce(prepared: Prepared, console: Console) -> None:
    """Say and log what the run is and what the user should hear."""
    settings, experiment = prepared.settings, prepared.experiment
    log.info("acdc %s: %s on %s, %s", acdc.__version__, settings.job.name, experiment.task.name, experiment.model.name)
    log.info("threads: %d", torch.get_num_threads())
    for note in prepared.notes:
        log.warning("%s", note)
        say(console, f"note: {note}")


@contextmanager
def progress_bar(console: Console, doing: str, units: str) -> Iterator[Callable[[int, int], None]]:
    """A bar where the console is a terminal; yields what is told how many units are done, and of how many."""
    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{units}, to go"),
        TimeRemainingColumn(),
    )
    quiet = console.quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=quiet, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log lines go to a file while a job runs."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
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
