"""A sweep's runs side by side: what differed between them, what came out, and how alike their circuits are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from yaml import safe_load

from acdc.circuit import Circuit
from acdc.errors import FormatError, RunError
from acdc.evaluation.comparison import compare_circuits
from acdc.files import write_csv
from acdc.journal import Journal, RunState
from acdc.report.comparison import view
from acdc.report.view import Table
from acdc.report.writer import show, write
from acdc.tracking import say

MOST_STRONGEST = 4  # columns of them that fit a console
SHOWN = {
    "pairs": "pairs",
    "edges_kept": "edges kept",
    "recovery": "recovery",
    "kl": "KL",
    "accuracy": "accuracy",
    "problems": "problems",
    "seconds": "seconds",
}


def show_run(folder: Path, sweep: Path) -> None:
    """Print a line about a run of a sweep when it ends: its own overrides and what came out."""
    run = _read(folder)
    shown = [f"{name} {_cell(key, run[key])}" for key, name in SHOWN.items() if run.get(key) is not None]
    say(Console(), f"{folder.name}: {own_overrides(folder, sweep)}: {', '.join(shown)}")


def own_overrides(folder: Path, sweep: Path) -> str:
    """Return the overrides of a run that not every run of its sweep has."""
    shared = sweep_overrides(sweep)
    own = _overrides(folder).items()
    return " ".join(f"{k}={v}" for k, v in own if f"{k}={v}" not in shared and f"{k}=choice({v})" not in shared)


def sweep_overrides(folder: Path) -> list[str]:
    """Return what a sweep was started with.

    Raises
    ------
    RunError
        Its `multirun.yaml` is damaged.
    """
    file = folder / "multirun.yaml"
    try:
        hydra = safe_load(file.read_text(encoding="utf-8"))["hydra"]
        params = [f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items()]
        return [*params, *map(str, hydra["overrides"]["task"])]
    except Exception as error:  # torn by a kill
        raise RunError(f"{file} is damaged, so it is not known what the sweep was to run: start it anew") from error


@dataclass(frozen=True)
class SweepState:
    """How far a sweep is.

    Attributes
    ----------
    finished, go_on, running : list of Path
        The folders of runs that are finished, that can go on, and that another process is running.
    never_started : list of str
        The overrides of runs that were never started.
    """

    finished: list[Path]
    go_on: list[Path]
    running: list[Path]
    never_started: list[str]

    def __str__(self) -> str:
        n = sum(map(len, vars(self).values()))
        told = [f"{len(self.finished)} of {n} runs finished{_names(self.finished)}"]
        if self.running:
            told.append(f"{len(self.running)} at work now{_names(self.running)}")
        told += [f"run {place.name} can go on by acdc resume={place}" for place in self.go_on]
        if self.never_started:
            told.append(f"{len(self.never_started)} never started ({'; '.join(self.never_started)})")
        return ", ".join(told)


def _names(places: Sequence[Path]) -> str:
    return f" ({', '.join(place.name for place in places)})" if places else ""


def sweep_state(folder: Path, combinations: Sequence[Sequence[str]]) -> SweepState:
    """Return how far the sweep in a folder is.

    Parameters
    ----------
    folder : Path
    combinations : sequence of sequence of str
        The overrides of each of its runs.
    """
    places = {tuple(sorted(_override_lines(place))): place for place in _runs(folder)}
    state = SweepState([], [], [], [])
    shared = set.intersection(*map(set, combinations)) if len(combinations) > 1 else set()
    for overrides in combinations:
        place = places.get(tuple(sorted(overrides)))
        if place is None or not (place / ".hydra" / "config.yaml").is_file():
            state.never_started.append(" ".join(o for o in overrides if o not in shared))
        elif RunState(place).values["finished"]:
            state.finished.append(place)
        else:
            (state.running if Journal.is_busy(place) else state.go_on).append(place)
    return state


def named(circuits: Mapping[str, Circuit], source: str | Path) -> dict[str, Circuit]:
    """Name the circuits of a sweep's folder by what differs between their runs; leave other names as they are."""
    folder = Path(source)
    given = {name: _overrides(folder / name) for name in circuits if (folder / name / ".hydra").is_dir()}
    if len(circuits) < 2 or len(given) < len(circuits):
        return dict(circuits)
    varied = _varied(given.values())
    labels = {name: " ".join(f"{key}={mine[key]}" for key in varied if key in mine) for name, mine in given.items()}
    alike = Counter(labels.values())
    return {
        (label if label and alike[label] == 1 else f"{name} {label}".strip()): circuits[name]
        for name, label in labels.items()
    }


def _varied(given: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values differ."""
    given = list(given)
    keys = dict.fromkeys(key for mine in given for key in mine)
    return [key for key in keys if len({mine.get(key) for mine in given}) > 1]


def show_sweep(folder: Path, console: Console | None = None) -> int:
    """Print a table of a sweep's runs and write it as `sweep.csv`; the same for how alike their circuits are.

    Returns
    -------
    int
        How many runs are finished.
    """
    console = console or Console()
    places = _runs(folder)
    overrides = {place: _overrides(place) for place in places}
    keys = list(dict.fromkeys(key for given in overrides.values() for key in given))
    varied = _varied(overrides.values())
    rows = [
        {"run": str(place.relative_to(folder)), **{key: overrides[place].get(key, "") for key in keys}, **_read(place)}
        for place in places
    ]
    write_csv(folder / "sweep.csv", rows)

    # Of job=patch also each map's strongest site or path.
    strongest = {key: key.replace("_", " ") for row in rows for key in row if key.endswith("_strongest")}
    names = SHOWN | (strongest if len(strongest) <= MOST_STRONGEST else {})
    measured = [key for key in names if any(key in row for row in rows)]
    header = ["run", *varied, *(names[key] for key in measured)]
    cells = [[_cell(key, row.get(key)) for key in ("run", *varied, *measured)] for row in rows]
    show(console, Table("", header, cells, left=1 + len(varied)))
    say(console, f"table: {folder / 'sweep.csv'}")
    labels = {place: " ".join(overrides[place].get(key, "") for key in varied) for place in places}
    _compare(folder, labels, console)
    return sum(bool(_read(place)) for place in places)


def _compare(folder: Path, labels: Mapping[Path, str], console: Console) -> None:
    """Compare the circuits of the sweep: `comparison.csv`, `comparison.json`, `comparison.html`."""
    files = {place: place / "circuit.json" for place in labels if (place / "circuit.json").is_file()}
    if len(files) < 2:
        return
    found = [(_label(labels, place), Circuit.load(file)) for place, file in files.items()]
    try:
        comparison = compare_circuits(found)
    except FormatError as error:  # the model was swept, say
        say(console, f"circuits not compared: {error}")
        return
    write(comparison, view(comparison, str(folder)), folder, console, page="comparison")


def _label(labels: Mapping[Path, str], place: Path) -> str:
    """Return what was varied, with the run's name if that does not tell it from another run."""
    mine = labels[place]
    return mine if mine and list(labels.values()).count(mine) == 1 else f"{place.name} {mine}".strip()


def _read(folder: Path) -> dict[str, Any]:
    """Return the metrics of a run; empty while it is not finished."""
    try:
        return dict(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def _overrides(folder: Path) -> dict[str, str]:
    return {key: value for key, _, value in (line.partition("=") for line in _override_lines(folder))}


def _override_lines(folder: Path) -> list[str]:
    file = folder / ".hydra" / "overrides.yaml"
    return list(map(str, safe_load(file.read_text(encoding="utf-8")) or [])) if file.is_file() else []


def _runs(folder: Path) -> list[Path]:
    """Return the folders of the runs that were begun, in order."""
    return sorted((p.parent.parent for p in folder.glob("**/.hydra/overrides.yaml")), key=_by_number)


def _by_number(place: Path) -> tuple[bool, int, str]:
    return not place.name.isdigit(), int(place.name) if place.name.isdigit() else 0, str(place)


def _cell(key: str, value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:z.1%}" if key in ("recovery", "accuracy") else f"{value:.4g}"
