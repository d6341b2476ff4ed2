"""Pictures opened for real: SVG as XML, PNG as pixels, with and without a layout engine."""

from __future__ import annotations

import logging
import os
import random
import stat
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.graph import Edge, Graph, GraphConfig
from acdc.report import picture
from acdc.report.picture import render, render_all

SVG = "{http://www.w3.org/2000/svg}"
DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
EDGES = {
    Edge("m1", "logits"): 2.0,
    Edge("a1.h10", "m1"): 1.0,
    Edge("a0.h11", "a1.h10<q>"): 0.5,
    Edge("a0.h11", "a1.h10<k>"): -1.5,
    Edge("input", "a0.h11<v>"): 0.25,
    Edge("input", "m1"): 0.5,
}


@pytest.fixture(autouse=True)
def no_dot_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that is the whole PATH: layout must come from pygraphviz unless a test puts a `dot` there."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return programs


def circuit() -> Circuit:
    return Circuit(Graph(GraphConfig(2, 12, 96)), EDGES, model="pocket", task="ioi")


def large_circuit(n_edges: int) -> Circuit:
    graph = Graph(GraphConfig(6, 6, 96))
    return Circuit(graph, {edge: random.Random(str(edge)).gauss(0, 1) for edge in list(graph)[:n_edges]})


def nodes(svg: Path) -> dict[str, ElementTree.Element]:
    groups = ElementTree.parse(svg).iterfind(f".//{SVG}g[@class='node']")
    return {str(group.findtext(f"{SVG}title")): group for group in groups}


def box(group: ElementTree.Element) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a node's outline."""
    numbers: list[tuple[float, float]] = []
    for shape in (*group.iter(f"{SVG}path"), *group.iter(f"{SVG}polygon")):
        text = shape.get("points") or str(shape.get("d")).replace("M", " ").replace("C", " ").replace("L", " ")
        numbers += [(float(x), float(y)) for x, y in (point.split(",") for point in text.split())]
    xs, ys = zip(*numbers, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def test_svg_has_every_node_with_its_name_and_ports(tmp_path: Path) -> None:
    found = nodes(render(circuit(), tmp_path / "c.svg"))
    texts = {name: [t.text for t in group.iter(f"{SVG}text")] for name, group in found.items()}
    assert texts == {
        "input": ["input"],
        "a0.h11": ["a0.h11", "q", "k", "v"],
        "a1.h10": ["a1.h10", "q", "k", "v"],
        "m1": ["m1"],
        "logits": ["logits"],
    }


def test_layers_stand_above_each_other_in_the_models_order(tmp_path: Path) -> None:
    for seed in range(3):
        graph, rng = Graph(GraphConfig(5, 3, 96)), random.Random(seed)
        chosen = Circuit(graph, {edge: rng.gauss(0, 1) for edge in rng.sample(list(graph), 250)})
        boxes = {name: box(group) for name, group in nodes(render(chosen, tmp_path / "c.svg")).items()}
        rows = [["input"]]
        for layer in range(5):
            rows += [[f"a{layer}.h{head}" for head in range(3)], [f"m{layer}"]]
        rows = [[boxes[name] for name in row if name in boxes] for row in (*rows, ["logits"])]
        rows = [row for row in rows if row]
        assert len(boxes) > 15
        for lower, upper in pairwise(rows):
            assert min(top for _, top, _, _ in lower) > max(bottom for *_, bottom in upper)


def test_labels_fit_their_boxes_in_the_widest_usual_font(tmp_path: Path) -> None:
    for group in nodes(render(circuit(), tmp_path / "c.svg")).values():
        left, top, right, bottom = box(group)
        for text in group.iter(f"{SVG}text"):
            font = ImageFont.truetype(str(DEJAVU), float(str(text.get("font-size"))))
            width, x = font.getlength(str(text.text)), float(str(text.get("x")))
            start = x - width / 2 if text.get("text-anchor") == "middle" else x
            assert left < start
            assert start + width < right
            assert top < float(str(text.get("y"))) < bottom


def test_png_shows_letters_on_a_machine_without_fonts(tmp_path: Path) -> None:
    """A node's label is the one that Pillow draws with DejaVu Sans, not a row of empty boxes or another label."""
    svg, png = render_all(circuit(), [tmp_path / "c.svg", tmp_path / "c.png"])[0]
    root = ElementTree.parse(svg).getroot()
    view = [float(value) for value in str(root.get("viewBox")).split()]
    shift = str(root.find(f"{SVG}g").get("transform")).split("translate(")[1].rstrip(")").split()  # type: ignore[union-attr]
    image = Image.open(png).convert("L")
    scale = image.width / view[2]
    for name in ("input", "logits"):
        left, top, right, bottom = (
            round((value + float(shift[i % 2])) * scale) for i, value in enumerate(box(nodes(svg)[name]))
        )
        crop = 255.0 - np.asarray(image.crop((left + 4, top + 4, right - 4, bottom - 4)), dtype=float)
        likeness = {word: best_match(crop, word, 12 * scale) for word in ("input", "logits", "▯▯▯▯▯")}
        found = likeness.pop(name)
        assert found > 0.7
        assert found > max(likeness.values()) + 0.1


def best_match(crop: np.ndarray, word: str, size: float) -> float:
    """The largest correlation of a word's image with a place in the crop."""
    font = ImageFont.truetype(str(DEJAVU), size)
    left, top, right, bottom = (round(value) for value in font.getbbox(word))
    drawn = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(drawn).text((-left, -top), word, fill=255, font=font)
    template = np.asarray(drawn, dtype=float)
    (height, width), best = template.shape, 0.0
    for y in range(crop.shape[0] - height + 1):
        for x in range(crop.shape[1] - width + 1):
            best = max(best, float(np.corrcoef(crop[y : y + height, x : x + width].ravel(), template.ravel())[0, 1]))
    return best


def test_every_format_is_what_its_suffix_says(tmp_path: Path) -> None:
    paths = [tmp_path / f"c.{kind}" for kind in ("dot", "svg", "png", "pdf")]
    written, warning = render_all(circuit(), paths)
    assert (written, warning) == (paths, "")
    heads = [path.read_bytes()[:8] for path in paths]
    assert [head[:4] for head in heads] == [b"digr", b"<?xm", b"\x89PNG", b"%PDF"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "c.dot", "c.pdf", "c.png", "c.svg"]


def test_circuits_draw_themselves(tmp_path: Path) -> None:
    path = circuit().render(tmp_path / "c.svg", title="A title & more")
    assert "A title &amp; more" in path.read_text()


@pytest.mark.parametrize("name", ["c.jpg", "c"])
def test_other_suffixes_are_refused_before_anything_is_drawn(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match=r"\.svg, \.png, \.pdf, \.dot"):
        render_all(circuit(), [tmp_path / "c.dot", tmp_path / name])
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_without_an_engine_the_dot_is_written_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(picture, "_engines", list)
    with caplog.at_level(logging.WARNING):
        assert render(circuit(), tmp_path / "c.svg") == tmp_path / "c.dot"
    assert (tmp_path / "c.dot").read_text().startswith("digraph")
    assert not (tmp_path / "c.svg").exists()
    assert len(caplog.messages) == 1
    assert "pip install 'acdc[pictures]'" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]
    written, warning = render_all(circuit(), [tmp_path / "d.dot", tmp_path / "d.svg", tmp_path / "d.png"])
    assert written == [tmp_path / "d.dot"]
    assert warning


def fake_dot(folder: Path, python: str) -> None:
    """A `dot` program on the PATH; `engine` is the command of the real thing."""
    program = folder / "dot"
    engine = [sys.executable, "-P", str(Path(picture.__file__).with_name("_layout.py"))]
    program.write_text(f"#!{sys.executable}\nimport subprocess, sys, time\nengine = {engine!r}\n{python}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_the_dot_program_is_preferred(tmp_path: Path, no_dot_on_the_path: Path) -> None:
    fake_dot(
        no_dot_on_the_path, f"open({str(tmp_path / 'asked')!r}, 'w')\nsys.exit(subprocess.call(engine + sys.argv[1:]))"
    )
    assert nodes(render(circuit(), tmp_path / "c.svg"))
    assert (tmp_path / "asked").exists()


@pytest.mark.parametrize("broken", ["sys.exit(1)", "sys.exit(0)"])
def test_a_broken_dot_program_is_passed_over(tmp_path: Path, no_dot_on_the_path: Path, broken: str) -> None:
    fake_dot(no_dot_on_the_path, broken)
    assert nodes(render(circuit(), tmp_path / "c.svg"))


def test_a_layout_that_takes_too_long_gets_fewer_edges(
    tmp_path: Path, no_dot_on_the_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "TIMEOUT", 1.5)
    fake_dot(
        no_dot_on_the_path,
        "text = sys.stdin.read()\n"
        "if text.count('minlen=') > 100: time.sleep(60)\n"
        "sys.exit(subprocess.run(engine + sys.argv[1:], input=text.encode()).returncode)",
    )
    written, warning = render_all(large_circuit(150), [tmp_path / "c.svg", tmp_path / "c.dot"], on_path=False)
    assert not warning
    edges = ElementTree.parse(written[0]).findall(f".//{SVG}g[@class='edge']")
    assert len(edges) == 75
    assert "drawn: 75 of 150 edges, the strongest" in written[0].read_text()
    assert written[1].read_text().count("minlen=") == 150


def test_a_layout_that_never_ends_is_given_up(
    tmp_path: Path, no_dot_on_the_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One path is always drawn, whatever the limit; so it is the limit that must come to its end."""
    monkeypatch.setattr(picture, "TIMEOUT", 0.3)
    fake_dot(no_dot_on_the_path, "time.sleep(60)")
    for limit in (400, None):
        written, warning = render_all(circuit(), [tmp_path / "c.svg"], max_edges=limit)
        assert written == [tmp_path / "c.dot"]
        assert "took more than" in warning


def test_pictures_have_a_limit_and_the_dot_has_none(tmp_path: Path) -> None:
    written, _ = render_all(large_circuit(900), [tmp_path / "c.svg", tmp_path / "c.dot"], on_path=False)
    assert len(ElementTree.parse(written[0]).findall(f".//{SVG}g[@class='edge']")) == picture.MAX_EDGES
    assert written[1].read_text().count("minlen=") == 900


def test_the_same_circuit_gives_the_same_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = render(circuit(), tmp_path / "a.svg").read_bytes()
    monkeypatch.setenv("FONTCONFIG_FILE", os.devnull)
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    assert render(circuit(), tmp_path / "b.svg").read_bytes() == first
