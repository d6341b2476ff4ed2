"""Tables and lists as HTML, for pages that are still put together as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.table import Table as ConsoleTable

from acdc.report.html import table
from acdc.report.view import Table
from acdc.report.writer import console_table


class Grid(Table):
    """A table that turns itself into HTML."""

    def console(self) -> ConsoleTable:
        return console_table(self)

    def html(self) -> str:
        cells = [[escape(cell) for cell in row] for row in self.rows]
        return table([escape(name) for name in self.header], cells, numeric=range(self.left, len(self.header)))


def listed(lines: Sequence[str]) -> str:
    """Lines of plain text as an HTML list."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
