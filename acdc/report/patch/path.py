"""What path patching shows: effects by layer and head, the strongest paths, and the graph of who feeds a node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path as FilePath

import numpy as np
from matplotlib.figure import Figure as Drawing
from rich.text import Text
from rich.tree import Tree

from acdc.circuit import Circuit
from acdc.graph import Edge, Graph, Node
from acdc.patching.path_choice import Group
from acdc.patching.path_result import PatchedPaths, PathMap
from acdc.report.maps import draw_cells
from acdc.report.numbers import number, thousandths
from acdc.report.patch.sites import KEPT_OR_LOST
from acdc.report.picture import render_all
from acdc.report.style import new_figure
from acdc.report.view import Block, Figure, Folded, Graphic, Section, Subject, Table, View

MOST_ON_CONSOLE = 10
MOST_ON_PAGE = 100
MOST_PANELS = 12  # of a picture; of more receivers the most important are shown
MOST_NUMBERED = 17  # columns whose cells have room for a number
BESIDE = 4  # panels in a row
DIRECTIONS = {
    "noise": "Noising: the clean run, in which the senders give their corrupted output, and only the receivers are"
    " told. The effect is 1 − recovery: how much of the metric is lost along the path",
    "denoise": "Denoising: the corrupted run, in which the senders give their clean output, and only the receivers are"
    " told. The effect is the recovery: how much of the metric comes back along the path",
}
_HEADER = ["senders", "receivers", "direction", "recovery", "std", "effect"]

Cells = Mapping[str, float]  # node or port → effect


def view(patched: PatchedPaths, subject: Subject) -> View:
    """The page and the console of patched paths."""
    if patched.root:
        console: list[Table | Tree] = [levels_tree(patched, direction) for direction, _ in patched.directions()]
    else:
        rows = [row for one in patched.maps for row in _rows(one, MOST_ON_CONSOLE)]
        console = [Table("The paths that matter most", _HEADER, rows, left=3)]
    n_paths = sum(len(one.paths) for one in patched.maps)
    return View(
        f"Path patching · {subject.task} · {subject.model}",
        f"{n_paths:,} paths of {subject.model}, one at a time, on {subject.pairs} pairs of the task {subject.task}."
        f" Recovery is 1 at the clean run's {patched.metric} of {number(patched.clean)} and 0 at the corrupted run's of"
        f" {number(patched.corrupted)}.",
        [_levels_section(patched), _maps_section(patched), _paths_section(patched)],
        console,
    )


def levels_tree(patched: PatchedPaths, direction: str) -> Tree:
    """Who feeds the root, and who feeds those: paths from the limit on, the strongest first.

    What feeds a node that was followed stands once, under the path for which it was.
    """
    node_of = patched.graph.node_of
    feeding: dict[str, list[tuple[float, str, str]]] = {}
    followed_for: dict[str, str] = {}
    for one in dict(patched.directions())[direction]:
        by_size = sorted(one.effects().items(), key=lambda item: -abs(item[1]))
        for path, effect in by_size:
            sender, receiver = path.senders.name, path.receivers.name
            if abs(effect) >= patched.limit:
                feeding.setdefault(node_of(receiver), []).append((effect, sender, receiver))
            if sender in one.followed:
                followed_for.setdefault(sender, receiver)

    def grow(branch: Tree, node: str) -> None:
        for effect, sender, receiver in feeding.get(node, ()):
            below = branch.add(Text(f"{receiver.removeprefix(node)} {sender}  {effect:.3f}".strip()))
            if followed_for.get(sender) == receiver:
                grow(below, sender)

    root = Tree(Text(f"Who feeds {patched.root}, {direction}: |effect| from {patched.limit:g}", style="bold"))
    grow(root, node_of(patched.root))
    return root


def _levels_section(patched: PatchedPaths) -> Section:
    """The graph of who feeds whom; empty where there are no levels."""
    if not patched.root:
        return Section("", [])
    blocks: list[Block] = [
        f"Level 1 is every sender's effect on the metric by way of `{patched.root}`. The strongest senders of a level,"
        f" those whose |effect| is at least {patched.limit:g} (`patch.limit`), at most `patch.width` of them, are the"
        " receivers of the next; of a head q, k and v apart."
    ]
    for direction, maps in patched.directions():
        blocks.append(Graphic(f"levels_{direction}", partial(_draw_levels, patched, direction, maps)))
    rows = [
        [one.direction, str(one.level), f"{len(one.paths):,}", ", ".join(one.followed) or "—"] for one in patched.maps
    ]
    blocks.append(Table("", ["direction", "level", "paths", "followed"], rows, words=[3]))
    return Section(f"Who feeds {patched.root}?", blocks)


def _maps_section(patched: PatchedPaths) -> Section:
    """What was done, and effects by layer and head."""
    through = {
        "none": "Everything in between is frozen, so only the direct connection counts.",
        "mlps": "MLPs in between respond, as in Wang et al. (2022); heads are frozen.",
        "heads": "Heads in between respond; MLPs are frozen.",
    }.get(patched.through, f"In between these respond: {patched.through}; everything else is frozen.")
    where = f" The senders are changed at {patched.place.label}." if patched.place.name else ""
    blocks: list[Block] = [f"{DIRECTIONS[direction]}." for direction, _ in patched.directions()]
    blocks.append(f"{through} What lies behind a receiver is computed as usual.{where}")
    for one in patched.maps:
        panels, note = _panels(one)
        if panels:
            name = f"paths_{one.name}"
            draw = partial(_draw_panels, panels, patched.graph, one, f"{note} ({patched.metric})")
            blocks.append(Figure(name, draw, name))
    return Section("Effects by layer and head", blocks)


def _paths_section(patched: PatchedPaths) -> Section:
    """The strongest paths, more of them."""
    blocks = []
    for one in patched.maps:
        rows = _rows(one, MOST_ON_PAGE)
        title = f"{one.direction}{_level(one)}: {len(rows)} of {len(one.paths):,} paths"
        blocks.append(Folded(title, [Table("", _HEADER, rows, left=3)]))
    return Section("The paths that matter most", blocks)


def _rows(one: PathMap, most: int) -> list[list[str]]:
    numbers = zip(*(t.tolist() for t in (one.recovery, one.std, one.importance)), strict=True)
    found = sorted(zip(one.paths, numbers, strict=True), key=lambda item: -abs(item[1][2]))
    return [
        [path.senders.name, path.receivers.name, one.direction, *map(thousandths, values)]
        for path, values in found[:most]
    ]


def _level(one: PathMap) -> str:
    return f", level {one.level}" if one.level else ""


def _draw_levels(
    patched: PatchedPaths, direction: str, maps: Sequence[PathMap], targets: Sequence[FilePath]
) -> tuple[list[FilePath], str]:
    """Draw who feeds whom: every path whose |effect| reaches the limit."""
    edges = {
        Edge(sender, path.receivers.name): effect
        for one in maps
        for path, effect in one.effects().items()
        if abs(effect) >= patched.limit
        for sender in path.senders.members
    }
    title = f"Who feeds {patched.root}, {len(maps)} levels backward · {direction} · |effect| ≥ {patched.limit:g}"
    return render_all(Circuit(patched.graph, edges), targets, title=title, on_path=False)


def _panels(one: PathMap) -> tuple[dict[str, dict[str, float]], str]:
    """Titles with the effects that they stand over, and what the picture shows; nothing for a single path.

    A panel a receiver; where all senders went together, one panel of receivers.
    """
    effects = one.effects()
    senders, receivers = (list(dict.fromkeys(getattr(p, k).name for p in effects)) for k in ("senders", "receivers"))
    if len(senders) > 1:
        panels: dict[str, dict[str, float]] = {f"→ {name}": {} for name in receivers}
        for path, effect in effects.items():
            panels[f"→ {path.receivers.name}"][path.senders.name] = effect
        note = "effect by sender"
        if len(panels) > MOST_PANELS:
            by_size = sorted(panels, key=lambda title: -max(map(abs, panels[title].values())))[:MOST_PANELS]
            note += f", of the {MOST_PANELS} of {len(panels)} receivers with the strongest"
            panels = {title: cells for title, cells in panels.items() if title in by_size}
        return panels, note
    if len(receivers) > 1:
        title = senders[0] if len(senders[0]) <= 40 else f"{senders[0][:37]}…"
        return {f"{title} →": {p.receivers.name: e for p, e in effects.items()}}, "effect by receiver"
    return {}, ""


def _draw_panels(panels: Mapping[str, Cells], graph: Graph, one: PathMap, note: str) -> Drawing:
    """Draw effects, layers upward, heads and the MLP to the right."""
    groups = {group.name: group for path in one.paths for group in (path.senders, path.receivers)}
    grids = {title: _grid(cells, panels.values(), graph, groups) for title, cells in panels.items()}
    rows, columns, _ = next(iter(grids.values()))
    numbered = len(columns) <= MOST_NUMBERED
    beside = min(BESIDE if numbered else 1, len(grids))
    down = -(-len(grids) // beside)
    each = 1.0 + (0.36 if numbered else 0.15) * len(columns), 0.75 + 0.25 * len(rows)
    figure = new_figure((max(4.4, beside * each[0] + 1.0), 0.5 + max(1.6, down * each[1])))
    all_axes = figure.subplots(down, beside, squeeze=False)
    limit = max(float(np.nanmax(np.abs(values))) for *_, values in grids.values()) or 1.0
    for axes, (title, (_, _, values)) in zip(all_axes.flat, grids.items(), strict=False):
        draw_cells(axes, values, numbered, limit=limit, digits=2 if limit >= 0.1 else 3)
        axes.set_title(title, fontsize=8, parse_math=False)
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
        axes.set_xticks(range(len(columns)), columns, fontsize=7, rotation=0 if numbered else 90)
    for axes in all_axes.flat[len(grids) :]:
        axes.set_axis_off()
    bar = figure.colorbar(all_axes.flat[0].images[0], ax=all_axes, pad=0.02)
    bar.set_label(f"{KEPT_OR_LOST[one.direction]} (0: no effect)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.locator_params(nbins=7)
    figure.suptitle(f"{one.direction}{_level(one)}: {note}", fontsize=9, x=0.01, ha="left", parse_math=False)
    return figure


def _grid(
    cells: Cells, panels: Iterable[Cells], graph: Graph, groups: Mapping[str, Group]
) -> tuple[list[str], list[str], np.ndarray]:
    """Labels of rows and columns, the same in all panels, and the values, NaN where there is no path."""
    nodes = {name: _node(graph, groups[name]) for name in dict.fromkeys(name for panel in panels for name in panel)}
    layers = [node.layer for node in nodes.values() if node.kind in ("head", "mlp")]
    rows = [name for name, node in nodes.items() if node.kind == "input"]
    n_inputs = len(rows)
    rows += [str(layer) for layer in range(max(layers, default=-1) + 1)]
    rows += [name for name, node in nodes.items() if node.kind == "logits"]
    heads = [node for node in nodes.values() if node.kind == "head"]
    ports = [port for port in ("", "q", "k", "v") if any(node.letter == port for node in heads)]
    numbers = range(max((node.unit for node in heads), default=-1) + 1)
    columns = [f"{port or 'h'}{head}" for port in ports for head in numbers]
    columns += ["mlp"] * (not columns or any(node.kind == "mlp" for node in nodes.values()))
    values = np.full((len(rows), len(columns)), np.nan)
    for name, effect in cells.items():
        node = nodes[name]
        if node.kind in ("input", "logits"):
            values[rows.index(name), 0] = effect
        else:
            column = "mlp" if node.kind == "mlp" else f"{node.letter or 'h'}{node.unit}"
            values[n_inputs + node.layer, columns.index(column)] = effect
    return rows, columns, values


def _node(graph: Graph, group: Group) -> Node:
    """The node or port that a group stands for; of an embedding in parts, its first."""
    return graph[group.name if graph.has(group.name) else group.members[0]]
