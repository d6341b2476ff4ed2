"""The type checker sees the package as a user of it does, the tasks' folder in its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_PROBE = """
from acdc import Circuit, Experiment, nonsense
from acdc.tasks.base import Task, TokenizedPair
from acdc.tasks.ioi import Settings


def probe(circuit: Circuit, experiment: Experiment, task: Task, pair: TokenizedPair) -> None:
    circuit.nonsense
    experiment.nonsense
    experiment.task.nonsense
    task.nonsense
    pair.nonsense
    Settings(nonsense=1)
"""


@pytest.mark.slow
def test_misspelt_names_are_reported(tmp_path: Path) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(_PROBE)
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(probe)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    wrong = [number for number, line in enumerate(_PROBE.splitlines(), 1) if "nonsense" in line]
    assert [int(line.split(":")[1]) for line in done.stdout.splitlines() if "nonsense" in line] == wrong, done.stdout
