"""The report as a browser's parser sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from acdc.circuit import Circuit
from acdc.graph import Edge, Graph, GraphConfig
from acdc.report.discovery import view
from acdc.report.picture import render
from acdc.report.view import Section
from acdc.report.writer import write_page

VOID = {"meta", "br", "img", "link", "input", "hr"}
METRICS = {
    "clean": 3.42,
    "corrupted": -0.11,
    "circuit": 3.21,
    "recovery": 0.9405,
    "kl": 0.0312,
    "edges_kept": 4,
    "edges_total": 479,
    "decisions": 212,
    "near_ties": 1,
    "seconds": 3.25,
    "peak_mb": 412.0,
    "on_path": 3,
    "metric": "logit_diff",
}
EDGES = {
    Edge("m1", "logits"): 2.0,
    Edge("a0.h1", "m1"): -1.0,
    Edge("input", "a0.h1<v>"): 0.5,
    Edge("a0.h2", "a1.h3<q>"): 0.25,
}


class Page(HTMLParser):
    """Checks that tags are balanced; collects text by the section it stands in, links and bars."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.text: dict[str, str] = {}
        self.links: list[str] = []
        self.bars: list[str] = []
        self.section = ""
        self.feed(text)
        assert not self.stack, self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [str(given[key]) for key in ("src", "href") if key in given]
        if (given.get("class") or "").startswith("bar"):
            self.bars.append(f"{given['class']} {given['style']}")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        return

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, tag
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] in ("h1", "h2"):
            self.section = data
        self.text[self.section] = self.text.get(self.section, "") + " " + data


def circuit(**metrics: object) -> Circuit:
    return Circuit(
        Graph(GraphConfig(4, 4, 128)),
        EDGES,
        model="pocket",
        task="ioi",
        method={"name": "acdc", "threshold": 0.03, "engine": "full"},
        metrics=METRICS | metrics,
        provenance={"versions": {"torch": "2.13.0"}, "seed": 7, "device": "cpu"},
    )


def page(tmp_path: Path, made: Circuit, svg: bytes | None = None, notes: Sequence[str] = ()) -> Page:
    """The page of a discovery, with a picture or without."""
    shown, images = view(made), {} if svg is None else {"circuit": svg}
    write_page(tmp_path / "report.html", shown.title, shown.lead, shown.sections, notes, images)
    return Page((tmp_path / "report.html").read_text())


def test_the_first_sentence_says_what_was_found(tmp_path: Path) -> None:
    lead = page(tmp_path, circuit()).text["Circuit · ioi · pocket"]
    for fact in ("ACDC kept 4 of 479 edges", "pocket", "ioi", "τ = 0.03", "94%", "-0.11", "3.42"):
        assert fact in lead
    assert "on the pairs they were found on" in lead


def test_every_part_is_there(tmp_path: Path) -> None:
    svg = render(circuit(), tmp_path / "c.svg").read_bytes()
    text = page(tmp_path, circuit(), svg, notes=["Tom & <Jerry> are two tokens"]).text
    assert "Tom & <Jerry> are two tokens" in text["Please note"]
    assert "a0.h1" in text["The circuit"]
    for name in METRICS:
        assert name in text["Numbers"]
    assert "on the pairs it was found on" in text["Numbers"]
    assert "94.0%" in text["Numbers"] or "94.1%" in text["Numbers"]
    assert re.search(r"m1\s+logits\s+2.*a0\.h1\s+m1\s+-1.*a0\.h1<v>\s+0\.5", text["Edges by effect"], re.DOTALL)
    assert "3 of the 4 kept edges" in text["Edges on no path"]
    assert "a0.h2->a1.h3<q>" in text["Edges on no path"]
    for fact in ("2.13.0", "seed", "7", "cpu", "engine", "full", "n_layers", "128"):
        assert fact in text["Where it comes from"]


def test_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    svg = render(circuit(), tmp_path / "c.svg").read_bytes()
    parsed = page(tmp_path, circuit(), svg)
    assert parsed.links == []
    text = (tmp_path / "report.html").read_text()
    outside = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not addresses
    assert "@import" not in text
    assert "url(" not in text
    assert "<?xml" not in text
    assert text.count("<!doctype") == 1
    assert "<!DOCTYPE" not in text


def test_bars_compare_effects(tmp_path: Path) -> None:
    assert page(tmp_path, circuit()).bars == [
        "bar width:100.0%",
        "bar minus width:50.0%",
        "bar width:25.0%",
        "bar width:12.5%",
    ]


def test_edges_by_layer_count_what_goes_in_and_out(tmp_path: Path) -> None:
    words = page(tmp_path, circuit()).text["Edges by layer"].split()
    rows = " ".join(words[words.index("logits", words.index("it")) :])
    assert rows == "logits 1 layer 3 layer 2 layer 1 a1.h3 1 1 1 layer 0 a0.h1, a0.h2 1 2 input 1"


@pytest.mark.parametrize("recovery", [float("nan"), float("inf")])
def test_an_undefined_recovery_is_not_boasted_of(tmp_path: Path, recovery: float) -> None:
    text = page(tmp_path, circuit(recovery=recovery)).text
    assert "recover" not in text["Circuit · ioi · pocket"]
    assert "nan" not in text["Numbers"]


def test_an_empty_circuit_without_picture_or_figures(tmp_path: Path) -> None:
    text = page(tmp_path, Circuit(Graph(GraphConfig(1, 1, 8)), {})).text
    assert "The circuit has 0 of 8 edges" in text["Circuit"]
    assert "No picture" in text["The circuit"]
    assert "No edge was kept" in text["Edges by effect"]
    assert "Numbers" not in text
    assert "Edges on no path" not in text


def test_long_lists_are_cut_and_say_so(tmp_path: Path) -> None:
    graph = Graph(GraphConfig(12, 12, 768))
    edges = {edge: 1.0 for edge, _ in zip(graph, range(1200), strict=False)}
    parsed = page(tmp_path, Circuit(graph, edges))
    assert len(parsed.bars) == 500
    assert "700 weaker edges are not listed" in parsed.text["Edges by effect"]


def test_pages_of_other_sections(tmp_path: Path) -> None:
    sections = [Section("One & two", ["body"]), Section("Empty", []), Section("Folded", ["in"], open=False)]
    write_page(tmp_path / "p.html", "A <title>", "Lead & $sentence", sections)
    parsed = Page((tmp_path / "p.html").read_text())
    assert "Lead & $sentence" in parsed.text["A <title>"]
    assert parsed.text["One & two"].split() == ["One", "&", "two", "body"]
    assert "Empty" not in parsed.text
    assert (tmp_path / "p.html").read_text().count("<details>") == 1
