"""The value of a site in a run, for all units of a layer: what `acdc.engine.joint.Replaced` puts in."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from acdc.engine.resumed import ResumedRun
from acdc.experiment import Experiment
from acdc.patching.base import blocks


@torch.no_grad()
def site_value(run: ResumedRun, kind: str, layer: int, rotated: bool = True) -> Tensor:
    """`row pos d_model` of the residual stream and what is written to it, `head row pos d_head` of what heads have (of
    a pattern `head row query key`), `row pos neuron` of neurons.

    Parameters
    ----------
    kind: one of `acdc.patching.sites.KINDS`. rotated: queries and keys with their rotary positions.
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
    name: of the run, `clean` or `corrupted`. memory: bytes of temporary tensors: where the stored run does not fit, it
        is made anew for every value, block by block of its rows.
    """

    def __init__(self, experiment: Experiment, name: str, memory: int) -> None:
        self.name, self.parts = name, blocks(experiment, memory)
        self.kept = [self._run(part) for part in self.parts] if len(self.parts) == 1 else None

    def __call__(self, kind: str, layer: int) -> Tensor:
        """As `site_value`."""
        runs = self.kept or map(self._run, self.parts)
        return torch.cat([site_value(run, kind, layer).cpu() for run in runs], -3)  # the axis of rows

    def _run(self, part: Experiment) -> ResumedRun:
        return ResumedRun(part, part.clean if self.name == "clean" else part.ablated)
