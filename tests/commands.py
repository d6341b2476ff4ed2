"""The command line as tests use it: a tiny model, pairs for it, and the program here or in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint

from acdc.cli import run

PAIRS = (
    {"clean": [2, 5, 7, 3], "corrupted": [2, 6, 7, 4], "answers": [8], "wrong_answers": [9]},
    {"clean": [4, 5, 1, 6], "corrupted": [4, 3, 1, 7], "answers": [2], "wrong_answers": [3]},
    {"clean": [9, 1, 4, 4], "corrupted": [3, 1, 8, 4], "answers": [5], "wrong_answers": [6]},
)


@dataclass(frozen=True)
class Case:
    """A model folder and a pairs file."""

    model: Path
    pairs: Path

    def arguments(self, **options: object) -> list[str]:
        """Overrides for a run; `options` replace them, with `__` for the dot of a key."""
        given: dict[str, object] = {
            "task": "pairs",
            "task.path": self.pairs,
            "task.check": "off",
            "model": "local",
            "model.path": self.model,
            "metric": "logit_diff",
            "method.threshold": 0.02,
        }
        given |= {key.replace("__", "."): value for key, value in options.items()}
        return [f"{key}={value}" for key, value in given.items()]


def make_case(folder: Path, n_layers: int = 2, n_heads: int = 2) -> Case:
    """A random GPT-2 and three pairs of token ids."""
    model = make_checkpoint("gpt2", folder, n_layers=n_layers, n_heads=n_heads)
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return Case(model, pairs)


def as_process(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The program as a process of its own, to its end. The environment is without W&B's variables but for `env`."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-m", "acdc", *arguments],
        cwd=cwd,
        env={**mine, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=300,
    )


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The program as a process of its own, running."""
    return subprocess.Popen(
        [sys.executable, "-m", "acdc", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_at(n_decisions: int, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    """The program as a process that is killed (by SIGKILL) when it has made so many decisions, or is about to."""
    program = (
        "import os, sys; from acdc import journal; from acdc.cli import run\n"
        "write, made = journal.Journal.decided, []\n"
        "def decided(self, decision, remaining):\n"
        f"    if len(made) == {n_decisions}: os.kill(os.getpid(), 9)\n"
        "    made.append(decision); write(self, decision, remaining)\n"
        "journal.Journal.decided = decided\n"
        "sys.exit(run(sys.argv[1:]))"
    )
    mine = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env={**mine, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -9, done.stderr


def assert_refused(arguments: Sequence[str], capfd: pytest.CaptureFixture[str], *said: str, after: str = "") -> None:
    """Exit code 2, one line on standard error with all of `said`, and nothing but `after` on standard output."""
    capfd.readouterr()
    code = run(list(arguments))
    captured = capfd.readouterr()
    assert (code, captured.out) == (2, after), captured
    assert captured.err.startswith("acdc: ")
    assert captured.err.count("\n") == 1
    for words in said:
        assert words in captured.err


def read_json(path: Path) -> Any:
    """JSON, with an error for the NaN and Infinity that Python would let through."""

    def refuse(token: str) -> None:
        raise AssertionError(f"{path.name} holds {token}")

    return json.loads(path.read_text(), parse_constant=refuse)


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
