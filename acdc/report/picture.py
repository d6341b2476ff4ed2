"""Pictures of circuits: SVG, PNG and PDF by Graphviz.

Layout is done by the `dot` program where there is one, else by the Graphviz inside pygraphviz's wheel, always in a
process of its own. Both are shown one font, DejaVu Sans from matplotlib, so pictures are the same on a machine without
fonts; it is wider than the Helvetica or Arial a browser takes for the SVG, so labels stay inside their boxes.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.files import write_atomically
from acdc.formats.dot import dot_source, drawn_edges

SUFFIXES = (".svg", ".png", ".pdf", ".dot")
MAX_EDGES = 400  # more are unreadable, and cost the layout minutes
TIMEOUT = 15.0  # seconds for one layout
NO_ENGINE = (
    "no picture was drawn, only DOT written: there is no Graphviz to lay it out: pip install 'acdc[pictures]', which"
    " brings pygraphviz, or install Graphviz"
)

log = logging.getLogger(__name__)


def render(circuit: Circuit, path: str | Path, **options: Any) -> Path:
    """Draw a circuit; the suffix of `path` says how: .svg, .png, .pdf or .dot.

    Parameters
    ----------
    circuit : Circuit
    path : str or Path
    **options
        `title`, `on_path` (default True: only edges on a path from input to logits), `legend`, and `max_edges` (default
        400 in pictures, no limit in DOT), as in `acdc.formats.dot.dot_source`.

    Returns
    -------
    Path
        The file written: `path`, or the DOT file of the same name if nothing can lay it out (logged as a warning).

    Raises
    ------
    FormatError
        Another suffix.
    """
    written, warning = render_all(circuit, [path], **options)
    if warning:
        log.warning("%s", warning)
    return written[0]


def render_all(circuit: Circuit, paths: Sequence[str | Path], **options: Any) -> tuple[list[Path], str]:
    """Draw a circuit in several formats with one layout; the options are those of `render`.

    Returns
    -------
    list of Path
        The files written. If nothing can lay the circuit out, it is a DOT file instead of the pictures.
    str
        One line that says what could not be drawn; empty if everything was.
    """
    targets = [Path(path) for path in paths]
    for path in targets:
        if path.suffix.lower() not in SUFFIXES:
            raise FormatError(
                f"{path}: a picture cannot be a {path.suffix or 'file without suffix'}; use {', '.join(SUFFIXES)}"
            )
    pictures = [path for path in targets if path.suffix.lower() != ".dot"]
    drawn, warning = _draw(circuit, [path.suffix.lower()[1:] for path in pictures], options) if pictures else ({}, "")
    if pictures and not drawn:
        targets = list(dict.fromkeys(path.with_suffix(".dot") for path in targets))
    for path in targets:
        kind = path.suffix.lower()[1:]
        write_atomically(path, dot_source(circuit, **options) if kind == "dot" else drawn[kind])
    return targets, warning


def _draw(circuit: Circuit, kinds: list[str], options: dict[str, Any]) -> tuple[dict[str, bytes], str]:
    """Return pictures by format, with fewer edges if the layout takes too long; empty without an engine."""
    options = {"max_edges": MAX_EDGES, **options}
    while True:
        try:
            return _lay_out(dot_source(circuit, **options), kinds)
        except subprocess.TimeoutExpired:
            edges, _ = drawn_edges(circuit, on_path=options.get("on_path", True), max_edges=options["max_edges"])
            options["max_edges"] = min(len(edges), options["max_edges"] or len(edges)) // 2  # one path may be more
            if not options["max_edges"]:
                return {}, f"no picture was drawn, only DOT written: the layout took more than {TIMEOUT:g} s"


def _lay_out(dot: str, kinds: list[str]) -> tuple[dict[str, bytes], str]:
    """Run the first layout engine that works."""
    problem = NO_ENGINE
    with tempfile.TemporaryDirectory(prefix="acdc-picture-", ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "FONTCONFIG_FILE": str(_fonts_conf(Path(folder)))}
        outputs = {kind: Path(folder) / f"circuit.{kind}" for kind in kinds}
        arguments = [argument for kind, path in outputs.items() for argument in (f"-T{kind}", "-o", str(path))]
        for engine in _engines():
            done = subprocess.run(
                [*engine, *arguments], input=dot.encode(), capture_output=True, env=environment, timeout=TIMEOUT
            )
            if done.returncode == 0 and all(path.exists() and path.stat().st_size for path in outputs.values()):
                return {kind: path.read_bytes() for kind, path in outputs.items()}, ""
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            problem = f"no picture was drawn, only DOT written: {Path(engine[-1]).name} failed ({said[-1]})"
    return {}, problem


def _engines() -> list[list[str]]:
    """Return commands that take `dot`'s arguments, the best first."""
    engines = []
    if program := shutil.which("dot"):
        engines.append([program])
    if importlib.util.find_spec("pygraphviz"):
        engines.append([sys.executable, "-P", str(Path(__file__).with_name("_layout.py"))])
    return engines


def _fonts_conf(folder: Path) -> Path:
    """Write a fontconfig file that knows only matplotlib's DejaVu Sans, and gives it for every name."""
    matplotlib = importlib.util.find_spec("matplotlib")
    assert matplotlib is not None
    assert matplotlib.origin is not None
    fonts = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf"
    path = folder / "fonts.conf"
    path.write_text(
        f"""<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{fonts}</dir>
  <cachedir>{folder / "cache"}</cachedir>
  <selectfont>
    <acceptfont><glob>*/DejaVuSans.ttf</glob><glob>*/DejaVuSans-Bold.ttf</glob></acceptfont>
    <rejectfont><glob>*</glob></rejectfont>
  </selectfont>
  <match target="pattern">
    <edit name="family" mode="assign" binding="strong"><string>DejaVu Sans</string></edit>
  </match>
</fontconfig>
"""
    )
    return path
