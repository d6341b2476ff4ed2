"""Activation patching (Vig et al. 2020; Meng et al. 2022; Heimersheim and Nanda 2024): a sweep over sites.

`noise`: the clean run with a site's value from the corrupted run: is the site necessary? `denoise`: the corrupted run
with its value from the clean run: is it enough? Either way recovery is 1 at the clean and 0 at the corrupted metric.

Sites are patched many at once, as variants of one run that goes on from the site's layer (`acdc.engine.resumed`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.engine.memory import budget_bytes
from acdc.engine.resumed import ResumedRun
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.patching import base, estimates
from acdc.patching.activation_result import Patched, SiteMap
from acdc.patching.base import Progress
from acdc.patching.estimates import estimate
from acdc.patching.shift import Shift, measure
from acdc.patching.sites import Grid, SiteSettings, check_sites
from acdc.patching.values import RunValues, SiteChanges
from acdc.settings import option

DOING = ("patching", "sites")  # what the progress bar says, and what it counts


@dataclass(frozen=True)
class Settings(SiteSettings):
    """Activation patching: one site at a time gets its value from the other run; recovery says what that does."""

    name: str = "activation"
    sufficient_from: float = option(
        0.1,
        "a site is sufficient if denoising it recovers at least this of the way from corrupted to clean",
    )
    necessary_from: float = option(0.1, "a site is necessary if noising it loses at least this of the way")
    shift: bool = option(True, "measure how far what is put in lies from the site's values on clean prompts")
    shortlist: str | None = option(
        None,
        "attribution: patch only the sites that attribution patching ranks highest; null is every site",
        ("attribution",),
    )
    shortlist_size: int = option(20, "how many sites of a map (a kind and direction) a shortlist has", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortlist is None and self.shortlist_size != Settings.shortlist_size:
            raise ConfigError(
                f"patch.shortlist_size={self.shortlist_size} has no effect without a shortlist: give"
                " patch.shortlist=attribution, or leave it out"
            )


def check(experiment: Experiment, settings: Settings) -> list[Grid]:
    """The sites, a grid a kind; what cannot be done is refused.

    Raises
    ------
    ConfigError, TaskError
        See `check_sites`, with a shortlist `acdc.patching.estimates.check`.
    """
    return check_sites(experiment, settings) if settings.shortlist is None else estimates.check(experiment, settings)


def patch(experiment: Experiment, settings: Settings, progress: Progress | None = None) -> Patched:
    """Patch every chosen site.

    Parameters
    ----------
    progress : callable or None
        Called with the number of sites that are done, and with the number of all.

    Raises
    ------
    ConfigError, TaskError
        See `check`.
    """
    grids = check(experiment, settings)
    chosen = _shortlisted(experiment, settings, grids, settings.shortlist_size if settings.shortlist else None)
    total = sum(int(one.sites.sum()) for one in chosen.values())
    memory = budget_bytes(experiment.model.device, settings.memory_gb, "patch")
    blocks = base.blocks(experiment, memory)
    done, maps = 0.0, []
    ends = [base.by_pair(experiment, values) for values in base.ends(experiment)]
    values: dict[tuple[int, str], list[Tensor]] = {key: [] for key in chosen}
    for block in blocks:
        runs = base.runs_of(block)
        for (i, direction), sites in chosen.items():
            grid = grids[i]
            places = torch.stack([place.mask(block) for place in grid.places])
            patched, source = base.base_and_source(direction)
            sweep = _Sweep(runs[patched], runs[source], base.batch_bytes(memory))
            parts = []
            for layer, which in zip(grid.layers, sites.sites, strict=True):
                parts.append(sweep.layer(grid, layer, places, which))
                done += int(which.sum()) / len(blocks)
                if progress is not None:
                    progress(round(done), total)
            values[i, direction].append(torch.stack(parts))
    shifts = {d: _shifts(experiment, grids, d, memory) for d in settings.directions if settings.shift}
    for (i, direction), parts in values.items():
        found = base.by_pair(experiment, torch.cat(parts, -1))
        shift = shifts[direction][i] if settings.shift else None
        maps.append(SiteMap(grids[i], direction, found, ends[0], ends[1], chosen[i, direction].estimate, shift))
    limits = settings.sufficient_from, settings.necessary_from
    return Patched(tuple(maps), experiment.metric_name, settings.choice.subset, *limits)


def _shifts(experiment: Experiment, grids: list[Grid], direction: str, memory: int) -> list[Shift]:
    """How far the values that are put in lie from clean ones, a grid each."""
    source = RunValues(experiment, base.base_and_source(direction)[1], memory)
    return measure(experiment, grids, lambda kind, layer: [source(kind, layer)], memory)


@dataclass(frozen=True)
class _Sites:
    """The sites of one map that are patched.

    Attributes
    ----------
    sites : torch.Tensor
        True where a site is patched, `layer unit place`.
    estimate : torch.Tensor or None
        The estimated importance that they were ranked by, `layer unit place`; None where all are patched.
    """

    sites: Tensor
    estimate: Tensor | None


def _shortlisted(
    experiment: Experiment, settings: SiteSettings, grids: list[Grid], size: int | None
) -> dict[tuple[int, str], _Sites]:
    """Choose the sites with the largest estimates of each map.

    Queries and keys are estimated with AtP*'s correction, which costs no further pass.

    Parameters
    ----------
    experiment, settings, grids
    size : int or None
        How many sites of a map; None is all.

    Returns
    -------
    dict
        The sites of each map, by the index of its grid and its direction.
    """
    keys = [(i, direction) for i in range(len(grids)) for direction in settings.directions]
    if size is None:
        return {(i, d): _Sites(torch.ones(grids[i].shape, dtype=torch.bool), None) for i, d in keys}
    maps = estimate(experiment, settings, qk_fix=True)
    return dict(zip(keys, (_largest(one.importance, size) for one in maps), strict=True))


def _largest(importance: Tensor, size: int) -> _Sites:
    order = importance.abs().flatten().argsort(descending=True, stable=True)
    sites = torch.zeros(importance.numel(), dtype=torch.bool)
    sites[order[:size]] = True
    return _Sites(sites.reshape(importance.shape), importance)


class _Sweep:
    """One direction: `base` is the run that is patched, `source` gives the values."""

    def __init__(self, base: ResumedRun, source: ResumedRun, memory: int) -> None:
        self.base, self.source = base, source
        self.at_once = max(1, memory // base.bytes_per_variant())

    @torch.no_grad()
    def layer(self, grid: Grid, layer: int, places: Tensor, which: Tensor) -> Tensor:
        """The metric at the sites of a layer, `unit place readout`, NaN at those that are left out.

        Parameters
        ----------
        places : torch.Tensor
            True where a place is, `place row pos`.
        which : torch.Tensor
            The sites to patch, `unit place`.
        """
        device = self.base.model.device
        changes = SiteChanges(grid.kind, layer, self.base, self.source)
        n_places, together = len(grid.places), grid.units == (None,)
        units = torch.tensor([0 if unit is None else unit for unit in grid.units], device=device)
        # Sites of the same place beside each other, the places in the order of the text, so that sites that are
        # evaluated together share what lies before them.
        first = [min(map(min, place.tokens)) for place in grid.places]
        order = torch.tensor(sorted(range(n_places), key=first.__getitem__), device=device)
        place_of = order.repeat_interleave(len(units))
        unit_of = torch.arange(len(units), device=device).repeat(n_places)
        left = which.to(device)[unit_of, place_of]
        place_of, unit_of = place_of[left], unit_of[left]
        values = self.base.unchanged.new_full((len(units), n_places, len(self.base.experiment.readouts)), torch.nan)
        for start in range(0, len(place_of), self.at_once):
            at, unit = place_of[start : start + self.at_once], unit_of[start : start + self.at_once]
            change = changes(None if together else units[unit], places[at])
            values[unit, at] = self.base.metric_values(layer, grid.kind.point, change)
        return values
