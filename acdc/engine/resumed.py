"""A run taken up again in the middle, with its residual stream changed there, for many changes at once.

What lies before the change is the stored run's and is never computed again: the layers before it, under causal
attention the positions before it, and of its own layer the MLP where its input is the same. Of the last layer only the
positions that the metric reads are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from acdc.ablation import Values
from acdc.engine.memory import measured_bytes
from acdc.experiment import Experiment
from acdc.graph import LETTERS
from acdc.model.forward import streams
from acdc.model.linear import linear

POINTS = ("pre", "mid", "post")  # of a layer: before its attention, between attention and MLP, behind both


class ResumedRun:
    """The run whose sender outputs are `values`, on the experiment's rows.

    Attributes
    ----------
    pre: the residual stream before each layer, `row pos d_model`, and behind the last one. mid: between attention and
    MLP; empty where the model has no such place (no MLPs, or parallel ones). q, k, v: of each layer,
    `head row pos d_head`.
    """

    @torch.no_grad()
    def __init__(self, experiment: Experiment, values: Values) -> None:
        self.experiment, self.model, self.graph, self.values = experiment, experiment.model, experiment.graph, values
        attention, mlp, final = streams(self.model, values)
        self.pre = [*attention, final]
        self.mid = [] if self.model.config.parallel_attn_mlp else mlp
        layers = list(zip(self.model.layers, attention, strict=True))
        self.q, self.k, self.v = ([layer.project_together(letter, x) for layer, x in layers] for letter in "qkv")
        readouts = experiment.readouts
        self.is_read = torch.zeros_like(experiment.batch.clean, dtype=torch.bool)
        self.is_read[readouts.row, readouts.position] = True

    @property
    def nbytes(self) -> int:
        """What is stored."""
        senders = (self.values.inputs, self.values.heads, self.values.mlps)
        return sum(t.nbytes for t in (*senders, *self.pre, *self.mid, *self.q, *self.k, *self.v))

    def bytes_per_variant(self) -> int:
        """What one change takes while it is followed from the first layer to the logits."""
        return self._bytes_per_variant

    @cached_property
    def _bytes_per_variant(self) -> int:
        _ = self.unchanged  # is kept, for all variants
        return measured_bytes(lambda: self.metric_values(0, "pre", torch.ones_like(self.pre[0])[None]))

    @cached_property
    def unchanged(self) -> Float[Tensor, " readout"]:
        """The metric of this run at each readout, `readout`."""
        metric = self.experiment.metric
        with torch.no_grad():  # whoever asks first: gradients change which kernel multiplies, and so the last digit
            return metric.values(self.model.unembed(self.experiment.read(self.pre[-1]), metric.columns))

    @torch.no_grad()
    def metric_values(
        self, layer: int, point: str, change: Float[Tensor, "variant row pos d_model"]
    ) -> Float[Tensor, "variant readout"]:
        """The metric at each readout once the residual stream is changed, `variant readout`.

        Parameters
        ----------
        layer, point: where; one of `POINTS`. change: what is added there, `variant row pos d_model`.
        """
        metric = self.experiment.metric
        values = self.unchanged.expand(len(change), -1).clone()
        # A change of nothing, as where both prompts have been alike so far, has no effect: exactly.
        touched = change.flatten(1).any(1)
        if bool(touched.any()):
            stream = self._readout(layer, point, change[touched])
            values[touched] = metric.values(self.model.unembed(stream, metric.columns))
        return values

    def _readout(self, layer: int, point: str, change: Tensor) -> Tensor:
        """The last residual stream at the readouts, `variant readout d_model`."""
        n_layers, readouts = len(self.model.layers), self.experiment.readouts
        start = int(change.any(-1).flatten(0, 1).any(0).nonzero()[0]) if self.model.causal else 0
        change = change[:, :, start:]
        if point == "mid":
            change = self._through_mlp(layer, change, start)
        first = layer if point == "pre" else layer + 1
        x = self.pre[first][:, start:] + change
        for i in range(first, n_layers):
            x = self._layer(i, x, start)
        at = readouts.position - start
        x = x[:, readouts.row, at.clamp_min(0)] if first == n_layers else x[:, :, 0]
        return torch.where((at < 0)[:, None], self.experiment.read(self.pre[-1]), x)

    def _through_mlp(self, i: int, change: Tensor, start: int) -> Tensor:
        """A change between attention and MLP as the change behind both."""
        mlp = self.model.layers[i].mlp
        if mlp is None or self.model.config.parallel_attn_mlp:
            return change
        touched = change.any(-1)
        if i == len(self.model.layers) - 1:
            touched = touched & self.is_read[:, start:]
        if not bool(touched.any()):
            return change
        mid, written = (t[:, start:].expand_as(change)[touched] for t in (self.mid[i], self.values.mlps[i]))
        change = change.clone()
        change[touched] += mlp(mid + change[touched]) - written
        return change

    def _layer(self, i: int, x: Tensor, start: int) -> Tensor:
        """The stream behind a layer, `variant row pos d_model`; behind the last one `variant readout 1 d_model`.

        `x`: before it, from position `start` on; what lies before has its stored keys and values.
        """
        layer, readouts = self.model.layers[i], self.experiment.readouts
        positions = torch.arange(start, start + x.shape[-2], device=x.device)
        k, v = (
            torch.cat((stored[i][..., :start, :].expand(len(x), -1, -1, -1, -1), new), -2)
            for stored, new in (
                (self.k, layer.project_together("k", x, positions)),
                (self.v, layer.project_together("v", x)),
            )
        )
        mask = self.experiment.attention_mask[:, start:]
        if i == len(self.model.layers) - 1:
            x = x[:, readouts.row, (readouts.position - start).clamp_min(0)][:, :, None]
            k, v = k[:, :, readouts.row], v[:, :, readouts.row]
            positions = readouts.position[:, None]
            mask = self.experiment.attention_mask.expand(len(self.is_read), -1, -1)
            mask = mask[readouts.row, readouts.position][:, None]
        attended = x + layer.write_together(layer.mix(layer.project_together("q", x, positions), k, v, mask))
        if layer.b_O is not None:
            attended = attended + layer.b_O
        if layer.mlp is None:
            return attended
        return attended + layer.mlp(x if self.model.config.parallel_attn_mlp else attended)

    # What ports make of a change of their input.

    def point_of(self, port: str) -> tuple[int, str]:
        """The layer and point at which what a port makes of its input reaches the residual stream."""
        node = self.graph[port]
        if node.kind == "logits":
            return len(self.model.layers) - 1, "post"
        return node.layer, "mid" if node.kind == "head" else "post"

    def written(self, ports: Sequence[str], change: Tensor) -> Tensor:
        """What ports add to the residual stream at the point where all of them write.

        It is 0 exactly where nothing can change, so that it need not be computed further on.

        Parameters
        ----------
        ports: of one point: heads' ports of a layer, one MLP's or the logits'.
        change: of the input of all of them, `variant row pos d_model`.

        Returns `variant row pos d_model`.
        """
        node = self.graph[ports[0]]
        if node.kind == "logits":
            return change
        if node.kind == "mlp":
            return self.written_by_mlp(node.layer, change)
        return self._written_by_heads(node.layer, ports, change)

    def written_by_mlp(self, i: int, change: Tensor) -> Tensor:
        """What the MLP of a layer makes of a change of its input, `variant row pos d_model`."""
        mlp, out, touched = self.model.layers[i].mlp, torch.zeros_like(change), change.any(-1)
        assert mlp is not None
        stored = (self.pre if self.model.config.parallel_attn_mlp else self.mid)[i]
        here, written = (t.expand_as(change)[touched] for t in (stored, self.values.mlps[i]))
        out[touched] = mlp(here + change[touched]) - written
        return out

    def _written_by_heads(self, i: int, ports: Sequence[str], change: Tensor) -> Tensor:
        layer, x = self.model.layers[i], self.pre[i] + change
        out, mask = torch.zeros_like(change), self.experiment.attention_mask
        letters: dict[int, str] = {}
        for port in ports:
            node = self.graph[port]
            letters[node.unit] = letters.get(node.unit, "") + node.letter
        # Of its query alone a token feels only a change of its own.
        reached = change.any(-1) if set("".join(letters.values())) == {"q"} else self.reached(change)
        for head, changed in letters.items():
            q, k, v = (
                layer.project_head(letter, head, x) if letter in changed else stored[i][head]
                for letter, stored in zip(LETTERS, (self.q, self.k, self.v), strict=True)
            )
            moved = (layer.mix(q, k, v, mask) - self.values.heads[i, head]) * reached[..., None]
            out += linear(moved, layer.W_O[head].T)
        return out

    def reached(self, change: Tensor) -> Tensor:
        """Where attention can feel a change of the stream: `variant row pos d_model` → `variant row pos`."""
        touched = change.any(-1)
        return touched.cumsum(-1) > 0 if self.model.causal else touched.any(-1, keepdim=True).expand_as(touched)
