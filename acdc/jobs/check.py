"""`job=check`: what there is to say about the pairs, and about what the model makes of them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from acdc.errors import TaskError
from acdc.evaluation.pair_filter import CheckedPairs
from acdc.jobs.common import write_in_one_go
from acdc.jobs.prepare import Prepared
from acdc.report.pairs import view


def run(prepared: Prepared, folder: Path, console: Console) -> None:
    """Show the check of the pairs, and write it as `pairs.csv`, `pairs.json` and `report.html`.

    Raises
    ------
    TaskError
        With `task.check=error`, once all is written, if something speaks against the pairs.
    """
    check = prepared.check
    assert check is not None  # prepare makes it for this job
    result = CheckedPairs(check, tuple(prepared.experiment.notes))
    write_in_one_go(prepared, folder, console, lambda: (result, view(check)), pairs=False)
    if prepared.settings.task.check == "error" and (problems := check.problems()):
        raise TaskError(f"task.check=error: {'; '.join(problems)}")
