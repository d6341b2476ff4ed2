"""What a page shows, as plain values. `acdc.report.writer` makes HTML, pictures and console output of it.

Text is plain text. In paragraphs, notes and lists, `backticks` mark code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure as Drawing
from rich.tree import Tree

from acdc.experiment import Experiment


@dataclass(frozen=True)
class Subject:
    """What a page is about: the names of the task and the model, and the number of pairs."""

    task: str
    model: str
    pairs: int

    @classmethod
    def of(cls, experiment: Experiment) -> Subject:
        return cls(experiment.task.name, experiment.model.name, len(experiment.pairs))


@dataclass(frozen=True)
class Shaded:
    """A cell with a number; its background is the darker the larger `share` is, 0 to 1."""

    text: str
    share: float


@dataclass(frozen=True)
class Bar:
    """A cell with a bar; `share`, 0 to 1, is its length. A negative number's bar has another colour."""

    share: float
    negative: bool = False


@dataclass(frozen=True)
class Marked:
    """A cell with lines of text; each piece of a line says whether it is marked."""

    lines: Sequence[Sequence[tuple[str, bool]]]


Cell = str | Shaded | Bar | Marked


@dataclass(frozen=True)
class Table:
    """A table of plain text, for the console and for pages.

    Attributes
    ----------
    title : str
        Shown on the console; on a page the words around the table say what it is.
    header : sequence of str
    rows : sequence of sequence of str, Shaded, Bar or Marked
        The console shows text only.
    left : int
        The first columns that are aligned to the left; the others are aligned to the right.
    few : bool
        Whether the console shows only the first rows of a long table.
    caption : str
        Shown below the table on the console.
    wide : int, optional
        The column that wraps on the console; the others do not.
    code : collection of int
        The columns that are set as code on a page.
    words : collection of int
        Further columns that are aligned to the left.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left: int = 1
    few: bool = False
    caption: str = ""
    wide: int | None = None
    code: Sequence[int] = ()
    words: Sequence[int] = ()

    def is_left(self, column: int) -> bool:
        return column < self.left or column in self.words


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes
    ----------
    name : str
        It is written as NAME.svg and NAME.png.
    draw : callable
        Draws it; called once, by the writer, with the common style set.
    alt : str
        What the picture shows, for those who do not see it.
    """

    name: str
    draw: Callable[[], Drawing]
    alt: str


@dataclass(frozen=True)
class Graphic:
    """A drawing of a graph, in a frame that scrolls and zooms.

    Attributes
    ----------
    name : str
        It is written as NAME.svg and NAME.png.
    draw : callable
        Writes the files it is given, as `acdc.report.picture.render_all` does; returns the files it wrote and a warning
        that becomes a note.
    """

    name: str
    draw: Callable[[Sequence[Path]], tuple[Sequence[Path], str]]


@dataclass(frozen=True)
class Gallery:
    """Small drawings side by side, each below its caption."""

    drawings: Sequence[tuple[str, Graphic]]


@dataclass(frozen=True)
class Bullets:
    """A list of lines; `warn` sets it off as something to take note of."""

    lines: Sequence[str]
    warn: bool = False


@dataclass(frozen=True)
class Verbatim:
    """Text that keeps its lines and spaces."""

    text: str


@dataclass(frozen=True)
class Folded:
    """Blocks that are folded away under a line of text at first."""

    summary: str
    blocks: Sequence[Block]


Block = str | Table | Figure | Graphic | Gallery | Bullets | Verbatim | Folded


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading and blocks. One without blocks is left out; `open` False folds it away at first."""

    title: str
    blocks: Sequence[Block]
    open: bool = True


@dataclass(frozen=True)
class View:
    """What a page and the console show of one result.

    Attributes
    ----------
    title, lead : str
        The page's heading, and the sentences below it.
    sections : sequence of Section
    console : sequence of str, Table or rich.tree.Tree
        What the console shows, in this order.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    console: Sequence[str | Table | Tree] = field(default=())
