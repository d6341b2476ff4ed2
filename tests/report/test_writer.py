"""What the writer makes of a result and a view."""

from __future__ import annotations

import base64
import csv
import io
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import read_json
from matplotlib.figure import Figure as Drawing
from pages import html_of
from rich.console import Console
from test_html import Page

from acdc.circuit import Circuit
from acdc.graph import Edge, Graph, GraphConfig
from acdc.report.picture import render_all
from acdc.report.style import new_figure
from acdc.report.view import (
    Bar,
    Bullets,
    Figure,
    Folded,
    Gallery,
    Graphic,
    Marked,
    Section,
    Shaded,
    Table,
    Verbatim,
    View,
)
from acdc.report.writer import Written, write
from acdc.result import Labelled, Result, as_table

ROWS = [
    {"site": "a0.h1", "head": 1, "effect": 0.1 + 0.2},
    {"site": "m<0> & $x", "head": None, "effect": -1e-9, "shifted": True},
]


GRAPH = Graph(GraphConfig(1, 1, 4))


class Found(Result):
    def tables(self) -> dict[str, pd.DataFrame]:
        return {"found": as_table(ROWS), "empty": as_table([])}

    def arrays(self) -> dict[str, dict[str, Labelled]]:
        return {"found": {"effect": Labelled(("layer", "head"), np.arange(6.0).reshape(2, 3))}}

    def documents(self) -> dict[str, object]:
        return {"nested": {"sites": ["a0.h1"]}}

    def circuits(self) -> dict[str, Circuit]:
        return {"kept": Circuit(GRAPH, {Edge("m0", "logits"): 0.5})}

    def summary(self) -> dict[str, object]:
        return {"sites": 2}

    def notes(self) -> tuple[str, ...]:
        return ("one <site> was left out",)


def draw() -> Drawing:
    figure = new_figure((3, 2))
    figure.add_subplot().plot([1, 2])
    return figure


VIEW = View(
    "A <title>",
    "Lead & $sentence of `code`",
    [
        Section("Words", ["A `file.csv` & <b>", Bullets(["one", "two"]), Verbatim("a: <b>\n")]),
        Section("Folded table", [Folded("more", [Table("", ["site", "n"], [["m<0>", "1"]], code=[0])])], open=False),
        Section("Picture", [Figure("line", draw, 'a "line"')]),
        Section("Empty", []),
    ],
    ["[bold]a line[/bold]", Table("Sites", ["site", "n"], [["m<0>", "1"]])],
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written, str]:
    folder, out = tmp_path_factory.mktemp("written"), io.StringIO()
    console = Console(file=out, width=100)
    pairs = Section("Pairs", ["two pairs"])
    done = write(Found(), VIEW, folder, console, notes=["a note"], closing=[pairs], measured={"seconds": 1.5})
    return folder, done, out.getvalue()


def test_every_file_is_there_and_told_of(written: tuple[Path, Written, str]) -> None:
    folder, done, _ = written
    names = {
        "found.csv",
        "found.npz",
        "nested.json",
        "kept.json",
        "line.svg",
        "line.png",
        "report.html",
        "metrics.json",
    }
    assert {path.name for path in folder.iterdir()} == names
    assert done.files == {name: folder / name for name in names}
    assert list(done.tables) == ["found"]
    assert read_json(folder / "metrics.json") == done.summary == {"sites": 2, "seconds": 1.5}
    assert read_json(folder / "nested.json") == {"sites": ["a0.h1"]}
    assert Circuit.load(folder / "kept.json").edges == {Edge("m0", "logits"): 0.5}
    with np.load(folder / "found.npz") as arrays:
        assert arrays["effect"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_tables_keep_every_digit_and_whole_numbers(written: tuple[Path, Written, str]) -> None:
    with (written[0] / "found.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["site", "head", "effect", "shifted"],
            ["a0.h1", "1", "0.30000000000000004", ""],
            ["m<0> & $x", "", "-1e-09", "True"],
        ]


def test_the_page_shows_all_and_escapes_it(written: tuple[Path, Written, str]) -> None:
    source = (written[0] / "report.html").read_text()
    text = Page(source).text
    assert "Lead & $sentence of  code" in text["A <title>"]
    assert " ".join(text["Please note"].split()) == "Please note a note one <site> was left out"
    assert list(text)[-4:] == ["Words", "Folded table", "Picture", "Pairs"]
    assert "A  file.csv  & <b>" in text["Words"]
    assert "a: <b>\n" in text["Words"]
    assert "<code>m&lt;0&gt;</code>" in source
    assert base64.b64encode((written[0] / "line.svg").read_bytes()).decode() in source


def test_the_console_shows_lines_as_they_are(written: tuple[Path, Written, str]) -> None:
    lines = [line.rstrip() for line in written[2].splitlines()]
    assert lines[:2] == ["[bold]a line[/bold]", "Sites"]
    assert "m<0>  1" in lines
    assert "note: one <site> was left out" in lines
    assert lines[-2:] == [f"{name.partition('.')[0]:<20} {written[0] / name}" for name in ("found.csv", "report.html")]


def test_cells_that_are_more_than_text() -> None:
    prompt = Marked([[("the ", False), ("<cat>", True)], [("dog", False)]])
    cells = [[Shaded("3", 0.25), Bar(0.5), Bar(1.0, negative=True), prompt]]
    html = html_of(Section("Cells", [Table("", ["n", "", "", "prompt"], cells), Bullets(["beware"], warn=True)]))
    assert '<span class="heat" style="--share:25%">3</span>' in html
    assert '<span class="bar" style="width:50.0%"></span>' in html
    assert '<span class="bar minus" style="width:100.0%"></span>' in html
    assert "the <mark>&lt;cat&gt;</mark><br>dog" in html
    assert "<ul class=notes><li>beware</li></ul>" in html


def test_graphs_zoom_and_galleries_are_drawn(tmp_path: Path) -> None:
    """Only a graph that stands by itself can be zoomed; those of a gallery are pictures of their own."""
    circuit = Circuit(GRAPH, {Edge("input", "m0"): 1.0, Edge("m0", "logits"): 0.5})
    whole, small = (Graphic(name, partial(render_all, circuit)) for name in ("whole", "small"))
    view = View("Graphs", "", [Section("Both", [whole, Gallery([("The `small` one", small)])])])
    write(Result(), view, tmp_path, Console(file=io.StringIO()), page="graphs")
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"{name}.{kind}" for name in ("whole", "small") for kind in ("svg", "png")),
        "graphs.html",
    }
    html = (tmp_path / "graphs.html").read_text()
    assert html.count("<svg ") == html.count("data:image/svg+xml;base64,") == 1
    assert "The <code>small</code> one" in html
