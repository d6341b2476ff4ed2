"""What causal tracing found, for people: the states that matter most, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from acdc.patching.traced import Traced
from acdc.report.grades import image
from acdc.report.html import Section, table
from acdc.report.numbers import number, thousandths

MOST_ON_CONSOLE = 5  # of each site
MOST_ON_PAGE = 50

_HEADER = ["site", "layer", "window", "position", "recovery", "effect", "se", "pairs"]


def states_table(traced: Traced) -> Table:
    """The states of each site that bring back most."""
    shown = Table(title="The states that bring back most", title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(_HEADER):
        shown.add_column(Text(name), justify="left" if i in (0, 3) else "right", overflow="fold")
    for one in traced.maps:
        for row in traced.ranked(one.site)[:MOST_ON_CONSOLE]:
            shown.add_row(*map(Text, _cells(row)))
    return shown


def lead(traced: Traced) -> str:
    """What was done and what the noise does, in a few sentences."""
    total = traced.total_effects
    error = float(total.std() / len(total) ** 0.5) if len(total) > 1 else float("nan")
    text = (
        f"Gaussian noise of standard deviation {number(traced.noise_std)} on the embeddings of the subject's tokens,"
        f" {len(traced.noised)} draws, takes {traced.metric} from {number(float(traced.clean.mean()))} to"
        f" {number(float(traced.noised.mean()))}: a total effect of {number(float(total.mean()))}"
        + f" (standard error {number(error)})"
        * (len(total) > 1)
        + ". Then one state at a time is put back to its value in the clean run; recovery is 0 at the noised run and 1"
        " at the clean one."
    )
    if float(total.mean()) <= 0:
        text += " Here noise helps on the whole, so recovery says little: look at the effects."
    return text


def traces_section(traced: Traced, pictures: Sequence[Path]) -> Section:
    """The heatmaps, SVG files named after their sites."""
    windows = [f"{one.site} in windows of {one.window} layers" for one in traced.maps if one.window > 1]
    html = (
        "<p>A row is a token, a star behind it says that it is noised, a column a layer"
        + (f" ({escape(', '.join(windows))}: the column is the window's centre)" if windows else "")
        + ". ± is the standard error over the pairs, of the mean over the draws.</p>"
    )
    if traced.by == "role":
        html += (
            "<p>A role is the mean over its tokens, in the pairs that have one. A token can have two roles: the only"
            " token of a subject is its first and its last.</p>"
        )
    return Section("What restoring a state brings back", html + _images(pictures))


def by_layer_section(traced: Traced, pictures: Sequence[Path]) -> Section:
    """The indirect effects by layer."""
    text = (
        "<p>The same in units of the metric: the indirect effect of a state, positive where restoring it helps, with a"
        " band of one standard error; dashed the total effect of the noise.</p>"
    )
    return Section("Effects by layer", text + _images(pictures))


def states_section(traced: Traced) -> Section:
    """The states that bring back most, more of them."""
    parts = []
    for one in traced.maps:
        rows = traced.ranked(one.site)
        cells = [[escape(cell) for cell in _cells(row)] for row in rows[:MOST_ON_PAGE]]
        title = f"{one.site}: {len(cells)} of {len(rows):,} states"
        numeric = [i for i in range(len(_HEADER)) if i not in (0, 3)]
        parts.append(f"<details><summary>{escape(title)}</summary>{table(_HEADER, cells, numeric)}</details>")
    return Section("The states that bring back most", "".join(parts))


def _cells(row: dict[str, Any]) -> list[str]:
    star = "*" if row["noised"] else ""
    numbers = (thousandths(row[key]) for key in ("recovery", "effect", "se"))
    return [row["site"], str(row["layer"]), str(row["window"]), row["label"] + star, *numbers, str(row["n"])]


def _images(pictures: Sequence[Path]) -> str:
    return "".join(image(path, f"causal trace {path.stem}") for path in pictures)
