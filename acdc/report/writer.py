"""The one writer: it turns any result and its view into files, a page and console output."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from rich import table as rich_table
from rich.console import Console
from rich.text import Text

from acdc.files import write_atomically, write_json
from acdc.report.style import draw_files
from acdc.report.view import Block, Figure, Folded, Gallery, Graphic, Section, Table, View
from acdc.result import Labelled, Result

log = logging.getLogger(__name__)
FEW = 12  # rows of a long table on the console


@dataclass(frozen=True)
class Written:
    """What a job wrote.

    Attributes
    ----------
    summary : mapping
        The numbers of `metrics.json`.
    files : mapping of str to Path
        The files by name.
    tables : mapping of str to pandas.DataFrame
        The tables by name, for a tracker.
    """

    summary: Mapping[str, object]
    files: Mapping[str, Path]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)


def write(
    result: Result,
    view: View,
    folder: Path,
    console: Console,
    *,
    notes: Sequence[str] = (),
    closing: Sequence[Section] = (),
    measured: Mapping[str, object] | None = None,
    page: str = "report",
) -> Written:
    """Show a result on the console and write it into an existing folder. Each file appears whole or not at all.

    Written are NAME.csv for each table, NAME.npz for each group of arrays, NAME.json for each document and circuit,
    NAME.svg and NAME.png for each figure, the page, and the summary as `metrics.json`.

    Parameters
    ----------
    result, view
        What was computed, and what is shown of it.
    folder, console
    notes : sequence of str
        Further notes for the page; they stand before the result's own. The console shows the result's own only.
    closing : sequence of Section
        Sections at the end of the page.
    measured : mapping, optional
        What the result does not know, such as `seconds`; added to the summary.
    page : str
        The page's file, without `.html`.

    Returns
    -------
    Written
    """
    for item in view.console:
        show(console, item)
    for note in result.notes():
        log.warning("%s", note)
        show(console, f"note: {note}")
    tables = {name: table for name, table in result.tables().items() if len(table)}
    files = {}
    for name, table in tables.items():
        files[f"{name}.csv"] = folder / f"{name}.csv"
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    for name, arrays in result.arrays().items():
        files[f"{name}.npz"] = folder / f"{name}.npz"
        write_atomically(folder / f"{name}.npz", _compressed(arrays))
    for name, document in result.documents().items():
        files[f"{name}.json"] = folder / f"{name}.json"
        write_json(files[f"{name}.json"], document)
    for name, circuit in result.circuits().items():
        files[f"{name}.json"] = folder / f"{name}.json"
        circuit.save(files[f"{name}.json"])
    sections = [*view.sections, *closing]
    drawn, warnings = _draw([block for section in sections for block in _pictures(section.blocks)], folder)
    files |= drawn
    images = {path.stem: path.read_bytes() for path in drawn.values() if path.suffix == ".svg"}
    files[f"{page}.html"] = folder / f"{page}.html"
    write_page(files[f"{page}.html"], view.title, view.lead, sections, [*notes, *result.notes(), *warnings], images)
    summary = {**result.summary(), **(measured or {})}
    if summary:
        files["metrics.json"] = folder / "metrics.json"
        write_json(files["metrics.json"], summary)
    for name in sorted(files):
        if name.endswith((".csv", ".html")):
            show(console, f"{name.partition('.')[0]:<20} {files[name]}")
    return Written(summary, files, tables)


def write_page(
    path: str | Path,
    title: str,
    lead: str,
    sections: Sequence[Section],
    notes: Sequence[str] = (),
    images: Mapping[str, bytes] | None = None,
) -> None:
    """Write a self-contained HTML page.

    Parameters
    ----------
    path, title, lead
    sections : sequence of Section
    notes : sequence of str
        What the reader should see first, one line each.
    images : mapping of str to bytes, optional
        The pictures of the sections as SVG, by name.
    """
    page = _TEMPLATES.get_template("page.html.jinja")
    write_atomically(path, page.render(title=title, lead=lead, notes=notes, sections=sections, images=images or {}))


def show(console: Console, item: object) -> None:
    """Print a table as the console shows it, and a line as it is: no markup, no colours, not cut at the right."""
    if isinstance(item, Table):
        console.print(console_table(item))
    elif isinstance(item, str):
        console.print(item, markup=False, emoji=False, highlight=False, soft_wrap=True)
    else:
        console.print(item)


def console_table(one: Table) -> rich_table.Table:
    """Make the console's form of a table."""
    shown = rich_table.Table(
        title=one.title,
        title_justify="left",
        show_header=any(one.header),
        caption=Text(one.caption) if one.caption else None,
        caption_justify="left",
        box=None,
        pad_edge=False,
        min_width=len(one.title),
    )
    for i, name in enumerate(one.header):
        shown.add_column(
            Text(name),
            justify="left" if one.is_left(i) else "right",
            overflow="fold",
            ratio=1 if i == one.wide else None,
            no_wrap=one.wide is not None and i != one.wide,
        )
    for row in one.rows[:FEW] if one.few else one.rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    if one.few and len(one.rows) > FEW:
        shown.add_row(f"and {len(one.rows) - FEW:,} more")
    return shown


def _compressed(arrays: Mapping[str, Labelled]) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **{name: array.values for name, array in arrays.items()})
    return content.getvalue()


def _pictures(blocks: Sequence[Block]) -> Iterator[Figure | Graphic]:
    for block in blocks:
        if isinstance(block, Figure | Graphic):
            yield block
        elif isinstance(block, Gallery):
            yield from (drawing for _, drawing in block.drawings)
        elif isinstance(block, Folded):
            yield from _pictures(block.blocks)


def _draw(pictures: Sequence[Figure | Graphic], folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Draw pictures into a folder; return the files by name, and what could not be drawn."""
    files: dict[str, Path] = {}
    warnings: list[str] = []
    for picture in pictures:
        if isinstance(picture, Figure):
            paths: Sequence[Path] = draw_files(picture.draw, folder, picture.name)
        else:
            paths, warning = picture.draw([folder / f"{picture.name}{suffix}" for suffix in (".svg", ".png")])
            warnings += [warning] if warning else []
        files |= {path.name: path for path in paths}
    warnings = list(dict.fromkeys(warnings))
    for warning in warnings:
        log.warning("%s", warning)
    return files, warnings


def _words(text: str) -> Markup:
    """Escape a text; what stands in `backticks` becomes code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _inline_svg(svg: bytes) -> Markup:
    """Prepare an SVG file, which this package drew itself, to stand inside a page: without its XML head."""
    drawing = re.sub(r"^.*?(?=<svg\b)", "", svg.decode(), flags=re.DOTALL)
    return Markup(drawing.replace("<svg ", '<svg role="img" aria-label="drawing of the circuit" ', 1))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _kind(block: object) -> str:
    return type(block).__name__


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_TEMPLATES.filters |= {"words": _words, "base64": _base64, "inline_svg": _inline_svg, "kind": _kind}
