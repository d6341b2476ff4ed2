"""The jobs as plain functions: settings in, a folder of files out. Knows no Hydra.

Each job is a module with `run(prepared, folder, console)`; `JOBS` lists them with their settings.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from rich.console import Console

from acdc.jobs.prepare import Prepared, prepare, prepare_all
from acdc.jobs.settings import JOBS, RunSettings
from acdc.process import undisturbed

__all__ = ["JOBS", "Prepared", "RunSettings", "prepare", "prepare_all", "run_job"]


@undisturbed
def run_job(prepared: Prepared, folder: Path, console: Console) -> None:
    """Do what `job=` asks for, in an existing folder."""
    importlib.import_module(f"{__name__}.{prepared.settings.job.name}").run(prepared, folder, console)
