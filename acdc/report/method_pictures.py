"""Plots and pictures of a comparison of methods: curves over sizes, ROC curves, circuits of equal size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from acdc.circuit import Circuit
from acdc.evaluation.comparison import CircuitComparison
from acdc.evaluation.method_table import SHARE, Judge, Judged
from acdc.formats.dot import Marks
from acdc.report.picture import render_all
from acdc.report.style import new_figure, save_figure

COLOURS = ("#2563ab", "#c2571a", "#3f9c79", "#8e44ad", "#c0392b", "#7f6a2b", "#16a5b8", "#d16ba5", "#5d6d1e", "#34495e")
SHARED = {"alone": "#d9730d", "some": "#8fb3d9", "most": "#2f6db5", "all": "#0b2f66"}
_MOST_RECOVERY = 2.0  # of the axis; a few methods' first edges go far beyond


def draw_plots(
    judge: Judge, judged: Sequence[Judged], shared: CircuitComparison | None, folder: Path
) -> dict[str, Path]:
    """`recovery`, `kl`, `roc_LABEL` and `jaccard` as .svg and .png, by file name."""
    files = _curves(judged, "recovery", folder)
    if any(size.kl is not None for one in judged for size in one.curve):
        files += _curves(judged, "kl", folder)
    for label, truth in judge.truths.items():
        files += _roc(judged, label, f"{truth.name}, {label}: {len(truth.edges)} edges", folder)
    if shared is not None:
        files += _matrix(shared, f"Jaccard index of the {judge.equal_size} best edges", folder)
    return {path.name: path for path in files}


def draw_circuits(judged: Sequence[Judged], folder: Path) -> tuple[dict[str, Path], str]:
    """Circuits of equal size: `circuits`, all in one picture, and `circuit_METHOD`, one each; .svg and .png.

    Edges are coloured by how many of the methods have them among their best. Returns the files by name, and what could
    not be drawn.
    """
    n = len(judged)
    counts = Counter(edge for one in judged for edge in one.best)
    kinds = {edge: _kind(count, n) for edge, count in counts.items()}
    marks = {edge: SHARED[kind] for edge, kind in kinds.items()}
    words = {"alone": "one method only", "some": "some", "most": "more than half", "all": f"all {n}"}
    key = {SHARED[kind]: words[kind] for kind in SHARED if kind in kinds.values()}
    graph, task = judged[0].best.graph, judged[0].best.task
    drawn = Counter(edge for one in judged for edge in one.best.on_path())
    size = len(judged[0].best)
    wanted: list[tuple[str, Circuit, str, str]] = []
    if n > 1:
        union = Circuit(graph, {edge: float(drawn[edge]) for edge in graph if edge in drawn})
        title = f"{task} · the {size} best edges of each of {n} methods"
        wanted.append(("circuits", union, title, "how many methods have it on a path"))
    for one in judged:
        title = f"{task} · {one.method} · {size} best edges"
        wanted.append((f"circuit_{one.method}", one.best, title, "|score|"))
    files: dict[str, Path] = {}
    said = ""
    for name, circuit, title, width in wanted:
        paths = [folder / f"{name}.svg", folder / f"{name}.png"]
        written, warning = render_all(circuit, paths, title=title, marks=Marks(marks, key, width))
        files |= {path.name: path for path in written}
        said = said or warning
    return files, said


def _kind(count: int, n: int) -> str:
    if count == n and n > 1:
        return "all"
    return "alone" if count == 1 else "most" if 2 * count > n else "some"


def _style(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """How each method's line looks, the same in every plot."""
    styles: dict[str, dict[str, Any]] = {}
    for one in judged:
        if one.method == "random":
            styles[one.method] = {"color": "0.55", "linestyle": ":", "linewidth": 2.0}
        else:
            i = len(styles)
            line = "-" if i < len(COLOURS) else "--"
            styles[one.method] = {"color": COLOURS[i % len(COLOURS)], "linestyle": line, "linewidth": 1.5}
    return styles


def _curves(judged: Sequence[Judged], what: str, folder: Path) -> list[Path]:
    """Recovery or KL over the number of best edges."""
    figure = new_figure((8.4, 4.6))
    axes = figure.add_subplot()
    styles = _style(judged)
    of: Callable[[Any], float] = lambda size: getattr(size, what)  # noqa: E731
    for one in judged:
        axes.plot(
            [size.edges for size in one.curve], [of(size) for size in one.curve], label=one.method, **styles[one.method]
        )
    axes.set_xscale("log")
    if what == "recovery":
        values = [of(size) for one in judged for size in one.curve]
        for level, dash in ((1.0, "-"), (SHARE, "--")):
            axes.axhline(level, color="0.8", linewidth=0.8, linestyle=dash, zorder=0)
        axes.set_ylim(max(min(values), -0.5) - 0.05, min(max(values), _MOST_RECOVERY) + 0.05)
    axes.set_xlabel("best edges taken")
    axes.set_ylabel("recovery (dashed: 90%)" if what == "recovery" else "KL(model ‖ circuit), nats")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return save_figure(figure, folder, what)


def _roc(judged: Sequence[Judged], label: str, title: str, folder: Path) -> list[Path]:
    """ROC curves over edges, as stairs: between two points the worse one holds."""
    figure = new_figure((7.4, 4.8))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.85", linewidth=1)
    styles = _style(judged)
    for i, one in enumerate(judged):
        curve = one.grades[label].edges
        xs, ys = zip(*curve.corners(), strict=True)
        name = f"{one.method}, the first" if one.sd else one.method
        style = styles[one.method] | {"linewidth": 1.2 + 0.45 * (len(judged) - i)}  # one under another is the wider
        axes.plot(xs, ys, drawstyle="steps-post", label=f"{name}: {curve.auc():.3f}", **style)
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(title, fontsize=9, loc="left")
    figure.legend(loc="outside right upper", fontsize="small", frameon=False, title="pessimistic area")
    return save_figure(figure, folder, f"roc_{label}")


def _matrix(shared: CircuitComparison, title: str, folder: Path) -> list[Path]:
    """How alike every two circuits are, from white (nothing in common) to blue."""
    n = len(shared.labels)
    figure = new_figure((2.6 + 0.52 * n, 1.6 + 0.42 * n))
    axes = figure.add_subplot()
    axes.imshow(shared.jaccard, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(n), shared.labels, fontsize=8, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n), shared.labels, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9, loc="left")
    for y, row in enumerate(shared.jaccard):
        for x, value in enumerate(row):
            axes.text(
                x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value > 0.6 else "0.2"
            )
    return save_figure(figure, folder, "jaccard")
