"""Real patching only of the sites that attribution patching ranks highest (`patch.shortlist=attribution`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.experiment import Experiment
from acdc.patching.estimates import estimate
from acdc.patching.site_settings import SiteSettings
from acdc.patching.sites import Grid


@dataclass(frozen=True)
class Chosen:
    """Of one map the sites to patch, `layer unit place`, and where they were ranked their estimated importance."""

    sites: Tensor
    estimate: Tensor | None


def choose(
    experiment: Experiment, settings: SiteSettings, grids: list[Grid], size: int | None
) -> dict[tuple[int, str], Chosen]:
    """For each map, by its grid's index and direction, the `size` sites with the largest estimates; None is all.

    Queries and keys are estimated with AtP*'s correction, which costs no further pass.
    """
    keys = [(i, direction) for i in range(len(grids)) for direction in settings.directions]
    if size is None:
        return {(i, d): Chosen(torch.ones(grids[i].shape, dtype=torch.bool), None) for i, d in keys}
    maps = estimate(experiment, settings, qk_fix=True)
    return dict(zip(keys, (_largest(one.importance, size) for one in maps), strict=True))


def _largest(importance: Tensor, size: int) -> Chosen:
    order = importance.abs().flatten().argsort(descending=True, stable=True)
    sites = torch.zeros(importance.numel(), dtype=torch.bool)
    sites[order[:size]] = True
    return Chosen(sites.reshape(importance.shape), importance)
