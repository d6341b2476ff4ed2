"""What patching a site would do to the metric, to first order: (source − base) · gradient at base, for all sites at
once (Nanda 2023; Syed et al. 2023), with the corrections of AtP* (Kramár et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from acdc.engine.gradients import GradientRun, LayerGradients
from acdc.engine.memory import budget_bytes
from acdc.engine.resumed import ResumedRun
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.patching import base
from acdc.patching.activation_result import SiteMap
from acdc.patching.base import Progress
from acdc.patching.sites import Grid, SiteSettings, check_sites
from acdc.patching.values import SiteChanges


def check(experiment: Experiment, settings: SiteSettings, grad_drop: bool = False) -> list[Grid]:
    """The sites, a grid a kind; what cannot be estimated is refused.

    Raises
    ------
    ConfigError, TaskError
        See `acdc.patching.sites.check_sites`; a metric that has no gradient on the clean run; GradDrop in a model of
        one layer.
    """
    grids = check_sites(experiment, settings)
    if experiment.measured.compares_with_model and "noise" in settings.directions:
        raise ConfigError(
            f"metric={experiment.metric_name} is least on the clean run, so its gradient there is zero and says nothing"
            " of noising: give patch.direction=denoise, or metric=logit_diff"
        )
    if grad_drop and len(experiment.model.layers) < 2:
        raise ConfigError(
            f"patch.grad_drop=true averages over a site's other layers, and {experiment.model.name} has none:"
            " give patch.grad_drop=false"
        )
    return grids


def estimate(
    experiment: Experiment,
    settings: SiteSettings,
    qk_fix: bool = False,
    grad_drop: bool = False,
    progress: Progress | None = None,
) -> list[SiteMap]:
    """The estimated maps, in the order of a sweep: kinds, and of each the directions.

    Parameters
    ----------
    qk_fix : bool
        Whether the attention pattern is computed anew with the patched queries or keys, so that only what follows is
        linear.
    grad_drop : bool
        Whether estimates are mean sizes over layers whose output is held fixed. They have no sign: each says how much
        is lost (noising) or recovered (denoising).
    progress : callable or None
        Called with the number of sites that are done, and with the number of all.
    """
    grids = check(experiment, settings, grad_drop)
    total, done = len(settings.directions) * sum(map(len, grids)), 0.0
    memory = budget_bytes(experiment.model.device, settings.memory_gb, "patch")
    # Beside one layer's graph: both runs, and the gradients at one point of every layer that can be held fixed.
    blocks = base.blocks(experiment, memory // (3 + grad_drop * len(experiment.model.layers)))
    ends = [base.by_pair(experiment, values) for values in base.ends(experiment)]
    changes = {
        (i, direction): ends[0].new_zeros(*grid.shape, len(experiment.pairs))
        for i, grid in enumerate(grids)
        for direction in settings.directions
    }
    for block in blocks:
        runs, source_of = base.runs_of(block), torch.tensor(block.batch.source)
        places = [torch.stack([place.mask(block) for place in grid.places]) for grid in grids]
        for direction in settings.directions:
            patched, source = (runs[name] for name in base.base_and_source(direction))
            for layer, plain, dropped in backward(patched, grad_drop):
                for i, grid in enumerate(grids):
                    if layer in grid.layers:
                        effects = _Effects(grid, layer, patched, source, places[i], qk_fix)
                        found = effects.without_cancellation(plain, dropped) if grad_drop else effects(plain)
                        at = grid.layers.index(layer)
                        changes[i, direction][at].index_add_(-1, source_of, found.double().cpu())
                        done += len(grid) / len(grid.layers) / len(blocks)
                        if progress is not None:
                            progress(round(done), total)
    maps = []
    towards = torch.sign((ends[0] - ends[1]).mean())  # where there is no sign, of the change that is looked for
    for (i, direction), change in changes.items():
        unpatched = ends[0] if direction == "noise" else ends[1]
        if grad_drop:
            change = change * (towards if direction == "denoise" else -towards)
        maps.append(SiteMap(grids[i], direction, unpatched + change, ends[0], ends[1]))
    return maps


def backward(run: ResumedRun, drop: bool = False) -> Iterator[tuple[int, LayerGradients, Mapping[int, LayerGradients]]]:
    """The gradients of a stored run, layer by layer; see `GradientRun.layers`.

    What is differentiated is the sum over readouts of weight × pairs × metric, so a row's gradient tells what a change
    of it does to its pair's metric.
    """
    experiment = run.experiment
    gradients = GradientRun.stored(experiment, run.values)
    return gradients.layers(experiment.metric.as_loss(gradients.at_logits()) * len(experiment.pairs), drop=drop)


class _Effects:
    """First-order effects of the sites of a kind and layer.

    Parameters
    ----------
    places : torch.Tensor
        `place row pos`, True where a place is.
    """

    @torch.no_grad()
    def __init__(
        self, grid: Grid, layer: int, base: ResumedRun, source: ResumedRun, places: Tensor, qk_fix: bool
    ) -> None:
        self.grid, self.index, self.base, self.source, self.places = grid, layer, base, source, places
        self.layer, self.mask = base.model.layers[layer], base.experiment.attention_mask
        self.changes = SiteChanges(grid.kind, layer, base, source)
        name = grid.kind.name
        self.through_softmax = name in ("q", "k") and not qk_fix
        # Keys share a softmax, so what several tokens do together is not the sum of what each does.
        self.by_place = name == "k" and qk_fix

    @torch.no_grad()
    def __call__(self, gradients: LayerGradients) -> Tensor:
        """Of each site and row, `unit place row`."""
        gradient, name = gradients.at(self.grid.kind.point), self.grid.kind.name
        if self.grid.kind.units == "":
            return self._in_places((self.changes.difference * gradient).sum(-1)[None])
        if self.grid.kind.units == "neuron":
            assert self.layer.mlp is not None
            return self._in_places((self.changes.difference * (gradient @ self.layer.mlp.W_out.T)).movedim(-1, 0))
        of_z = torch.einsum("rtd,hed->hrte", gradient, self.layer.W_O)
        if self.by_place:
            changed = [(self._keys_patched(place) * of_z).sum((-2, -1)) for place in self.places]
            return self._units(torch.stack(changed, 1))
        if self.through_softmax or name == "v":
            here, there = (getattr(run, name)[self.index] for run in (self.base, self.source))
            return self._in_places(((there - here) * self._of_projected(of_z)).sum(-1))
        return self._in_places((self.changes.difference * of_z).sum(-1))

    def without_cancellation(self, gradients: LayerGradients, dropped: Mapping[int, LayerGradients]) -> Tensor:
        """GradDrop (Kramár et al. 2024): the mean size of the effect over the layers that are held fixed.

        A site inside the layer that is held fixed has no effect, so the sum is over one less; the residual stream is
        in no layer, so there the sum is over all.
        """
        n_layers, inside = len(self.base.model.layers), not self.grid.kind.name.startswith("resid")
        total = self(gradients).abs() * self.index  # holding an earlier layer changes nothing
        for layer, of_layer in dropped.items():
            if not (inside and layer == self.index):
                total = total + self(of_layer).abs()
        return total / (n_layers - inside)

    def _keys_patched(self, place: Tensor) -> Tensor:
        """The change of z, `head row pos d_head`, if the keys of a place are patched."""
        q, k, v = (getattr(self.base, letter)[self.index] for letter in "qkv")
        k = torch.where(place[..., None], self.source.k[self.index], k)
        return self.layer.mix(q, k, v, self.mask) - self.base.values.heads[self.index]

    def _of_projected(self, of_z: Tensor) -> Tensor:
        """The gradient by q, k or v, from that by z: `head row pos d_head`."""
        q, k, v = (getattr(self.base, letter)[self.index].detach() for letter in "qkv")
        wanted = {"q": q, "k": k, "v": v}[self.grid.kind.name].requires_grad_()
        with torch.enable_grad():
            found: Tensor = torch.autograd.grad(self.layer.mix(q, k, v, self.mask), wanted, of_z)[0]
        return found

    def _in_places(self, scores: Tensor) -> Tensor:
        """Sums over the tokens of each place: `unit row pos` → `unit place row`."""
        return torch.einsum("urt,prt->upr", self._units(scores), self.places.to(scores))

    def _units(self, scores: Tensor) -> Tensor:
        """The units of the grid, or their sum where those of a layer go together."""
        if self.grid.units == (None,):
            return scores.sum(0, keepdim=True)
        return scores[torch.tensor(self.grid.units, device=scores.device)]
