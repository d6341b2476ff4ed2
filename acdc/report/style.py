"""The one style of all plots, and how they become files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from acdc.files import write_atomically

BLUE, GREEN, ORANGE, GREY = "#2563ab", "#3f9c79", "#c07a1e", "#8a929c"
RUNS = {"clean": BLUE, "corrupted": ORANGE}

STYLE: dict[str, Any] = {
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "svg.hashsalt": "acdc",  # the same bytes for the same figure
}


def new_figure(size: tuple[float, float]) -> Figure:
    """Make a figure of a width and height in inches; it needs no display and is not kept globally as pyplot's are."""
    return Figure(figsize=size, layout="constrained")


def draw_files(draw: Callable[[], Figure], folder: Path, name: str) -> list[Path]:
    """Draw a figure in the common style and write it as NAME.svg and NAME.png."""
    with rc_context(STYLE):
        return save_figure(draw(), folder, name)


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as NAME.svg and NAME.png, with the same bytes for the same figure."""
    paths = []
    with rc_context({"svg.hashsalt": STYLE["svg.hashsalt"]}):
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=150, metadata=metadata)
            paths.append(folder / f"{name}.{kind}")
            write_atomically(paths[-1], content.getvalue())
    return paths
