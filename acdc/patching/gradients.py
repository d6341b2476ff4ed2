"""Gradients of the metric by the residual stream, layer by layer from the last one to the first.

Each layer is computed anew from the stored stream before it, so no more than one layer's graph is ever held; and a
change of anything in a layer reaches the metric through the stream, so the stream's gradient serves every site.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.engine.resumed import ResumedRun
from acdc.model.parts import Layer


@dataclass(frozen=True)
class LayerGradients:
    """The gradient at the three points of a layer (`acdc.engine.resumed.POINTS`), each `row pos d_model`.

    A change at `mid` also goes through the layer's MLP, if that reads what attention has written.
    """

    pre: Tensor
    mid: Tensor
    post: Tensor

    def at(self, point: str) -> Tensor:
        gradient: Tensor = getattr(self, point)
        return gradient


def backward(run: ResumedRun, drop: bool = False) -> Iterator[tuple[int, LayerGradients, Mapping[int, LayerGradients]]]:
    """The layers from the last to the first: the layer, its gradients, and with `drop` those of GradDrop.

    What is differentiated is the sum over readouts of weight × pairs × metric, so a row's gradient tells what a change
    of it does to its pair's metric. GradDrop (Kramár et al. 2024): for each layer the gradients with what that
    layer writes held fixed; given for this layer and every later one, since holding an earlier one changes nothing.
    """
    post = at_the_end(run)
    dropped: dict[int, Tensor] = {}
    for i in range(len(run.model.layers) - 1, -1, -1):
        behind = dict(dropped)
        found = _through(run, i, [post, *behind.values()])
        here = {layer: gradients for layer, gradients in zip(behind, found[1:], strict=True)}
        if drop:
            here[i] = LayerGradients(post, post, post)
        yield i, found[0], here
        post, dropped = found[0].pre, {layer: gradients.pre for layer, gradients in here.items()}


def at_the_end(run: ResumedRun) -> Tensor:
    """The gradient by the last residual stream, `row pos d_model`; see `backward` for its scale."""
    readouts, metric = run.experiment.readouts, run.experiment.metric
    stream = run.experiment.read(run.pre[-1]).detach().requires_grad_()
    with torch.enable_grad():
        value = (metric.values(run.model.unembed(stream, metric.columns)) * readouts.weight).sum()
    (gradient,) = torch.autograd.grad(value, stream)
    at = readouts.pair, readouts.position
    return torch.zeros_like(run.pre[-1]).index_put(at, gradient * len(run.experiment.pairs), accumulate=True)


def _through(run: ResumedRun, i: int, behind: Sequence[Tensor]) -> list[LayerGradients]:
    """Gradients behind a layer as gradients in it and before it."""
    layer, parallel = run.model.layers[i], run.model.config.parallel_attn_mlp
    x = run.pre[i].detach().requires_grad_()
    mids = list(behind)
    with torch.enable_grad():
        written = _attention(layer, x, run.experiment.attention_mask)
        if layer.mlp is not None and parallel:
            written = written + layer.mlp(x)
        elif layer.mlp is not None:
            middle = run.mid[i].detach().requires_grad_()
            output = layer.mlp(middle)
            mids = [gradient + _vjp(output, middle, gradient) for gradient in behind]
    pres = [gradient + _vjp(written, x, gradient) for gradient in mids]
    return [LayerGradients(*three) for three in zip(pres, mids, behind, strict=True)]


def _attention(layer: Layer, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (layer.project_together(letter, x) for letter in "qkv")
    return layer.write_together(layer.mix(q, k, v, mask))


def _vjp(output: Tensor, of: Tensor, gradient: Tensor) -> Tensor:
    return torch.autograd.grad(output, of, gradient, retain_graph=True)[0]
