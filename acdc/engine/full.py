"""The circuit evaluated in full: every node, under any edge mask, for several variants of the mask at once.

This is the definition (Conmy et al. 2023, as the original's code has it): a port's value is its ablated input plus, for
every present edge, the sender's output under the circuit minus the sender's ablated output. It is differentiable in
the mask, and the oracle for every faster way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acdc.ablation import Values
from acdc.engine.mask import EdgeMask, port_rows
from acdc.experiment import Experiment
from acdc.graph import LETTERS, Graph
from acdc.model.parts import LanguageModel


def streams(model: LanguageModel, values: Values) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The inputs of each layer's q, k, v ports, of each MLP, and of the logits, each `pair pos d_model`.

    A port's input is the sum of the outputs of all its senders and of the attention output biases before it, which are
    never ablated. Of ablated values these are the ports' ablated inputs.
    """
    stream = values.inputs.sum(0)
    attention, mlp = [], []
    for i, layer in enumerate(model.layers):
        attention.append(stream)
        attended = stream + layer.write(values.heads[i]).sum(0)
        if layer.b_O is not None:
            attended = attended + layer.b_O
        if layer.mlp is None:
            stream = attended
        else:
            mlp.append(stream if model.config.parallel_attn_mlp else attended)
            stream = attended + values.mlps[i]
    return attention, mlp, stream


class FullEngine:
    """Evaluates circuits of an experiment by complete forward passes.

    Parameters
    ----------
    memory_gb: what one batch of variants may take; None is a quarter of a gigabyte.
    """

    def __init__(self, experiment: Experiment, memory_gb: float | None = None) -> None:
        self.experiment = experiment
        self.model = experiment.model
        with torch.no_grad():
            self.attention_base, self.mlp_base, self.logits_base = streams(self.model, experiment.ablated)
        config = self.model.config
        vectors_per_variant = len(experiment.graph.senders) + 10 * config.n_heads + 8
        bytes_per_variant = vectors_per_variant * self.logits_base.numel() * self.logits_base.element_size()
        self.max_variants = max(1, min(64, int((memory_gb or 0.25) * 2**30 / bytes_per_variant)))

    def stream(self, ports: Tensor, projections: Tensor | None = None) -> Tensor:
        """The residual stream that the logits are read from.

        Parameters
        ----------
        ports: `variant port sender`, 1 where an edge is present, or anything between.
        projections: `variant port`, 1 where a projection edge is present; None is all.

        Returns `variant readout d_model`.
        """
        model, ablated = self.model, self.experiment.ablated
        graph: Graph = self.experiment.graph
        ports = ports.to(model.device, model.dtype)
        n_variants = ports.shape[0]
        # What senders add to a port through present edges: output − ablated output, in groups that came together.
        changes = [(self.experiment.clean.inputs - ablated.inputs).expand(n_variants, *ablated.inputs.shape)]

        def received(base: Tensor, rows: slice) -> Tensor:
            value = base.expand(n_variants, rows.stop - rows.start, *base.shape)
            start = 0
            for change in changes:
                edges = ports[:, rows, start : start + change.shape[1]]
                value = value + torch.einsum("vrs,vs...->vr...", edges, change)
                start += change.shape[1]
            return value

        for i, layer in enumerate(model.layers):
            rows, mlp_row = port_rows(graph, i)
            projected = {}
            for letter in LETTERS:
                value = layer.project(letter, received(self.attention_base[i], rows[letter]))
                if projections is not None:
                    kept = projections[:, rows[letter]].to(value)[..., None, None, None]
                    value = kept * value + (1 - kept) * layer.project(letter, self.attention_base[i][None])
                projected[letter] = value
            z = layer.mix(projected["q"], projected["k"], projected["v"], self.experiment.attention_mask)
            changes.append(layer.write(z - ablated.heads[i]))
            if layer.mlp is not None and mlp_row is not None:
                value = received(self.mlp_base[i], slice(mlp_row, mlp_row + 1))
                changes.append(layer.mlp(value) - ablated.mlps[i])
        last = len(graph.ports) - 1
        read = self.experiment.read
        changes = [read(change)[:, :, None] for change in changes]  # the logits look at few positions only
        return received(read(self.logits_base)[None], slice(last, last + 1))[:, 0, 0]

    def logits(self, masks: Sequence[EdgeMask], columns: Tensor | None = None) -> Tensor:
        """Logits at the readouts, `variant readout column`, in batches that fit in memory."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(masks), self.max_variants):
                some = masks[start : start + self.max_variants]
                ports = torch.stack([mask.ports for mask in some])
                projections = torch.stack([mask.projections for mask in some])
                parts.append(self.model.unembed(self.stream(ports, projections), columns))
        return torch.cat(parts)

    def losses(self, masks: Sequence[EdgeMask]) -> list[float]:
        """The loss of each mask."""
        metric = self.experiment.metric
        return [
            loss
            for start in range(0, len(masks), self.max_variants)
            for loss in metric.loss(self.logits(masks[start : start + self.max_variants], metric.columns)).tolist()
        ]
