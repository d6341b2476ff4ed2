"""`job=patch`: interventions on activations; `patch=` says which kind."""

from __future__ import annotations

import importlib
from pathlib import Path

from rich.console import Console

from acdc import patching
from acdc.jobs.common import Outcome, do_in_one_go, progress_bar, write_in_one_go
from acdc.jobs.prepare import Prepared
from acdc.report.view import Subject, View
from acdc.result import Result
from acdc.tracking import say

# What the progress bar says each kind does, and to what.
DOING = {"activation": ("patching", "sites"), "attribution": ("attribution", "sites")}


def run(prepared: Prepared, folder: Path, console: Console) -> None:
    """Do what `patch=` asks for; write tables, arrays, pictures and `report.html` into an existing folder."""
    settings = prepared.settings.patch
    if settings.name in DOING:
        view = importlib.import_module(f"acdc.report.patch.{settings.name}").view

        def compute() -> tuple[Result, View]:
            with progress_bar(console, *DOING[settings.name]) as progress:
                result = patching.load(settings.name).patch(prepared.experiment, settings, progress)
            return result, view(result, Subject.of(prepared.experiment))

        return write_in_one_go(prepared, folder, console, compute)
    module = importlib.import_module(f"{__name__}.{settings.name}")

    def work() -> Outcome:
        outcome: Outcome = module.work(prepared, folder, console)
        for name in sorted(outcome[1]):
            if name.endswith((".csv", ".html")):
                say(console, f"{name.partition('.')[0]:<20} {folder / name}")
        return outcome

    do_in_one_go(prepared, folder, console, work)
