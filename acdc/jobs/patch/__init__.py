"""`job=patch`: interventions on activations; `patch=` says which kind. Each kind is a module with `work`."""

from __future__ import annotations

import importlib
from pathlib import Path

from rich.console import Console

from acdc.jobs.common import Outcome, do_in_one_go
from acdc.jobs.prepare import Prepared
from acdc.tracking import say


def run(prepared: Prepared, folder: Path, console: Console) -> None:
    """Do what `patch=` asks for; write tables, arrays, pictures and `report.html` into an existing folder."""
    module = importlib.import_module(f"{__name__}.{prepared.settings.patch.name}")

    def work() -> Outcome:
        outcome: Outcome = module.work(prepared, folder, console)
        for name in sorted(outcome[1]):
            if name.endswith((".csv", ".html")):
                say(console, f"{name.partition('.')[0]:<20} {folder / name}")
        return outcome

    do_in_one_go(prepared, folder, console, work)
