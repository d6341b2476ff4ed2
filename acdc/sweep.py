"""A sweep's runs side by side: what differed between them and what came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from yaml import safe_load

from acdc.files import write_csv
from acdc.tracking import say

SHOWN = {"edges_kept": "edges kept", "recovery": "recovery", "kl": "KL", "seconds": "seconds"}


def show_run(folder: Path, sweep: Path) -> None:
    """One line about a run of a sweep, when it ends: its own overrides and what came out."""
    shared = safe_load((sweep / "multirun.yaml").read_text())["hydra"]["overrides"]["task"]
    own = " ".join(f"{key}={value}" for key, value in _overrides(folder).items() if f"{key}={value}" not in shared)
    run = _read(folder)
    recovery = "none" if run["recovery"] is None else f"{run['recovery']:.1%}"
    say(Console(), f"{folder.name}: {own}: {run['edges_kept']} edges kept, recovery {recovery}")


def show_sweep(folder: Path, console: Console | None = None) -> int:
    """Print a table of a sweep's runs, write it as `sweep.csv`, and return how many are finished."""
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
    for column in ("run", *varied, *SHOWN.values()):
        table.add_column(column, justify="left" if column in ("run", *varied) else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(key, row.get(key)) for key in ("run", *varied, *SHOWN)))
    console.print(table, markup=False, highlight=False)
    say(console, f"table: {folder / 'sweep.csv'}")
    return sum("edges_kept" in row for row in rows)


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
    return f"{value:.1%}" if key == "recovery" else f"{value:.4g}"
