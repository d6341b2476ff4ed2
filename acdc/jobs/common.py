"""What the jobs share: a log, notes, and the frame of a job that is done in one go."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import acdc
from acdc.errors import AcdcError
from acdc.files import write_atomically
from acdc.jobs.prepare import Prepared
from acdc.jobs.resolved import resolved, resolved_yaml
from acdc.journal import RESOLVED, RunState
from acdc.report.pairs import pairs_section
from acdc.report.view import Section, Verbatim, View
from acdc.report.writer import write
from acdc.result import Result
from acdc.tracking import WandbTracker, new_run_id, say

log = logging.getLogger(__name__)


def write_in_one_go(
    prepared: Prepared,
    folder: Path,
    console: Console,
    compute: Callable[[], tuple[Result, View]],
    pairs: bool = True,
) -> None:
    """Run a job that computes a result, shows it and writes it. Resumed, it begins again.

    Parameters
    ----------
    prepared, folder, console
    compute : callable
        Computes the result and says what is shown of it; its time becomes `seconds` in `metrics.json`.
    pairs : bool
        Whether the page says at the end what was found of the pairs.
    """
    with logging_to(folder / "run.log"):
        state = begin(prepared, folder)
        announce(prepared, console)
        settings = prepared.settings
        tracker = None
        if settings.tracker.name == "wandb":
            tracker = WandbTracker(settings.tracker, folder, resolved(prepared), state.values["wandb_id"])
        failed = True
        try:
            start = time.monotonic()
            result, view = compute()
            measured = {"seconds": round(time.monotonic() - start, 3)}
            closing = closing_sections(prepared, pairs)
            written = write(result, view, folder, console, notes=prepared.notes, closing=closing, measured=measured)
            if tracker is not None:
                tracker.tables(written.tables)
                tracker.finished(written.summary, written.files)
            failed = False
        finally:
            if tracker is not None:
                tracker.closed(failed)
        state.update(finished=True)
        log.info("finished: %s", json.dumps(dict(written.summary)))


def closing_sections(prepared: Prepared, pairs: bool = True) -> list[Section]:
    """Make the sections at the end of every page: what was found of the pairs, and the configuration."""
    found = [pairs_section(prepared.check)] if pairs and prepared.check is not None else []
    return [*found, Section("Configuration", [Verbatim(resolved_yaml(prepared))], open=False)]


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
