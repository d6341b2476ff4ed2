"""A table for people that stands on the console and in the report alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich.table import Table
from rich.text import Text

from acdc.report.html import table

FEW = 12  # rows of a long table on the console


@dataclass(frozen=True)
class Grid:
    """`rows` of plain text under `header`; the first `left` columns are flush left, the others right.

    `few`: of a long table, whether the console shows the first rows only.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    few: bool = False

    def console(self) -> Table:
        shown = Table(title=self.title, title_justify="left", box=None, pad_edge=False, min_width=len(self.title))
        for i, name in enumerate(self.header):
            shown.add_column(Text(name), justify="left" if i < self.left else "right", overflow="fold")
        for row in self.rows[:FEW] if self.few else self.rows:
            shown.add_row(*map(Text, row))
        if self.few and len(self.rows) > FEW:
            shown.add_row(f"and {len(self.rows) - FEW:,} more")
        return shown

    def html(self) -> str:
        cells = [[escape(cell) for cell in row] for row in self.rows]
        return table([escape(name) for name in self.header], cells, numeric=range(self.left, len(self.header)))


def thousandths(value: float | None) -> str:
    """An effect or recovery with three digits, a dash for what does not exist."""
    return "—" if value is None or math.isnan(value) else f"{round(value, 3) + 0.0:.3f}"  # no −0.000


def share(value: float | None) -> str:
    """A share in percent, a dash for what does not exist."""
    return "—" if value is None or not math.isfinite(value) else f"{round(value, 4) + 0.0:.1%}"  # no −0.0%


def listed(lines: Sequence[str]) -> str:
    """Lines of plain text as an HTML list."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
