"""The value of a site in a run, and what replacing it by another run's adds to the residual stream."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from acdc.engine.resumed import ResumedRun
from acdc.experiment import Experiment
from acdc.patching.base import blocks
from acdc.patching.sites import Kind


@torch.no_grad()
def site_value(run: ResumedRun, kind: str, layer: int, rotated: bool = True) -> Tensor:
    """`row pos d_model` of the residual stream and what is written to it, `head row pos d_head` of what heads have (of
    a pattern `head row query key`), `row pos neuron` of neurons.

    Parameters
    ----------
    kind : str
        One of `acdc.patching.sites.KINDS`.
    rotated : bool
        Whether queries and keys have their rotary positions.
    """
    parts = run.model.layers[layer]
    if kind in ("resid_pre", "resid_post"):
        return run.pre[layer if kind == "resid_pre" else layer + 1]
    if kind == "resid_mid":
        return run.mid[layer]
    if kind == "attn_out":
        return parts.write_together(run.values.heads[layer])
    if kind == "mlp_out":
        return run.values.mlps[layer]
    if kind == "neuron":
        assert parts.mlp is not None
        return parts.mlp.neurons((run.pre if run.model.config.parallel_attn_mlp else run.mid)[layer])
    if kind == "pattern":
        return parts.attend(run.q[layer], run.k[layer], run.experiment.attention_mask)
    if kind in ("q", "k") and not rotated:
        return replace(parts, rotary=None).project_together(kind, run.pre[layer])
    if kind == "head_output":
        return run.values.heads[layer]
    return {"q": run.q, "k": run.k, "v": run.v}[kind][layer]


class RunValues:
    """The values of sites in a whole run, on the CPU.

    Parameters
    ----------
    name : str
        The run, `clean` or `corrupted`.
    memory : int
        Bytes of temporary tensors. Where the stored run does not fit, it is made anew for every value, block by block
        of its rows.
    """

    def __init__(self, experiment: Experiment, name: str, memory: int) -> None:
        self.name, self.parts = name, blocks(experiment, memory)
        self.kept = [self._run(part) for part in self.parts] if len(self.parts) == 1 else None

    draws = 1

    def __call__(self, kind: str, layer: int, draw: int = 0) -> Tensor:
        """As `site_value`; every draw is the same."""
        runs = self.kept or map(self._run, self.parts)
        return torch.cat([site_value(run, kind, layer).cpu() for run in runs], -3)  # the axis of rows

    def _run(self, part: Experiment) -> ResumedRun:
        return ResumedRun(part, part.clean if self.name == "clean" else part.ablated)


class SiteChanges:
    """The changes that sites of one kind and layer make.

    Parameters
    ----------
    base : ResumedRun
        The run that is patched.
    source : ResumedRun or torch.Tensor
        The run whose values are put in, or the layer's values themselves, as `acdc.patching.values.site_value` has
        them.
    """

    @torch.no_grad()
    def __init__(self, kind: Kind, layer: int, base: ResumedRun, source: ResumedRun | Tensor) -> None:
        self.kind, self.layer = kind, base.model.layers[layer]
        self.mask = base.experiment.attention_mask
        self.q, self.k, self.v = base.q[layer], base.k[layer], base.v[layer]
        self.z = base.values.heads[layer]
        name = kind.name
        self.value = value = source if isinstance(source, Tensor) else site_value(source, name, layer)
        # The difference of what is patched, of every token; a site's change is this at its own tokens.
        if kind.units != "head":
            self.difference = value - site_value(base, name, layer)
        # Of a head's queries and pattern each token has its own, so their effect on its output is its own too.
        elif name == "head_output":
            self.difference = value - self.z
        elif name == "q":
            self.difference = self.layer.mix(value, self.k, self.v, self.mask) - self.z
        elif name == "pattern":
            self.difference = value @ self.v - self.z

    @torch.no_grad()
    def __call__(self, units: Tensor | None, places: Tensor) -> Tensor:
        """The change of each site, `variant row pos d_model`.

        Parameters
        ----------
        units : torch.Tensor or None
            The head or neuron of each, `variant`; None is all of the layer together.
        places : torch.Tensor
            `variant row pos`, True where it is patched.
        """
        if self.kind.units == "":
            return self.difference * places[..., None]
        if self.kind.units == "neuron":
            assert units is not None
            assert self.layer.mlp is not None
            changes = self.difference[..., units].movedim(-1, 0) * places
            return changes[..., None] * self.layer.mlp.W_out[units][:, None, None]
        change = self._heads(units, places)
        if units is None:
            return self.layer.write_together(change)
        return torch.einsum("vrte,ved->vrtd", change, self.layer.W_O[units])

    def _heads(self, units: Tensor | None, places: Tensor) -> Tensor:
        """The change of heads' outputs, `variant row pos d_head`, or of all heads, `variant head row pos d_head`."""
        patched = places[..., None] if units is not None else places[:, None, ..., None]

        def of(value: Tensor) -> Tensor:
            return value[units] if units is not None else value[None]

        if self.kind.name not in ("k", "v"):
            return of(self.difference) * patched
        k, v = of(self.k), of(self.v)
        if self.kind.name == "k":
            k = torch.where(patched, of(self.value), k)
        else:
            v = torch.where(patched, of(self.value), v)
        return self.layer.mix(of(self.q), k, v, self.mask) - of(self.z)
