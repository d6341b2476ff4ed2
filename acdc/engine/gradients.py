"""The loss's gradient at the input of every port, from the logits backward, one layer at a time.

Every port reads the residual stream, to which each sender adds its output. So the gradient at the stream before a layer
is that behind it plus those at the layer's ports; only one layer is differentiated at once, and what is kept of the run
is the stream before each layer's attention and MLP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.ablation import Values
from acdc.engine.mask import port_rows
from acdc.errors import RunError
from acdc.experiment import Experiment
from acdc.graph import LETTERS
from acdc.model.parts import LanguageModel


@dataclass(frozen=True)
class Replaced:
    """Outputs that senders are given instead of computing them; nothing flows back through these senders.

    Attributes
    ----------
    kind: `inputs`, `heads` (all of a layer) or `mlp`. layer: not of the inputs.
    value: as in `Values`: `input row pos d_model`, `head row pos d_head` or `row pos d_model`.
    """

    kind: str
    layer: int
    value: Tensor


@dataclass(frozen=True)
class AtPorts:
    """What the loss's derivatives are at one kind of ports of a layer, `a3.h0<q>` to `a3.h11<q>`, `m3` or `logits`.

    Attributes
    ----------
    rows: the ports' rows in `Graph.ports`.
    gradient: of the loss by each port's input, the raw residual stream: `port row pos d_model`.
    value, value_gradient: what the ports make of it and the loss's gradient by that: the heads' q, k or v, `port row
        pos d_head`, or what the MLP writes, `1 row pos d_model`; None for `logits`.
    """

    rows: slice
    gradient: Tensor
    value: Tensor | None = None
    value_gradient: Tensor | None = None


class GradientRun:
    """A run of the whole model on an experiment's rows, and the gradients of the loss in it.

    Parameters
    ----------
    replaced: outputs of some senders put in the place of those of the clean run, from which the run goes on.
    """

    @torch.no_grad()
    def __init__(self, experiment: Experiment, replaced: Replaced | None = None) -> None:
        self.experiment, self.model, self.replaced = experiment, experiment.model, replaced
        inputs = experiment.clean.inputs if replaced is None or replaced.kind != "inputs" else replaced.value
        stream = inputs.sum(0)
        self.attention: list[Tensor] = []  # the stream that q, k and v read
        self.mlp: list[Tensor] = []  # that MLPs read
        for i, layer in enumerate(self.model.layers):
            self.attention.append(stream)
            z = self._replaced("heads", i)
            if z is None:
                q, k, v = (layer.project_together(letter, stream) for letter in LETTERS)
                z = layer.mix(q, k, v, experiment.attention_mask)
            attended = stream + layer.write_together(z)
            if layer.b_O is not None:
                attended = attended + layer.b_O
            if layer.mlp is not None:
                self.mlp.append(stream if self.model.config.parallel_attn_mlp else attended)
                written = self._replaced("mlp", i)
                attended = attended + (layer.mlp(self.mlp[-1]) if written is None else written)
            stream = attended
        self.final = stream

    def _replaced(self, kind: str, layer: int) -> Tensor | None:
        at = self.replaced
        return at.value if at is not None and (at.kind, at.layer) == (kind, layer) else None

    def gradients(self) -> Iterator[AtPorts]:
        """The gradients at all ports, receivers from the logits backward; ports of replaced senders have none.

        Raises
        ------
        RunError: the gradient is no number.
        """
        graph, parallel = self.experiment.graph, self.model.config.parallel_attn_mlp
        stream = self._at_logits()
        if not bool(stream.isfinite().all()):
            raise RunError("the gradient of the loss is no number: try model.dtype=float32 or another metric")
        yield AtPorts(slice(len(graph.ports) - 1, len(graph.ports)), stream[None])
        for i in range(len(self.model.layers) - 1, -1, -1):
            heads, mlp = port_rows(graph, i)
            before = stream  # of the whole layer, as far as it is known
            if mlp is not None and self._replaced("mlp", i) is None:
                gradient, value = self._at_mlp(i, stream)
                yield AtPorts(slice(mlp, mlp + 1), gradient[None], value[None], stream[None])
                before = before + gradient
            if self._replaced("heads", i) is None:
                at_heads = self._at_heads(i, stream if parallel else before)
                for letter, at in zip(LETTERS, at_heads, strict=True):
                    yield AtPorts(heads[letter], *at)
                    before = before + at[0].sum(0)
            stream = before

    def _at_logits(self) -> Tensor:
        """At the last residual stream, `row pos d_model`."""
        metric, readouts = self.experiment.metric, self.experiment.readouts
        with torch.enable_grad():
            x = self.experiment.read(self.final).requires_grad_()
            (gradient,) = torch.autograd.grad(metric.loss(self.model.unembed(x, metric.columns)), x)
        return torch.zeros_like(self.final).index_put_((readouts.pair, readouts.position), gradient, accumulate=True)

    def _at_mlp(self, i: int, behind: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient at an MLP's input and what the MLP writes; `behind`: the gradient there."""
        mlp = self.model.layers[i].mlp
        assert mlp is not None
        with torch.enable_grad():
            x = self.mlp[i].detach().requires_grad_()
            value = mlp(x)
            (gradient,) = torch.autograd.grad(value, x, behind)
        return gradient, value.detach()

    def _at_heads(self, i: int, behind: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of q, k and v: the gradient at the heads' ports, the projected value, and the gradient at that."""
        layer = self.model.layers[i]
        with torch.enable_grad():
            x = self.attention[i].expand(layer.n_heads, -1, -1, -1)
            inputs = [x.detach().requires_grad_() for _ in LETTERS]  # a port of its own for each head
            values = [layer.project(letter, port) for letter, port in zip(LETTERS, inputs, strict=True)]
            q, k, v = values
            written = layer.write_together(layer.mix(q, k, v, self.experiment.attention_mask))
            gradients = torch.autograd.grad(written, (*inputs, *values), behind)
        return [(gradients[j], values[j].detach(), gradients[j + len(LETTERS)]) for j in range(len(LETTERS))]


def sender_changes(experiment: Experiment) -> Tensor:
    """Ablated − clean of every sender, as the residual stream sees it: `sender row pos d_model`."""
    clean, ablated = experiment.clean, experiment.ablated
    change = Values(ablated.inputs - clean.inputs, ablated.heads - clean.heads, ablated.mlps - clean.mlps)
    return sender_outputs(experiment.model, change)


@torch.no_grad()
def sender_outputs(model: LanguageModel, values: Values) -> Tensor:
    """What every sender writes, in the order of `Graph.senders`: `sender row pos d_model`."""
    written = [values.inputs]
    for i, layer in enumerate(model.layers):
        written.append(layer.write(values.heads[i]))
        if layer.mlp is not None:
            written.append(values.mlps[i : i + 1])
    return torch.cat(written)


def bytes_per_row(experiment: Experiment) -> int:
    """About what one row of an experiment takes: every sender's output, the streams, and one layer's derivatives."""
    model, graph = experiment.model, experiment.graph
    n_positions, d_model = experiment.batch.clean.shape[1], model.config.d_model
    n_heads = model.config.n_heads
    wide = max((mlp.W_in.shape[1] for mlp in (layer.mlp for layer in model.layers) if mlp is not None), default=0)
    vectors = 2 * len(graph.senders) + 2 * len(model.layers) + 5 * len(LETTERS) * n_heads
    columns = experiment.metric.columns
    vocabulary = model.vocabulary_size if columns is None else len(columns)
    readouts = -(-len(experiment.readouts) // len(experiment.batch.clean))
    numbers = n_positions * (vectors * d_model + 6 * wide + 6 * n_heads * n_positions) + 4 * readouts * vocabulary
    return numbers * model.W_E.element_size()
