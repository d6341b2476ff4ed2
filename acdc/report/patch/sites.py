"""What activation and attribution patching show alike: maps of sites, and the sites that matter most."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure as Drawing

from acdc.patching.activation_result import Patched, SiteMap
from acdc.report.maps import draw_grid
from acdc.report.numbers import thousandths
from acdc.report.view import Block, Figure, Folded, Section, Table

MOST_ON_CONSOLE = 10
MOST_ON_PAGE = 50
KEPT_OR_LOST = {"denoise": "recovery", "noise": "1 − recovery"}
DIRECTIONS = {
    "noise": "Noising: the clean run with the corrupted value. 1 − recovery is how much of the metric is lost",
    "denoise": "Denoising: the corrupted run with the clean value. Recovery is how much of the metric comes back",
}
_NUMBERS = ("recovery", "std", "effect", "shift")


def sites_table(patched: Patched, title: str = "The sites that matter most") -> Table:
    """The most important sites of each map, for the console."""
    rows, caption = [], ""
    header = [name for name in _header(patched) if name != "shift"]
    for one in patched.maps:
        for row in _rows(patched, one, MOST_ON_CONSOLE):
            if row["shift"].endswith("*"):
                row["where"] += "*"
                caption = "* what is put in lies outside the range of the site's values on clean prompts"
            row["class"] = row["class"].replace("_", " ")  # so that a narrow terminal breaks it between words
            rows.append([row[name] for name in header])
    return Table(title, header, rows, left=3, caption=caption, words=_classes(header))


def maps_section(patched: Patched, file: str, estimated: bool = False) -> Section:
    """The importance maps; `file` is the table that has all numbers."""
    blocks: list[Block] = [
        f"{DIRECTIONS[direction]} (std over {len(patched.maps[0].clean)} pairs in {file})."
        for direction in dict.fromkeys(one.direction for one in patched.maps)
    ]
    if any(one.skipped for one in patched.maps):
        blocks.append("Grey sites were not patched (`patch.shortlist`).")
    if any(place.label.endswith("…") for one in patched.maps for place in one.grid.places):
        blocks.append("A token with … behind it is the first pair's; the others have other tokens there.")
    for one in patched.maps:
        draw = partial(_draw_map, one, patched.metric, estimated)
        blocks.append(Figure(one.name, draw, f"importance map {one.name}"))
    return Section("Importance maps", blocks)


def sites_section(patched: Patched, title: str = "The sites that matter most") -> Section:
    """The most important sites of each map, for the page."""
    blocks: list[Block] = []
    header = _header(patched)
    for one in patched.maps:
        rows = [[row[name] for name in header] for row in _rows(patched, one, MOST_ON_PAGE)]
        which = f"{one.grid.kind.name}, {one.direction}: {len(rows)} of {len(one.grid):,} sites"
        blocks.append(Folded(which, [Table("", header, rows, left=3, words=_classes(header))]))
    if any(one.shift is not None for one in patched.maps):
        blocks.append(
            "Shift: how far what is put in lies from the site's values on clean prompts (Mahalanobis distance, 1 is"
            " what a clean value has); * where it lies outside their range, also by its norm."
        )
    return Section(title, blocks)


def shift_text(shift: float | None, shifted: bool) -> str:
    """A distance from the clean values, marked where it lies outside their range."""
    return "—" if shift is None else f"{shift:.2f}" + "*" * shifted


def _draw_map(one: SiteMap, metric: str, estimated: bool) -> Drawing:
    unit = f"{'estimated ' * estimated}{KEPT_OR_LOST[one.direction]} (0: no effect)"
    title = f"{one.grid.kind.name}, {one.direction}: {one.grid.kind.meaning} ({metric})"
    return draw_grid(one.grid, one.importance, unit, title)


def _header(patched: Patched) -> list[str]:
    """The columns that have something in them: estimates have neither shift nor class."""
    shifted = any(one.shift is not None for one in patched.maps)
    return ["site", "direction", "where", *_NUMBERS[: 3 + shifted], *["class"] * bool(patched.classes())]


def _classes(header: list[str]) -> list[int]:
    return [i for i, name in enumerate(header) if name == "class"]


def _rows(patched: Patched, one: SiteMap, most: int) -> list[dict[str, str]]:
    """The most important sites of a map that were patched, the most important first."""
    classes = patched.classes()
    sites, effects = list(one.grid), one.importance.flatten()
    numbers = [values.flatten().tolist() for values in (one.recovery, one.std, one.importance)]
    shifts = [shift_text(**columns) for columns in one.shift.columns()] if one.shift is not None else None
    patched_sites = one.patched.flatten().nonzero().flatten().tolist()
    return [
        {
            "site": one.grid.kind.name,
            "direction": one.direction,
            "where": str(sites[i]),
            **{name: thousandths(column[i]) for name, column in zip(_NUMBERS, numbers, strict=False)},
            "shift": "—" if shifts is None else shifts[i],
            "class": classes.get(sites[i], ""),
        }
        for i in sorted(patched_sites, key=lambda i: -abs(float(effects[i])))[:most]
    ]
