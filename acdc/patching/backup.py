"""Backup heads of a site: later heads whose direct share of the metric moves against what patching the site does.

Where they do, the real effect is smaller than the site's own (self-repair: Wang et al. 2023; McGrath et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.engine.joint import JointRun, Replaced
from acdc.engine.resumed import ResumedRun
from acdc.experiment import Experiment
from acdc.patching import base
from acdc.patching.direct import directions
from acdc.patching.sites import KINDS, Site
from acdc.patching.values import SiteChanges

LEAST = 0.05  # of the direct effect: a head that moves less is no backup
NONE_BELOW = 0.01  # of clean − corrupted: a direct effect that can be told from none


@dataclass(frozen=True)
class Backup:
    """The check of one site; all numbers are changes of recovery.

    Attributes
    ----------
    direct: what the site itself changes directly, with the final norm's scale of the unpatched run.
    heads: later heads, `(layer, head)`, whose direct share moves against it, each by at least `LEAST` of it, and how
        much; the largest first. Empty where the direct effect is below `NONE_BELOW`.
    """

    direct: float
    heads: tuple[tuple[tuple[int, int], float], ...]

    @property
    def total(self) -> float:
        return sum(amount for _, amount in self.heads)

    def __str__(self) -> str:
        return ", ".join(f"a{layer}.h{head} {amount:+.3f}" for (layer, head), amount in self.heads)


def find_backups(experiment: Experiment, sites: Sequence[tuple[Site, str]], memory: int) -> list[Backup]:
    """The check of each (site, direction)."""
    config = experiment.model.config
    shares = torch.zeros(len(sites), config.n_layers, config.n_heads, dtype=torch.float64)
    direct = torch.zeros(len(sites), dtype=torch.float64)
    for block in base.blocks(experiment, memory // 2) if sites else []:
        runs = base.runs_of(block)
        for i, (site, direction) in enumerate(sites):
            patched, source = (runs[name] for name in base.base_and_source(direction))
            of_site, of_heads = _changes(site, patched, source)
            direct[i] += of_site
            shares[i] += of_heads
    clean, corrupted = (float((v * experiment.readouts.weight).sum()) for v in base.ends(experiment))
    return [
        _backup(float(d), s) for d, s in zip(direct / (clean - corrupted), shares / (clean - corrupted), strict=True)
    ]


def _backup(direct: float, shares: Tensor) -> Backup:
    if abs(direct) < NONE_BELOW:
        return Backup(direct, ())
    against = (shares * direct < 0) & (shares.abs() >= LEAST * abs(direct))
    found = [((layer, head), float(shares[layer, head])) for layer, head in against.nonzero().tolist()]
    return Backup(direct, tuple(sorted(found, key=lambda item: -abs(item[1]))))


@torch.no_grad()
def _changes(site: Site, run: ResumedRun, source: ResumedRun) -> tuple[float, Tensor]:
    """How the metric changes directly: through what the site writes, and through each later head, `layer head`."""
    experiment, model, kind = run.experiment, run.model, KINDS[site.kind]
    slope, _ = directions(experiment, experiment.read(run.pre[-1]))
    slope = slope * experiment.readouts.weight[:, None].to(slope)
    unit = site.head if site.neuron is None else site.neuron
    units = None if unit is None else torch.tensor([unit], device=model.device)
    change = SiteChanges(kind, site.layer, run, source)(units, site.place.mask(experiment)[None])
    if kind.point == "pre":
        name, stream = "resid_pre", run.pre[site.layer]
    elif kind.point == "mid" and run.mid:
        name, stream = "resid_mid", run.mid[site.layer]
    else:
        name, stream = "resid_post", run.pre[site.layer + 1]
    everywhere = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=model.device)
    result = JointRun(run).run({(name, site.layer): Replaced(everywhere, stream + change)})
    shares = torch.zeros(len(model.layers), model.config.n_heads, dtype=torch.float64)
    for layer, z in result.heads.items():
        moved = experiment.read(z[0] - run.values.heads[layer])
        shares[layer] = torch.einsum("hre,hed,rd->h", moved, model.layers[layer].W_O, slope).double().cpu()
    return float((experiment.read(change[0]) * slope).sum()), shares
