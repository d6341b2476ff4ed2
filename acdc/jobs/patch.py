"""`job=patch`: interventions on activations; `patch=` says which kind."""

from __future__ import annotations

import importlib
from pathlib import Path

from rich.console import Console

from acdc import patching
from acdc.jobs.common import progress_bar, write_in_one_go
from acdc.jobs.prepare import Prepared
from acdc.report.view import Subject, View
from acdc.result import Result


def run(prepared: Prepared, folder: Path, console: Console) -> None:
    """Do what `patch=` asks for; write tables, arrays, pictures and `report.html` into an existing folder."""
    settings = prepared.settings.patch
    kind, page = patching.load(settings.name), importlib.import_module(f"acdc.report.patch.{settings.name}")

    def compute() -> tuple[Result, View]:
        with progress_bar(console, *kind.DOING) as progress:
            result = kind.patch(prepared.experiment, settings, progress)
        return result, page.view(result, Subject.of(prepared.experiment))

    write_in_one_go(prepared, folder, console, compute)
