"""The names of chosen sites, and orders to ablate them in."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Sequence
from pathlib import Path

from acdc.errors import ConfigError
from acdc.patching.sites import Grid, Site


class NamedSites:
    """Sites by name: `a9.h6`, or `head_output:a9.h6` where several kinds were chosen.

    Names as they were once written, `9.h6` and `0.n12`, are understood too.
    """

    def __init__(self, grids: Sequence[Grid]) -> None:
        self.sites = [site for grid in grids for site in grid]
        self.several = len(grids) > 1
        self.by_name = {}
        for site in self.sites:
            for name in (site.name, site.name.lstrip("am")):
                self.by_name[f"{site.kind}:{name}"] = site
                if not self.several:
                    self.by_name[name] = site

    def name(self, site: Site) -> str:
        return f"{site.kind}:{site.name}" if self.several else site.name

    def find(self, key: str, names: Sequence[int | str]) -> list[Site]:
        """Sites by name, in this order.

        Raises
        ------
        ConfigError
            A name that no chosen site has, or one given twice; `key` is the option.
        """
        texts = [str(name) for name in names]
        if unknown := [text for text in texts if text not in self.by_name]:
            some = ", ".join(self.name(site) for site in self.sites[:3])
            raise ConfigError(
                f"patch.{key}={unknown[0]} is not among the {len(self.sites)} chosen sites: give names such as {some}"
            )
        found = [self.by_name[text] for text in texts]
        if twice := [text for i, text in enumerate(texts) if found[i] in found[:i]]:
            raise ConfigError(f"patch.{key} has {twice[0]} twice: give each site once")
        return found

    def shuffled(self, sites: Sequence[Site], seed: int) -> list[Site]:
        return random.Random(seed).sample(list(sites), len(sites))

    def from_file(self, path: str) -> list[Site]:
        """The chosen sites in the order of a CSV file, such as the `patch.csv` of another run.

        It has the columns `site`, `layer`, `head`, `neuron` and `position` (what is missing is empty), or `name`. The
        order is by `effect`, else by `recovery` (of denoising, where there is any; else the least first), largest
        first; else that of the lines. Lines of other sites are passed over.

        Raises
        ------
        ConfigError
            A file that cannot be read, or has none of the sites.
        """
        try:
            with Path(path).open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"patch.ranking={path} cannot be read: {error}") from None
        directions = {row.get("direction") or "" for row in rows}
        if len(directions) > 1:
            rows = [row for row in rows if row.get("direction") == "denoise"]
        keys = {_key(_columns(site)): site for site in self.sites}
        scored: dict[Site, float] = {}
        for i, row in enumerate(rows):
            site = self.by_name.get(row["name"]) if row.get("name") else keys.get(_key(row))
            if site is not None:
                scored.setdefault(site, _score(row, -i, path))
        if not scored:
            raise ConfigError(
                f"patch.ranking={path} has none of the {len(self.sites)} chosen sites: it needs the columns of a"
                " patch.csv (site, layer, head, position), or name"
            )
        return sorted(scored, key=lambda site: -scored[site])


def _columns(site: Site) -> dict[str, str]:
    """A site as the columns of `patch.csv`."""
    values = {"site": site.kind, "layer": site.layer, "head": site.head, "neuron": site.neuron}
    return {key: "" if value is None else str(value) for key, value in values.items()} | {"position": site.place.name}


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row.get(key) or "" for key in ("site", "layer", "head", "neuron", "position"))


def _score(row: dict[str, str], otherwise: float, path: str) -> float:
    """How much a line's site matters; `otherwise` where the line does not say."""
    for column in ("effect", "recovery"):
        if row.get(column):
            try:
                value = float(row[column])
            except ValueError:
                value = math.nan
            if math.isnan(value):
                raise ConfigError(f"patch.ranking={path}: {column}={row[column]} is not a number")
            return -value if column == "recovery" and row.get("direction") == "noise" else value
    return otherwise
