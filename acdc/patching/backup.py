"""Backup, or self-repair: what others write more of once a site is replaced (Wang et al. 2023; McGrath et al. 2023).

The direct effect of a head or MLP is what it writes at the readouts, along the direction of the logit difference, with
the final norm's scale as it is in the run that is changed; so the direct effects of all parts add up. What later heads
and MLPs gain when a site is replaced makes up for a part of the direct effect that the site loses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.experiment import Experiment
from acdc.graph import Graph
from acdc.patching.ablation_run import AblationRun
from acdc.patching.base import by_pair, last_stream
from acdc.patching.direct import logit_direction
from acdc.patching.sites import KINDS, Site

LEAST = 0.05  # of the site's own change: a head that moves less is no backup head
NONE_BELOW = 0.01  # of the largest direct effect: a site's own change below it is none


@dataclass(frozen=True)
class Backup:
    """Direct effects on the logit difference before and after one site is replaced.

    Attributes
    ----------
    site : Site
    components : tuple of str
        The names of all heads and MLPs.
    before, after : torch.Tensor
        Their direct effects, `component pair`.
    direct : torch.Tensor
        How the direct effect of what the site itself writes changes, `pair`.
    later : tuple of int
        The components that the site can change.
    later_heads : tuple of int
        Those of them that are heads.
    """

    site: Site
    components: tuple[str, ...]
    before: Tensor
    after: Tensor
    direct: Tensor
    later: tuple[int, ...]
    later_heads: tuple[int, ...]

    @property
    def change(self) -> Tensor:
        """The change of each direct effect, `component pair`."""
        return self.after - self.before

    @property
    def lost(self) -> float:
        """The direct effect that the site itself loses, the mean over the pairs."""
        return 0.0 - float(self.direct.mean())

    @property
    def has_direct_effect(self) -> bool:
        """Whether the site loses, or gains, more than `NONE_BELOW` of the largest direct effect."""
        return abs(self.lost) > NONE_BELOW * float(self.before.mean(-1).abs().max())

    def restored(self, change: float) -> float | None:
        """A change of others as a share of what is lost, positive where it makes up for it; None if nothing is lost."""
        return change / self.lost if self.has_direct_effect else None

    @property
    def changes(self) -> dict[int, float]:
        """The mean change of each later component."""
        means = self.change.mean(-1).tolist()
        return {i: means[i] for i in self.later}

    @property
    def compensation(self) -> float | None:
        """The share of the loss that all later heads and MLPs together restore; negative where they lose too."""
        return self.restored(sum(self.changes.values()))

    @property
    def backup(self) -> float | None:
        """The share of the loss that those restore that work against it."""
        return self.restored(sum(change for change in self.changes.values() if change * self.lost > 0))

    @property
    def heads(self) -> dict[str, float]:
        """The backup heads and their mean changes, the largest first.

        These are the later heads that move against the site, by at least `LEAST` of its own change.
        """
        if not self.has_direct_effect:
            return {}
        changes = {self.components[i]: self.changes[i] for i in self.later_heads}
        against = {name: c for name, c in changes.items() if c * self.lost > 0 and abs(c) >= LEAST * abs(self.lost)}
        return dict(sorted(against.items(), key=lambda item: -abs(item[1])))


def has_own_effect(site: Site) -> bool:
    """Whether a site is of one head, MLP or neuron, so that it has a direct effect of its own to lose."""
    return bool(KINDS[site.kind].units) or site.kind == "mlp_out"


@torch.no_grad()
def find_backup(run: AblationRun, sites: Sequence[Site]) -> list[Backup]:
    """Replace each site alone and measure what the direct effects become.

    Parameters
    ----------
    run : AblationRun
        Replaces sites; effects are means over its draws.
    sites : sequence of Site

    Returns
    -------
    list of Backup
        In the order of the sites.
    """
    experiment, draws = run.experiment, run.replacements.draws
    names = _components(experiment.graph)
    direction, before = _direct_effects(experiment, run.base)
    after = before.new_zeros(len(sites), *before.shape)
    moved = before.new_zeros(len(sites), before.shape[-1])
    for batch in run.batches([[site] for site in sites]):
        found, block, along = batch.run.run(batch.replaced), batch.run.experiment, direction[batch.here]
        effects = _along(block, along, found.heads, found.mlps)
        for i, name in enumerate(names):
            after[batch.sets, i, batch.here] += effects[name] if name in effects else before[i, batch.here]
        change = block.read(found.stream - batch.run.base.pre[-1])
        moved[batch.sets, batch.here] += torch.einsum("vrd,rd->vr", change, along)
    start, end, total = (by_pair(experiment, values) for values in (before, after / draws, moved / draws))
    backups = []
    for site, then, all_of_it in zip(sites, end, total, strict=True):
        own, later = _own_and_later(experiment.graph, site)
        change = then - start
        direct = change[list(own)].sum(0) if has_own_effect(site) else all_of_it - change[list(later)].sum(0)
        heads = tuple(i for i in later if experiment.graph[names[i]].kind == "head")
        backups.append(Backup(site, names, start, then, direct, later, heads))
    return backups


def most_direct(experiment: Experiment, sites: Iterable[Site], count: int) -> list[Site]:
    """Choose the sites that have the largest direct effect of their own in the clean run.

    Left out are sites that have none at the positions that are read, and sites with nothing behind them. Of equal
    sites the first ones are chosen.
    """
    readouts = experiment.readouts
    effects = _direct_effects(experiment, "clean")[1] * readouts.weight
    read: dict[str, Tensor] = {}  # which readouts are in a place, by its name
    size: dict[Site, float] = {}
    for site in filter(has_own_effect, sites):
        own, later = _own_and_later(experiment.graph, site)
        if (name := site.place.name) not in read:
            read[name] = site.place.mask(experiment)[readouts.row, readouts.position]
        if later:
            size[site] = abs(float((effects[list(own)].sum(0) * read[name]).sum()))
    least = NONE_BELOW * float(effects.sum(-1).abs().max())
    return sorted((site for site in size if size[site] > least), key=lambda site: -size[site])[:count]


@torch.no_grad()
def logit_gap(experiment: Experiment) -> float:
    """The mean logit difference of the clean run − that of the corrupted run."""
    ends = []
    for values in (experiment.clean, experiment.ablated):
        stream = last_stream(experiment, values)
        ends.append((logit_direction(experiment, stream) * stream).sum(-1) * experiment.readouts.weight)
    return float((ends[0] - ends[1]).sum())


@torch.no_grad()
def _direct_effects(experiment: Experiment, run: str) -> tuple[Tensor, Tensor]:
    """The direction, `readout d_model`, and the direct effects, `component readout`, of the clean or corrupted run."""
    values = experiment.clean if run == "clean" else experiment.ablated
    direction = logit_direction(experiment, last_stream(experiment, values))
    heads = {i: z[None] for i, z in enumerate(values.heads)}
    found = _along(experiment, direction, heads, {i: mlp[None] for i, mlp in enumerate(values.mlps)})
    return direction, torch.cat(list(found.values())).double()


def _along(
    experiment: Experiment, direction: Tensor, heads: Mapping[int, Tensor], mlps: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """What each head and MLP of some layers writes along a direction.

    Parameters
    ----------
    direction : torch.Tensor
        `readout d_model`.
    heads, mlps : mapping of int to torch.Tensor
        By layer z, `variant head row pos d_head`, and what the MLP writes, `variant row pos d_model`.

    Returns
    -------
    dict of str to torch.Tensor
        By name, `variant readout`.
    """
    found: dict[str, Tensor] = {}
    for i, z in heads.items():
        read = torch.einsum("hed,rd->hre", experiment.model.layers[i].W_O, direction)
        each = torch.einsum("vhre,hre->hvr", experiment.read(z), read)
        found |= dict(zip(experiment.graph.heads(i), each, strict=True))
        if i in mlps and (mlp := experiment.graph.mlp(i)) is not None:
            found[mlp] = torch.einsum("vrd,rd->vr", experiment.read(mlps[i]), direction)
    return found


def _components(graph: Graph) -> tuple[str, ...]:
    """Every head and MLP, in the order of the senders."""
    return graph.senders[len(graph.inputs) :]


def _own_and_later(graph: Graph, site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The components that a site is part of, and those that come after it."""
    point, kind = KINDS[site.kind].point, "head" if KINDS[site.kind].units == "head" else "mlp"
    own, later = [], []
    for i, name in enumerate(_components(graph)):
        node = graph[name]
        if has_own_effect(site) and (node.kind, node.layer) == (kind, site.layer) and site.head in (None, node.unit):
            own.append(i)
        in_layer = point == "pre" or (point == "mid" and node.kind == "mlp" and not graph.config.parallel_attn_mlp)
        if node.layer > site.layer or (node.layer == site.layer and in_layer):
            later.append(i)
    return tuple(own), tuple(later)
