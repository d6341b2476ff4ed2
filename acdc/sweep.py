"""A sweep's runs side by side: what differed between them, what came out, and how alike their circuits are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from yaml import safe_load

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.evaluation.comparison import compare_circuits
from acdc.files import write_csv, write_json
from acdc.report.comparison import comparison_section, console_table
from acdc.report.html import write_page
from acdc.tracking import say

MOST_STRONGEST = 4  # columns of them that fit a console
MOST_IN_MATRIX = 8  # circuits whose Jaccard matrix fits a console
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
    """One line about a run of a sweep, when it ends: its own overrides and what came out."""
    shared = safe_load((sweep / "multirun.yaml").read_text())["hydra"]["overrides"]["task"]
    own = " ".join(f"{key}={value}" for key, value in _overrides(folder).items() if f"{key}={value}" not in shared)
    run = _read(folder)
    shown = [f"{name} {_cell(key, run[key])}" for key, name in SHOWN.items() if run.get(key) is not None]
    say(Console(), f"{folder.name}: {own}: {', '.join(shown)}")


def show_sweep(folder: Path, console: Console | None = None) -> int:
    """Print a table of a sweep's runs and write it as `sweep.csv`; the same for how alike their circuits are.

    Returns how many runs are finished.
    """
    console = console or Console()
    places = sorted((p.parent.parent for p in folder.glob("**/.hydra/overrides.yaml")), key=_by_number)
    overrides = {place: _overrides(place) for place in places}
    keys = list(dict.fromkeys(key for given in overrides.values() for key in given))
    varied = [key for key in keys if len({given.get(key) for given in overrides.values()}) > 1]
    rows = [
        {"run": str(place.relative_to(folder)), **{key: overrides[place].get(key, "") for key in keys}, **_read(place)}
        for place in places
    ]
    write_csv(folder / "sweep.csv", rows)

    table = Table(box=None, padding=(0, 2, 0, 0))
    # Of job=patch also each map's strongest site or path.
    strongest = {key: key.replace("_", " ") for row in rows for key in row if key.endswith("_strongest")}
    names = SHOWN | (strongest if len(strongest) <= MOST_STRONGEST else {})
    measured = [key for key in names if any(key in row for row in rows)]
    for column in ("run", *varied, *(names[key] for key in measured)):
        table.add_column(column, justify="left" if column in ("run", *varied) else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(key, row.get(key)) for key in ("run", *varied, *measured)))
    console.print(table, markup=False, highlight=False)
    say(console, f"table: {folder / 'sweep.csv'}")
    labels = {place: " ".join(overrides[place].get(key, "") for key in varied) for place in places}
    _compare(folder, labels, console)
    return sum(bool(_read(place)) for place in places)


def _compare(folder: Path, labels: Mapping[Path, str], console: Console) -> None:
    """Lay the circuits of the sweep beside each other: `comparison.csv`, `comparison.json`, `comparison.html`."""
    files = {place: place / "circuit.json" for place in labels if (place / "circuit.json").is_file()}
    if len(files) < 2:
        return
    found = [(_label(labels, place), Circuit.load(file)) for place, file in files.items()]
    try:
        comparison = compare_circuits(found)
    except FormatError as error:  # the model was swept, say
        say(console, f"circuits not compared: {error}")
        return
    write_csv(folder / "comparison.csv", comparison.pair_rows())
    write_json(folder / "comparison.json", comparison.as_dict())
    tasks = ", ".join(dict.fromkeys(circuit.task for _, circuit in found))
    write_page(
        folder / "comparison.html",
        f"{len(found)} circuits · {tasks} · {found[0][1].model}",
        f"The circuits that the sweep in {folder} has found, and what they have in common.",
        [comparison_section(comparison)],
    )
    if len(found) <= MOST_IN_MATRIX:
        console.print(console_table(comparison))
    say(console, comparison.summary())
    say(console, f"comparison: {folder / 'comparison.html'}")


def _label(labels: Mapping[Path, str], place: Path) -> str:
    """What was varied; with the run's name where that does not tell it from another run."""
    mine = labels[place]
    return mine if mine and list(labels.values()).count(mine) == 1 else f"{place.name} {mine}".strip()


def _read(folder: Path) -> dict[str, Any]:
    """The metrics of a run, empty while it is not finished."""
    try:
        return dict(json.loads((folder / "metrics.json").read_text()))
    except FileNotFoundError:
        return {}


def _overrides(folder: Path) -> dict[str, str]:
    lines = safe_load((folder / ".hydra" / "overrides.yaml").read_text()) or []
    return {key: value for key, _, value in (str(line).partition("=") for line in lines)}


def _by_number(place: Path) -> tuple[bool, int, str]:
    return not place.name.isdigit(), int(place.name) if place.name.isdigit() else 0, str(place)


def _cell(key: str, value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.1%}" if key in ("recovery", "accuracy") else f"{value:.4g}"
