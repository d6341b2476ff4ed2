"""What a patching sweep found, for people: the sites that matter most, their maps and their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.table import Table
from rich.text import Text

from acdc.patching.result import CLASSES, Patched, SiteMap
from acdc.patching.sites import Site
from acdc.report.grades import image
from acdc.report.grid import thousandths
from acdc.report.html import Section, number, table

MOST_ON_CONSOLE = 10
MOST_ON_PAGE = 50
MEANINGS = {
    "necessary_and_sufficient": "noising it loses the behaviour, denoising it brings it back",
    "sufficient_redundant": "denoising it brings the behaviour back, but without it others do the same",
    "necessary_only": "noising it loses the behaviour, but it does not bring it back alone",
    "irrelevant": "neither",
}
DIRECTIONS = {
    "noise": "noising: the clean run with the corrupted value. 1 − recovery is how much of the metric is lost",
    "denoise": "denoising: the corrupted run with the clean value. Recovery is how much of the metric comes back",
}


def sites_table(patched: Patched, title: str = "The sites that matter most") -> Table:
    """The most important sites of each map."""
    shown = Table(title=title, title_justify="left", caption_justify="left", box=None, pad_edge=False)
    header = [name for name in _header(patched) if name != "shift"]
    for name in header:
        shown.add_column(Text(name), justify="right" if name in _NUMBERS else "left", overflow="fold")
    for one in patched.maps:
        for row in _rows(patched, one, MOST_ON_CONSOLE):
            if row["shift"].endswith("*"):
                row["where"] += "*"
                shown.caption = Text("* what is put in lies outside the range of the site's values on clean prompts")
            row["class"] = row["class"].replace("_", " ")  # so that a narrow terminal breaks it between words
            shown.add_row(*(Text(row[name]) for name in header))
    return shown


def skipped_notes(patched: Patched) -> list[str]:
    """Of each map what a shortlist left out, and how much that could matter; empty where all sites were patched."""
    return [
        f"{one.grid.kind.name}, {one.direction}: {one.skipped:,} of {len(one.grid):,} sites were not patched; by"
        f" attribution patching, an estimate, none of them matters more than {one.largest_skipped:.3g} of clean −"
        " corrupted"
        for one in patched.maps
        if one.skipped
    ]


def maps_section(patched: Patched, pictures: Sequence[Path], file: str = "patch.csv") -> Section:
    """The importance maps; `pictures` are SVG files named SITE_DIRECTION, `file` is the table with all numbers."""
    html = "".join(
        f"<p>{escape(DIRECTIONS[direction])} (std over {len(patched.maps[0].clean)} pairs in {file}).</p>"
        for direction in dict.fromkeys(one.direction for one in patched.maps)
    )
    if any(one.skipped for one in patched.maps):
        html += "<p>Grey sites were not patched (<code>patch.shortlist</code>).</p>"
    if any(place.label.endswith("…") for one in patched.maps for place in one.grid.places):
        html += "<p>A token with … behind it is the first pair's; the others have other tokens there.</p>"
    return Section("Importance maps", html + "".join(image(path, f"importance map {path.stem}") for path in pictures))


def classes_section(patched: Patched, pictures: Sequence[Path]) -> Section:
    """How many sites are of which class, and the quadrants; empty where one direction was patched."""
    classes = patched.classes()
    counts = Counter(classes.values())
    rows = [[f"<code>{name}</code>", number(counts[name]), escape(MEANINGS[name])] for name in CLASSES.values()]
    html = (
        f"<p>A site is sufficient if denoising it recovers at least {patched.sufficient_from:g}"
        f" (<code>patch.sufficient_from</code>), necessary if noising it loses at least {patched.necessary_from:g}"
        " (<code>patch.necessary_from</code>) of the way between the corrupted and the clean metric.</p>"
        + table(["", "sites", "meaning"], rows, numeric=[1])
        + "".join(image(path, f"quadrants {path.stem}") for path in pictures)
    )
    return Section("Necessary, sufficient", html if classes else "")


def sites_section(patched: Patched, title: str = "The sites that matter most") -> Section:
    """The most important sites, more of them."""
    parts, header = [], _header(patched)
    numeric = [i for i, name in enumerate(header) if name in _NUMBERS]
    for one in patched.maps:
        rows = [[escape(row[name]) for name in header] for row in _rows(patched, one, MOST_ON_PAGE)]
        which = f"{one.grid.kind.name}, {one.direction}: {len(rows)} of {len(one.grid):,} sites"
        text = table(header, rows, numeric=numeric)
        parts.append(f"<details><summary>{escape(which)}</summary>{text}</details>")
    if any(one.shift is not None for one in patched.maps):
        parts.append(
            "<p>Shift: how far what is put in lies from the site's values on clean prompts (Mahalanobis distance, 1 is"
            " what a clean value has); * where it lies outside their range, also by its norm.</p>"
        )
    return Section(title, "".join(parts))


_NUMBERS = ("recovery", "std", "effect", "shift")


def _header(patched: Patched) -> list[str]:
    """The columns that have something in them: estimates have neither shift nor class."""
    shifted = any(one.shift is not None for one in patched.maps)
    return ["site", "direction", "where", *_NUMBERS[: 3 + shifted], *["class"] * bool(patched.classes())]


def _rows(patched: Patched, one: SiteMap, most: int) -> list[dict[str, str]]:
    classes = patched.classes()
    numbers = zip(*(t.flatten().tolist() for t in (one.recovery, one.std, one.importance)), strict=True)
    shifts = ["—"] * len(one.grid) if one.shift is None else [shift_text(**x) for x in one.shift.columns()]
    sites: list[tuple[Site, tuple[float, ...], str]] = list(zip(one.grid, numbers, shifts, strict=True))
    found = [item for item in sites if item[1][0] == item[1][0]]  # without those that were left out
    found.sort(key=lambda item: -abs(item[1][2]))
    return [
        {
            "site": one.grid.kind.name,
            "direction": one.direction,
            "where": str(site),
            **dict(zip(_NUMBERS, map(thousandths, values), strict=False)),
            "shift": shift,
            "class": classes.get(site, ""),
        }
        for site, values, shift in found[:most]
    ]


def shift_text(shift: float | None, shifted: bool) -> str:
    """A distance from the clean values, marked where it lies outside their range."""
    return "—" if shift is None else f"{shift:.2f}" + "*" * shifted
