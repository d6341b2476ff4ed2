"""What a patching sweep gives: recovery at every site, as rows, arrays and classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from acdc.patching.shift import Shift
from acdc.patching.sites import Grid, Site
from acdc.result import Labelled, Result, as_table

CLASSES = {  # (necessary, sufficient) → name
    (True, True): "necessary_and_sufficient",
    (False, True): "sufficient_redundant",
    (True, False): "necessary_only",
    (False, False): "irrelevant",
}


class Measured:
    """The metric of whatever is patched in one direction.

    Attributes
    ----------
    values : torch.Tensor
        The metric of each pair, `... pair`, in the metric's own direction.
    clean, corrupted : torch.Tensor
        The metric of each pair in the two runs, `pair`.
    """

    direction: str
    values: Tensor
    clean: Tensor
    corrupted: Tensor

    @property
    def recoveries(self) -> Tensor:
        """Of each pair, `... pair`: what patching changes, over the mean of clean − corrupted; plus 1 when
        noising.

        The mean over the pairs is then (patched − corrupted) / (clean − corrupted) of the mean metric. A pair's own
        quotient would be anything where its two runs are alike; and what does nothing has no spread.
        """
        unpatched, end = (self.clean, 1.0) if self.direction == "noise" else (self.corrupted, 0.0)
        return end + (self.values - unpatched) / (self.clean - self.corrupted).mean()

    @property
    def recovery(self) -> Tensor:
        """(patched − corrupted) / (clean − corrupted) of the mean metric, `...`."""
        return self.recoveries.mean(-1)

    @property
    def std(self) -> Tensor:
        """Standard deviation of `recoveries` over the pairs (n − 1 in the denominator), NaN of a single pair."""
        return self.recoveries.std(-1) if len(self.clean) > 1 else torch.full_like(self.recovery, float("nan"))

    @property
    def importance(self) -> Tensor:
        """How much it matters, 0 = not at all: recovery when denoising, 1 − recovery when noising."""
        return self.recovery if self.direction == "denoise" else 1 - self.recovery


@dataclass(frozen=True)
class SiteMap(Measured):
    """Sites of one kind patched in one direction.

    Attributes
    ----------
    values : torch.Tensor
        The metric of each pair at each site, `layer unit place pair`, in the metric's own direction; NaN at sites that
        a shortlist left out.
    clean, corrupted : torch.Tensor
        The metric of each pair in the two runs, `pair`.
    estimate : torch.Tensor or None
        The estimated importance that a shortlist was made by, `layer unit place`.
    shift : Shift or None
        How far the values put in lie from clean ones; None where it was not measured.
    """

    grid: Grid
    direction: str
    values: Tensor
    clean: Tensor
    corrupted: Tensor
    estimate: Tensor | None = None
    shift: Shift | None = None

    @property
    def name(self) -> str:
        """The map's name in files, SITE_DIRECTION."""
        return f"{self.grid.kind.name}_{self.direction}"

    @property
    def patched(self) -> Tensor:
        """Which sites were patched, `layer unit place`."""
        return ~self.values.isnan().any(-1)

    @property
    def skipped(self) -> int:
        """How many sites were left out."""
        return int((~self.patched).sum())

    @property
    def largest_skipped(self) -> float:
        """The largest size of the estimated importance among the sites that were left out; 0 if there are none."""
        if self.estimate is None or not self.skipped:
            return 0.0
        return float(self.estimate[~self.patched].abs().max())


@dataclass(frozen=True)
class Patched(Result):
    """The result of a sweep.

    Attributes
    ----------
    subset : str
        The name of the subset of sites, empty where all were patched.
    sufficient_from, necessary_from : float
        The limits of the classes; infinite where there are none.
    """

    maps: tuple[SiteMap, ...]
    metric: str
    subset: str
    sufficient_from: float = float("inf")
    necessary_from: float = float("inf")

    @property
    def clean(self) -> float:
        return float(self.maps[0].clean.mean())

    @property
    def corrupted(self) -> float:
        return float(self.maps[0].corrupted.mean())

    def both(self) -> Iterator[tuple[SiteMap, SiteMap]]:
        """Of each kind the maps of (noise, denoise), where there are both."""
        noise = {one.grid.kind.name: one for one in self.maps if one.direction == "noise"}
        for one in self.maps:
            if one.direction == "denoise" and one.grid.kind.name in noise:
                yield noise[one.grid.kind.name], one

    def classes(self) -> dict[Site, str]:
        """The class of each site that was patched in both directions, in the order of the grid.

        Sufficient: denoising it recovers at least `sufficient_from`. Necessary: noising it loses at least
        `necessary_from`. Sufficient but not necessary means that something else can do the same.
        """
        found: dict[Site, str] = {}
        if math.isinf(self.sufficient_from):
            return found
        for noise, denoise in self.both():
            pairs = zip(noise.importance.flatten().tolist(), denoise.importance.flatten().tolist(), strict=True)
            for site, (loss, gain) in zip(denoise.grid, pairs, strict=True):
                if loss != loss or gain != gain:
                    continue  # left out in one direction
                found[site] = CLASSES[loss >= self.necessary_from, gain >= self.sufficient_from]
        return found

    def rows(self) -> list[dict[str, Any]]:
        """A row a patched site and direction, as in `patch.csv`."""
        classes = self.classes()
        rows = []
        for one in self.maps:
            numbers = (t.flatten().tolist() for t in (one.recovery, one.std, one.values.mean(-1)))
            shifts = [{}] * len(one.grid) if one.shift is None else one.shift.columns()
            for site, recovery, std, value, shift in zip(one.grid, *numbers, shifts, strict=True):
                if value != value:
                    continue  # left out by a shortlist
                rows.append(
                    {
                        "site": site.kind,
                        "layer": site.layer,
                        "head": site.head,
                        "position": site.place.name,
                        "direction": one.direction,
                        "recovery": recovery,
                        "std": std if len(one.clean) > 1 else None,
                        "n": len(one.clean),
                        "subset": self.subset,
                        "label": site.place.label,
                        "neuron": site.neuron,
                        "metric": value,
                        "class": classes.get(site, ""),
                        **shift,
                    }
                )
        return rows

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"patch": as_table(self.rows())}

    def arrays(self) -> dict[str, dict[str, Labelled]]:
        """Return the arrays of `patch.npz`.

        `SITE_DIRECTION` is the recovery, `layer unit place`; `SITE_DIRECTION_pairs` has a last axis for the pairs.
        `SITE_layers`, `SITE_units` (heads or neurons; −1: all together) and `SITE_places` are the labels of the axes.
        `SITE_DIRECTION_estimate` is the importance that a shortlist was made by; a site that it left out is NaN.
        """
        first, axes = self.maps[0], ("layer", "unit", "place")
        arrays = {end: Labelled(("pair",), getattr(first, end).numpy()) for end in ("clean", "corrupted")}
        for one in self.maps:
            name = one.grid.kind.name
            arrays[f"{name}_{one.direction}"] = Labelled(axes, one.recovery.numpy())
            arrays[f"{name}_{one.direction}_pairs"] = Labelled((*axes, "pair"), one.recoveries.numpy())
            if one.estimate is not None:
                arrays[f"{name}_{one.direction}_estimate"] = Labelled(axes, one.estimate.numpy())
            arrays |= axes_of(one.grid)
        return {"patch": arrays}

    def summary(self) -> dict[str, object]:
        """Return both ends of the scale, how much was patched, and the strongest site of each map."""
        summary: dict[str, object] = {
            "metric": self.metric,
            "clean": self.clean,
            "corrupted": self.corrupted,
            "sites": sum(len(one.grid) - one.skipped for one in self.maps),
            "skipped": sum(one.skipped for one in self.maps),
            "pairs": len(self.maps[0].clean),
        }
        for one in self.maps:
            best = int(one.importance.nan_to_num(0).abs().flatten().argmax())
            summary[f"{one.name}_strongest"] = str(list(one.grid)[best])
            summary[f"{one.name}_recovery"] = float(one.recovery.flatten()[best])
            if one.skipped:
                summary |= {f"{one.name}_skipped": one.skipped, f"{one.name}_largest_skipped": one.largest_skipped}
        if classes := Counter(self.classes().values()):
            summary |= {name: classes[name] for name in CLASSES.values()}
        return summary

    def notes(self) -> tuple[str, ...]:
        """Return, for each map, what a shortlist left out and how much that could matter."""
        return tuple(
            f"{one.grid.kind.name}, {one.direction}: {one.skipped:,} of {len(one.grid):,} sites were not patched; by"
            f" attribution patching, an estimate, none of them matters more than {one.largest_skipped:.3g} of clean −"
            " corrupted"
            for one in self.maps
            if one.skipped
        )


def axes_of(grid: Grid) -> dict[str, Labelled]:
    """Return the labels of a grid's axes, as they stand beside its values in `patch.npz`."""
    labels = {
        "layers": Labelled(("layer",), np.array(grid.layers)),
        "units": Labelled(("unit",), np.array([-1 if unit is None else unit for unit in grid.units])),
        "places": Labelled(("place",), np.array([place.name for place in grid.places])),
    }
    return {f"{grid.kind.name}_{name}": label for name, label in labels.items()}
