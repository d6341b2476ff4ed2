"""Gradients from the logits backward, one layer at a time.

Every port reads the residual stream, to which each sender adds its output. So the gradient at the stream before a layer
is that behind it plus those at the layer's ports. Only one layer is differentiated at once, and what is kept of the run
is the stream that each layer's attention and MLP read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from acdc.ablation import Values
from acdc.errors import RunError
from acdc.experiment import Experiment
from acdc.graph import LETTERS
from acdc.model.forward import Record, Site, forward, streams
from acdc.model.parts import LanguageModel


@dataclass(frozen=True)
class Replaced:
    """Outputs that senders are given instead of computing them; nothing flows back through these senders.

    Attributes
    ----------
    kind: `inputs`, `heads` (all of a layer) or `mlp`.
    layer: not of the inputs.
    value: as in `Values`: `input row pos d_model`, `head row pos d_head` or `row pos d_model`.
    """

    kind: str
    layer: int
    value: Tensor

    def is_at(self, site: Site) -> bool:
        """Whether the outputs are those of a site of a layer."""
        return (self.kind, self.layer) == ({"head_output": "heads", "mlp_out": "mlp"}.get(site.kind), site.layer)


@dataclass(frozen=True)
class AtPorts:
    """What the loss's derivatives are at one kind of ports of a layer, `a3.h0<q>` to `a3.h11<q>`, `m3` or `logits`.

    Attributes
    ----------
    rows: the ports' rows in `Graph.ports`.
    gradient: of the loss by each port's input, the raw residual stream: `port row pos d_model`.
    value: what the ports make of it, the heads' q, k or v, `port row pos d_head`, or what the MLP writes, `1 row pos
        d_model`; None for `logits`.
    value_gradient: the loss's gradient by that value.
    """

    rows: slice
    gradient: Float[Tensor, "port row pos d_model"]
    value: Float[Tensor, "port row pos d"] | None = None
    value_gradient: Float[Tensor, "port row pos d"] | None = None


@dataclass(frozen=True)
class LayerGradients:
    """The gradients at the three points of a layer's residual stream, `row pos d_model` each, and at its ports.

    Attributes
    ----------
    pre: before attention.
    mid: between attention and MLP. A change there also goes through the MLP, if that reads what attention has written.
    post: behind both.
    ports: of MLP, q, k and v, as far as they were asked for.
    """

    pre: Float[Tensor, "row pos d_model"]
    mid: Float[Tensor, "row pos d_model"]
    post: Float[Tensor, "row pos d_model"]
    ports: tuple[AtPorts, ...] = ()

    def at(self, point: str) -> Float[Tensor, "row pos d_model"]:
        """The gradient at `pre`, `mid` or `post`."""
        return {"pre": self.pre, "mid": self.mid, "post": self.post}[point]


class GradientRun:
    """A run of the whole model on an experiment's rows, and the gradients of the loss in it.

    Attributes
    ----------
    attention, mlp: the stream that each layer's heads and MLP read, `row pos d_model`.
    final: the last residual stream.
    """

    def __init__(
        self,
        experiment: Experiment,
        attention: list[Float[Tensor, "row pos d_model"]],
        mlp: list[Float[Tensor, "row pos d_model"]],
        final: Float[Tensor, "row pos d_model"],
        replaced: Replaced | None = None,
    ) -> None:
        self.experiment, self.model, self.replaced = experiment, experiment.model, replaced
        self.attention, self.mlp, self.final = attention, mlp, final

    @classmethod
    def stored(cls, experiment: Experiment, values: Values) -> GradientRun:
        """The run whose sender outputs are `values`."""
        return cls(experiment, *streams(experiment.model, values))

    @classmethod
    @torch.no_grad()
    def computed(cls, experiment: Experiment, replaced: Replaced | None = None) -> GradientRun:
        """The run on the clean prompts, in which the outputs of some senders may be replaced."""
        inputs = experiment.clean.inputs if replaced is None or replaced.kind != "inputs" else replaced.value
        record = Record("attn_in", "mlp_in")

        def at(site: Site, value: Tensor | None) -> Tensor | None:
            return replaced.value if replaced is not None and replaced.is_at(site) else record(site, value)

        final = forward(experiment.model, inputs.sum(0), at, mask=experiment.attention_mask)
        return cls(experiment, record["attn_in"], record["mlp_in"], final, replaced)

    def at_ports(self) -> Iterator[AtPorts]:
        """The gradients at all ports, receivers from the logits backward; ports of replaced senders have none.

        Raises
        ------
        RunError: the gradient is no number.
        """
        n_ports = len(self.experiment.graph.ports)
        at_logits = self.at_logits()
        yield AtPorts(slice(n_ports - 1, n_ports), at_logits[None])
        for _, gradients, _ in self.layers(at_logits, at_ports=True):
            yield from gradients.ports

    def layers(
        self, behind: Float[Tensor, "row pos d_model"], at_ports: bool = False, drop: bool = False
    ) -> Iterator[tuple[int, LayerGradients, Mapping[int, LayerGradients]]]:
        """The layers from the last to the first: the layer, its gradients, and with `drop` those of GradDrop.

        GradDrop (Kramár et al. 2024): for each layer the gradients with what that layer writes held fixed; given for
        this layer and every later one, since holding an earlier one changes nothing.

        Parameters
        ----------
        behind: the gradient at the last residual stream, `row pos d_model`.
        at_ports: whether every head's port has a gradient of its own, in `LayerGradients.ports`.
        """
        dropped: dict[int, Tensor] = {}
        for i in range(len(self.model.layers) - 1, -1, -1):
            first, *others = self._through(i, [behind, *dropped.values()], at_ports)
            here = dict(zip(dropped, others, strict=True))
            if drop:
                here[i] = LayerGradients(behind, behind, behind)
            yield i, first, here
            behind, dropped = first.pre, {layer: gradients.pre for layer, gradients in here.items()}

    def at_logits(self) -> Float[Tensor, "row pos d_model"]:
        """The gradient of the loss at the last residual stream, `row pos d_model`.

        Raises
        ------
        RunError: the gradient is no number.
        """
        metric, readouts = self.experiment.metric, self.experiment.readouts
        x = self.experiment.read(self.final).detach().requires_grad_()
        with torch.enable_grad():
            loss = metric.loss(self.model.unembed(x, metric.columns))
        (gradient,) = torch.autograd.grad(loss, x)
        if not bool(gradient.isfinite().all()):
            raise RunError("the gradient of the loss is no number: try model.dtype=float32 or another metric")
        return torch.zeros_like(self.final).index_put_((readouts.row, readouts.position), gradient, accumulate=True)

    def _through(self, i: int, behind: Sequence[Tensor], at_ports: bool) -> list[LayerGradients]:
        """Gradients behind a layer as gradients in it and before it."""
        inputs, values = self._layer(i, at_ports)
        graph, mlp_row = self.experiment.graph, self.experiment.graph.mlp_port(i)
        found = []
        for post in behind:
            mid = pre = post
            ports = []
            if "mlp_in" in inputs and mlp_row is not None:
                written = values["mlp_out"]
                (gradient,) = _vjp(written, [inputs["mlp_in"]], post)
                ports.append(AtPorts(slice(mlp_row, mlp_row + 1), gradient[None], written.detach()[None], post[None]))
                pre = post + gradient
                mid = post if self.model.config.parallel_attn_mlp else pre
            if "attn_in" in inputs:
                pre = pre + _vjp(values["attn_out"], [inputs["attn_in"]], mid)[0]
            elif "q_input" in inputs:
                projected = [values[letter] for letter in LETTERS]
                streams = [inputs[f"{letter}_input"] for letter in LETTERS]
                gradients = _vjp(values["attn_out"], [*streams, *projected], mid)
                for j, (letter, value) in enumerate(zip(LETTERS, projected, strict=True)):
                    ports.append(
                        AtPorts(graph.head_ports(i, letter), gradients[j], value.detach(), gradients[j + len(LETTERS)])
                    )
                    pre = pre + gradients[j].sum(0)
            found.append(LayerGradients(pre, mid, post, tuple(ports)))
        return found

    def _layer(self, i: int, at_ports: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What a layer reads, as leaves of a graph of its own, and the values that it makes of that, by site.

        Senders that are replaced read nothing.
        """
        inputs: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        n_heads = self.model.layers[i].n_heads
        of_mlp, of_heads = (Site(kind, i) for kind in ("mlp_out", "head_output"))

        def at(site: Site, value: Tensor | None) -> Tensor | None:
            if site.kind in ("mlp_in", "attn_in") or site.kind.endswith("_input"):
                writes = of_mlp if site.kind == "mlp_in" else of_heads
                if value is None or (self.replaced is not None and self.replaced.is_at(writes)):
                    return None
                if site.kind.endswith("_input"):
                    value = value.expand(n_heads, -1, -1, -1)
                value = self.mlp[i] if site.kind == "mlp_in" else value
                inputs[site.kind] = value = value.detach().requires_grad_()
            elif value is not None:
                values[site.kind] = value
            return value

        whole = slice(None)
        with torch.enable_grad():
            forward(
                self.model,
                self.attention[i],
                at,
                i,
                i + 1,
                mask=self.experiment.attention_mask,
                heads=(lambda _: whole) if at_ports else None,
            )
        return inputs, values


def _vjp(output: Tensor, of: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, of, gradient, retain_graph=True)


def sender_changes(experiment: Experiment) -> Float[Tensor, "sender row pos d_model"]:
    """Ablated − clean of every sender, as the residual stream sees it: `sender row pos d_model`."""
    clean, ablated = experiment.clean, experiment.ablated
    change = Values(ablated.inputs - clean.inputs, ablated.heads - clean.heads, ablated.mlps - clean.mlps)
    return sender_outputs(experiment.model, change)


@torch.no_grad()
def sender_outputs(model: LanguageModel, values: Values) -> Float[Tensor, "sender row pos d_model"]:
    """What every sender writes, in the order of `Graph.senders`: `sender row pos d_model`."""
    written = [values.inputs]
    for i, layer in enumerate(model.layers):
        written.append(layer.write(values.heads[i]))
        if layer.mlp is not None:
            written.append(values.mlps[i : i + 1])
    return torch.cat(written)
