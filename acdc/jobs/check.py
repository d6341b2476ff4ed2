"""`job=check`: what there is to say about the pairs, and about what the model makes of them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from acdc.errors import TaskError
from acdc.evaluation.pair_filter import limits_table
from acdc.files import write_csv, write_json
from acdc.jobs.common import Outcome, do_in_one_go
from acdc.jobs.prepare import Prepared
from acdc.jobs.resolved import resolved_yaml
from acdc.report.html import configuration, notes_section, write_page
from acdc.report.pairs import console_table, each_pair_section, each_pair_table, pairs_section
from acdc.tracking import say


def run(prepared: Prepared, folder: Path, console: Console) -> None:
    """Show the check of the pairs, and write it as `pairs.csv`, `pairs.json` and `report.html`.

    Raises
    ------
    TaskError: with `task.check=error`, once all is written, if something speaks against the pairs.
    """
    check, experiment = prepared.check, prepared.experiment
    assert check is not None  # prepare makes it for this job

    def work() -> Outcome:
        console.print(each_pair_table(check))
        console.print(console_table(check))
        numbers = check.numbers()
        files = {name: folder / name for name in ("pairs.csv", "pairs.json", "report.html")}
        write_csv(files["pairs.csv"], check.as_rows())
        write_json(
            files["pairs.json"],
            {
                "task": check.task,
                "model": check.model,
                "frequencies": check.frequencies.source if check.frequencies is not None else None,
                "summary": numbers,
                "filters": dict(limits_table(check)),
                "problems": check.problems(),
                "notes": list(experiment.notes),
                "pairs": check.as_rows(),
            },
        )
        write_page(
            files["report.html"],
            f"Pairs · {check.task} · {check.model}",
            f"{numbers['pairs']} pairs of the task {check.task}, as {check.model} sees them: "
            + (
                f"{numbers['problems']} things speak against them."
                if numbers["problems"]
                else "nothing speaks against them."
            ),
            [
                notes_section(experiment.notes),
                pairs_section(check),
                each_pair_section(check),
                configuration(resolved_yaml(prepared)),
            ],
        )
        return numbers, files

    do_in_one_go(prepared, folder, console, work)
    for name in ("pairs.csv", "report.html"):
        say(console, f"{name.partition('.')[0]:<20} {folder / name}")
    if prepared.settings.task.check == "error" and (problems := check.problems()):
        raise TaskError(f"task.check=error: {'; '.join(problems)}")
