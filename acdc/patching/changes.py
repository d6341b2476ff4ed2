"""What replacing the value of a site by another run's adds to the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor

from acdc.engine.resumed import ResumedRun
from acdc.patching.sites import Kind


class Changes:
    """The changes that sites of one kind and layer make.

    Parameters
    ----------
    base: the run that is patched. source: the run whose values are put in.
    """

    @torch.no_grad()
    def __init__(self, kind: Kind, layer: int, base: ResumedRun, source: ResumedRun) -> None:
        self.kind, self.layer = kind, base.model.layers[layer]
        self.mask = base.experiment.attention_mask
        self.q, self.k, self.v = base.q[layer], base.k[layer], base.v[layer]
        source_q, self.source_k, self.source_v = source.q[layer], source.k[layer], source.v[layer]
        self.z = base.values.heads[layer]
        name = kind.name
        # The difference of what is patched, of every token; a site's change is this at its own tokens.
        if name in ("resid_pre", "resid_mid", "resid_post"):
            at = layer + 1 if name == "resid_post" else layer
            here, there = (run.mid if name == "resid_mid" else run.pre for run in (base, source))
            self.difference = there[at] - here[at]
        elif name == "attn_out":
            self.difference = self.layer.write_together(source.values.heads[layer] - self.z)
        elif name == "mlp_out":
            self.difference = source.values.mlps[layer] - base.values.mlps[layer]
        elif name == "neuron":
            mlp, inputs = self.layer.mlp, "pre" if base.model.config.parallel_attn_mlp else "mid"
            assert mlp is not None
            self.difference = mlp.neurons(getattr(source, inputs)[layer]) - mlp.neurons(getattr(base, inputs)[layer])
        # Of a head's queries and pattern each token has its own, so their effect on its output is its own too.
        elif name == "head_output":
            self.difference = source.values.heads[layer] - self.z
        elif name == "q":
            self.difference = self.layer.mix(source_q, self.k, self.v, self.mask) - self.z
        elif name == "pattern":
            self.difference = self.layer.mix(source_q, self.source_k, self.v, self.mask) - self.z

    @torch.no_grad()
    def __call__(self, units: Tensor | None, places: Tensor) -> Tensor:
        """The change of each site, `variant row pos d_model`.

        Parameters
        ----------
        units: the head or neuron of each, `variant`; None is all of the layer together. places: `variant row pos`,
            True where it is patched.
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
            k = torch.where(patched, of(self.source_k), k)
        else:
            v = torch.where(patched, of(self.source_v), v)
        return self.layer.mix(of(self.q), k, v, self.mask) - of(self.z)
