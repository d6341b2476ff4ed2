"""Backup behaviour: what others write more of when a site is ablated (Wang et al. 2023; McGrath et al. 2023).

The direct effect of a head or MLP is what it writes, along the direction in which the final residual stream is read,
with the last norm's scale as it is in the clean run: so the direct effects of all parts add up. What later heads and
MLPs gain when a site is ablated makes up for a part of the direct effect that the site loses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from acdc.experiment import Experiment
from acdc.graph import Graph
from acdc.model.parts import LanguageModel
from acdc.patching.ablation_result import LEAST, Backup
from acdc.patching.ablation_run import AblationRun
from acdc.patching.base import by_pair
from acdc.patching.sites import KINDS, Site


def fits(site: Site) -> bool:
    """Whether a site is of one head, MLP or neuron, so that it has a direct effect of its own to lose."""
    return bool(KINDS[site.kind].units) or site.kind == "mlp_out"


@torch.no_grad()
def find_backup(run: AblationRun, sites: Sequence[Site]) -> list[Backup]:
    """Ablate each site alone and see what the others' direct effects become."""
    experiment, draws = run.experiment, run.replacements.draws
    directions = read_directions(experiment)
    before = _clean_effects(experiment, directions)
    after = torch.zeros(len(sites), *before.shape, dtype=before.dtype, device=before.device)
    names = tuple(component_names(experiment.graph))
    for batch in run.batches([[site] for site in sites]):
        found = batch.run.run(batch.replaced)
        changed = direct_effects(batch.run.experiment, directions[batch.here], found.heads, found.mlps)
        for i, name in enumerate(names):
            after[batch.sets, i, batch.here] += changed[name] if name in changed else before[i, batch.here]
    by_site = by_pair(experiment, after / draws)
    start = by_pair(experiment, before)
    return [Backup(s, names, start, a, *_roles(experiment.graph, s)) for s, a in zip(sites, by_site, strict=True)]


def most_direct(experiment: Experiment, sites: Sequence[Site], count: int) -> list[Site]:
    """The sites whose own direct effect in the clean run is the largest, of those that have one (at the positions that
    are read) and something behind them; the first ones first where they are alike."""
    readouts = experiment.readouts
    effects = _clean_effects(experiment, read_directions(experiment)) * readouts.weight
    read = {}  # of each place: the readouts that are in it
    size = {}
    for site in filter(fits, sites):
        own, later = _roles(experiment.graph, site)
        if (name := site.place.name) not in read:
            read[name] = site.place.mask(experiment)[readouts.pair, readouts.position]
        if later:
            size[site] = abs(float((effects[list(own)].sum(0) * read[name]).sum()))
    least = LEAST * float(effects.sum(-1).abs().max())
    return sorted((site for site in size if size[site] > least), key=lambda site: -size[site])[:count]


@torch.no_grad()
def _clean_effects(experiment: Experiment, directions: Tensor) -> Tensor:
    """The direct effects in the clean run, `component readout`."""
    clean = experiment.clean
    heads = {i: z[None] for i, z in enumerate(clean.heads)}
    found = direct_effects(experiment, directions, heads, {i: mlp[None] for i, mlp in enumerate(clean.mlps)})
    return torch.cat(list(found.values())).double()


def read_directions(experiment: Experiment) -> Tensor:
    """What a readout's logit difference is of the residual stream, with the last norm's scale that of the clean run,
    `readout d_model`.

    The difference is of the mean answer and the mean wrong answer; of the answer (the model's top token where there is
    none) and the mean over the vocabulary where there is no wrong one.
    """
    model, readouts = experiment.model, experiment.readouts
    right, wrong = readouts.answers, readouts.wrong_answers
    if not _all_given(right):
        right = experiment.clean_logits.argmax(-1, keepdim=True)
    against = _mean_column(model, wrong) if _all_given(wrong) else model.W_U.mean(1)
    direction = _mean_column(model, right) - against
    return model.final_norm.held(direction, experiment.read(experiment.clean_stream))


def direct_effects(
    experiment: Experiment, directions: Tensor, heads: Mapping[int, Tensor], mlps: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """Of each head and MLP of some layers what it writes along `directions`, by name, `variant readout`.

    Parameters
    ----------
    heads: by layer, z, `variant head row pos d_head`. mlps: by layer, `variant row pos d_model`.
    """
    found: dict[str, Tensor] = {}
    for i, z in heads.items():
        read = torch.einsum("hed,rd->hre", experiment.model.layers[i].W_O, directions)
        each = torch.einsum("vhre,hre->hvr", experiment.read(z), read)
        found |= dict(zip(experiment.graph.heads(i), each, strict=True))
        if i in mlps and (mlp := experiment.graph.mlp(i)) is not None:
            found[mlp] = torch.einsum("vrd,rd->vr", experiment.read(mlps[i]), directions)
    return found


def component_names(graph: Graph) -> list[str]:
    """Every head and MLP, in the order of the senders."""
    return list(graph.senders[len(graph.inputs) :])


def _roles(graph: Graph, site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the components, those that the site is of, and those that come after it."""
    rows = [graph[name] for name in component_names(graph)]
    kind = "head" if KINDS[site.kind].units == "head" else "mlp"
    mine = [row.kind == kind and row.layer == site.layer and site.head in (None, row.unit) for row in rows]
    reads_heads = kind == "head" and not graph.config.parallel_attn_mlp  # the MLP of the same layer does
    after = [row.layer > site.layer or (reads_heads and row.kind == "mlp" and row.layer == site.layer) for row in rows]
    return tuple(i for i, one in enumerate(mine) if one), tuple(i for i, one in enumerate(after) if one)


def _all_given(ids: Tensor) -> bool:
    return bool((ids >= 0).any(-1).all())


def _mean_column(model: LanguageModel, ids: Tensor) -> Tensor:
    """The mean of the unembedding's columns of each row's ids, padded with −1: `row d_model`."""
    given = ids >= 0
    columns = model.W_U.T[ids.clamp_min(0)] * given[..., None]
    return columns.sum(1) / given.sum(1, keepdim=True)
