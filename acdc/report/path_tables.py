"""What path patching found, for people: the paths that matter most, and the tree of who feeds whom."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from acdc.graph import node_of
from acdc.patching.path_result import PatchedPaths, PathMap
from acdc.report.grades import image
from acdc.report.html import Section, picture, table
from acdc.report.numbers import thousandths

MOST_ON_CONSOLE = 10
MOST_ON_PAGE = 100
DIRECTIONS = {
    "noise": "noising: the clean run, in which the senders give their corrupted output, and only the receivers are"
    " told. The effect is 1 − recovery: how much of the metric is lost along the path",
    "denoise": "denoising: the corrupted run, in which the senders give their clean output, and only the receivers are"
    " told. The effect is the recovery: how much of the metric comes back along the path",
}
_HEADER = ["senders", "receivers", "direction", "recovery", "std", "effect"]


def paths_table(patched: PatchedPaths) -> Table:
    """The strongest paths of each map."""
    shown = Table(title="The paths that matter most", title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(_HEADER):
        shown.add_column(Text(name), justify="right" if i > 2 else "left", overflow="fold")
    for one in patched.maps:
        for row in _rows(one, MOST_ON_CONSOLE):
            shown.add_row(*map(Text, row))
    return shown


def levels_tree(patched: PatchedPaths, direction: str) -> Tree:
    """Who feeds the root, and who feeds those: paths from the limit on, the strongest first.

    What feeds a node that was followed stands once, under the path for which it was.
    """
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


def levels_section(patched: PatchedPaths, pictures: Sequence[Path]) -> Section:
    """The graph of who feeds whom; `pictures` are SVG files. Empty where there are no levels."""
    if not patched.root:
        return Section("", "")
    rows = [
        [one.direction, str(one.level), f"{len(one.paths):,}", escape(", ".join(one.followed) or "—")]
        for one in patched.maps
    ]
    html = (
        f"<p>Level 1 is every sender's effect on the metric by way of <code>{escape(patched.root)}</code>. The"
        f" strongest senders of a level, those whose |effect| is at least {patched.limit:g}"
        " (<code>patch.limit</code>), at most <code>patch.width</code> of them, are the receivers of the next; of a"
        " head q, k and v apart.</p>"
        + "".join(picture(path.read_text(encoding="utf-8")) for path in pictures)
        + table(["direction", "level", "paths", "followed"], rows, numeric=[1, 2])
    )
    return Section(f"Who feeds {patched.root}?", html)


def path_maps_section(patched: PatchedPaths, pictures: Sequence[Path]) -> Section:
    """What was done, and effects by layer and head; `pictures` are SVG files."""
    through = {
        "none": "Everything in between is frozen, so only the direct connection counts.",
        "mlps": "MLPs in between respond, as in Wang et al. (2022); heads are frozen.",
        "heads": "Heads in between respond; MLPs are frozen.",
    }.get(patched.through, f"In between these respond: {patched.through}; everything else is frozen.")
    where = f" The senders are changed at {patched.place.label}." if patched.place.name else ""
    html = "".join(f"<p>{escape(DIRECTIONS[direction])}.</p>" for direction, _ in patched.directions())
    html += f"<p>{escape(through)} What lies behind a receiver is computed as usual.{escape(where)}</p>"
    return Section("Effects by layer and head", html + "".join(image(path, path.stem) for path in pictures))


def paths_section(patched: PatchedPaths) -> Section:
    """The strongest paths, more of them."""
    parts = []
    for one in patched.maps:
        rows = [[escape(cell) for cell in row] for row in _rows(one, MOST_ON_PAGE)]
        level = f", level {one.level}" * bool(one.level)
        title = f"{one.direction}{level}: {len(rows)} of {len(one.paths):,} paths"
        text = table(_HEADER, rows, numeric=range(3, 6))
        parts.append(f"<details><summary>{escape(title)}</summary>{text}</details>")
    return Section("The paths that matter most", "".join(parts))


def _rows(one: PathMap, most: int) -> list[list[str]]:
    numbers = zip(*(t.tolist() for t in (one.recovery, one.std, one.importance)), strict=True)
    found = sorted(zip(one.paths, numbers, strict=True), key=lambda item: -abs(item[1][2]))
    return [
        [path.senders.name, path.receivers.name, one.direction, *map(thousandths, values)]
        for path, values in found[:most]
    ]
