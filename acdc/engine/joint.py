"""A run with the values of several sites replaced together, for many such sets of sites at once.

The plain way: layer by layer each value is computed from what lies before it, then replaced where it is asked. So a
site may be replaced by anything (another run's value, zero, a mean), and a later one wins over what an earlier one
causes. For one site at a time `acdc.engine.resumed` is faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from acdc.engine.memory import measured_bytes
from acdc.engine.resumed import ResumedRun
from acdc.model.forward import Site, forward


@dataclass(frozen=True)
class Replaced:
    """A value that is put in.

    Attributes
    ----------
    where: True where it is put in, with the variants in front; broadcast against the value: `variant row pos 1` for the
        residual stream, attention and MLP outputs, `variant head row pos 1` for what heads have (of a pattern `pos` is
        the query's), `variant row pos neuron` for neurons.
    value: `row pos d_model`; `head row pos d_head`, of a pattern `head row query key`; `row pos neuron`; or the same
        with variants in front.
    """

    where: Bool[Tensor, "#variant ..."]
    value: Float[Tensor, "..."]


@dataclass(frozen=True)
class JointValues:
    """What a run with replaced sites computes.

    Attributes
    ----------
    heads: of each layer from the first replaced one, z, `variant head row pos d_head`. mlps: the same of MLPs,
    `variant row pos d_model`. stream: the last residual stream, `variant row pos d_model`.
    """

    heads: Mapping[int, Float[Tensor, "variant head row pos d_head"]]
    mlps: Mapping[int, Float[Tensor, "variant row pos d_model"]]
    stream: Float[Tensor, "variant row pos d_model"]


class JointRun:
    """`base`: the run that is changed. Replacements are keyed by `acdc.model.forward.Site`."""

    def __init__(self, base: ResumedRun) -> None:
        self.base, self.model, self.experiment = base, base.model, base.experiment

    def bytes_per_variant(self) -> int:
        """What one variant takes: while it runs, and what `run` returns."""
        stream = self.base.pre[0]
        everywhere = torch.ones(1, *stream.shape[:-1], 1, dtype=torch.bool, device=stream.device)
        replaced: dict[tuple[str, int], Replaced] = {Site("resid_pre", 0): Replaced(everywhere, stream)}
        return measured_bytes(lambda: (self.run(replaced), self.metric_values(replaced)))

    def metric_values(self, replaced: Mapping[tuple[str, int], Replaced]) -> Float[Tensor, "variant readout"]:
        """The metric at each readout, `variant readout`."""
        metric, readouts = self.experiment.metric, self.experiment.readouts
        start = min(_first_position(one.where) for one in replaced.values()) if self.model.causal else 0
        at = readouts.position - start
        changed = self.run(replaced, start).stream[:, readouts.row, at.clamp_min(0)]
        stream = torch.where((at < 0)[:, None], self.experiment.read(self.base.pre[-1]), changed)
        return metric.values(self.model.unembed(stream, metric.columns))

    @torch.no_grad()
    def run(self, replaced: Mapping[tuple[str, int], Replaced], start: int = 0) -> JointValues:
        """The changed run, from position `start` on: under causal attention what lies before it may be left out if
        nothing is replaced there.

        An attention or MLP output is what its heads or neurons write, with the MLP's output bias and without the
        attention's, which belongs to the residual stream.
        """
        first = min(layer for _, layer in replaced)
        n_variants = max(len(one.where) for one in replaced.values())
        values: dict[str, dict[int, Tensor]] = {"head_output": {}, "mlp_out": {}}

        def at(site: Site, value: Tensor | None) -> Tensor | None:
            if value is not None and (here := replaced.get(site)) is not None:
                value = torch.where(_from(start, here.where), _from(start, here.value), value)
            if site.kind in ("k", "v") and value is not None:  # those before `start` are the base's
                stored = (self.base.k if site.kind == "k" else self.base.v)[site.layer][..., :start, :]
                value = torch.cat((stored.expand(len(value), -1, -1, -1, -1), value), -2)
            if site.kind in values and value is not None:
                values[site.kind][site.layer] = value
            return value

        mask = self.experiment.attention_mask[:, start:]
        positions = torch.arange(start, self.base.pre[0].shape[-2], device=mask.device)
        x = self.base.pre[first][:, start:].expand(n_variants, -1, -1, -1)
        stream = forward(self.model, x, at, first, mask=mask, positions=positions)
        return JointValues(values["head_output"], values["mlp_out"], stream)


def _first_position(where: Tensor) -> int:
    """The first position where something is put in, the last one if nothing is; 0 where all are alike."""
    touched = where.movedim(-2, 0).flatten(1).any(1)
    return int(touched.nonzero()[0]) if bool(touched.any()) else len(touched) - 1


def _from(start: int, t: Tensor) -> Tensor:
    """A value or mask from a position on."""
    return t[..., start:, :] if t.dim() > 1 and t.shape[-2] > 1 else t
