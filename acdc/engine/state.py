"""A circuit's nodes with the values they have under a mask, each where something live reads it.

A node matters only where it is read: by the logits at the readouts, by a q port and an MLP where their own node is
read, by k and v ports everywhere. So every node is needed either at the readouts or at all positions.

Tensors of several variants are `row variant pos d`: rows first, since variants share all that is stored per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from acdc.engine.mask import EdgeMask
from acdc.experiment import Experiment
from acdc.model.forward import streams
from acdc.model.linear import linear

READ, ALL = 0, 1  # where a node is needed


@dataclass(frozen=True)
class ReadPositions:
    """Where the metric reads.

    Attributes
    ----------
    positions : Int[Tensor, "row slot"]
        Where each row is read. Rows that are read at fewer positions repeat their last one.
    row, slot : Int[Tensor, "readout"]
        Readout r stands at (`row[r]`, `slot[r]`).
    every_row : Int[Tensor, "row 1"]
        The numbers of all rows, to index with beside `positions`.
    masks : tuple[Bool[Tensor, "row slot key"], Bool[Tensor, "row query key"]]
        True where a query may not look, of queries at `READ` and at `ALL`.
    """

    positions: Int[Tensor, "row slot"]
    row: Int[Tensor, " readout"]
    slot: Int[Tensor, " readout"]
    every_row: Int[Tensor, "row 1"]
    masks: tuple[Bool[Tensor, "row slot key"], Bool[Tensor, "row query key"]]

    @classmethod
    def of(cls, experiment: Experiment) -> ReadPositions:
        """Those of an experiment's readouts."""
        readouts, n_rows = experiment.readouts, len(experiment.batch.lengths)
        of_row: list[list[int]] = [[] for _ in range(n_rows)]
        slots = []
        for row, position in zip(readouts.row.tolist(), readouts.position.tolist(), strict=True):
            if position not in of_row[row]:
                of_row[row].append(position)
            slots.append(of_row[row].index(position))
        width = max(map(len, of_row))
        device = experiment.model.device
        positions = torch.tensor([some + some[-1:] * (width - len(some)) for some in of_row], device=device)
        every_row = torch.arange(n_rows, device=device)[:, None]
        mask = experiment.attention_mask.expand(n_rows, -1, -1)
        slot = torch.tensor(slots, device=device)
        return cls(positions, readouts.row, slot, every_row, (mask[every_row, positions], mask))


class CircuitState:
    """Every sender's current output, rebuilt from the edge set where the mask has changed it.

    Parameters
    ----------
    room: bytes that may be spent on keeping what senders add, which costs products to make again.

    Attributes
    ----------
    bases: the ablated inputs of q, k and v ports and of MLPs, by layer, and of the logits: `row pos d_model`.
    z, m: heads' outputs before W_O, `layer head row pos d_head`, and MLPs', `layer row pos d_model`. Both are the
        clean run's where nothing has changed them, and right only where the node is needed.
    projected: the current q, k or v of a port.
    deltas: clean − ablated of a sender, as the stream sees it.
    levels: where each used node is needed, `READ` or `ALL`.
    """

    def __init__(self, experiment: Experiment, mask: EdgeMask, room: int = 2**30) -> None:
        self.experiment, self.mask, self.room = experiment, mask, room
        self.model, self.graph = experiment.model, mask.graph
        with torch.inference_mode():
            self.bases = streams(self.model, experiment.ablated)
            self.read = ReadPositions.of(experiment)
            self.z = experiment.clean.heads.clone()
            self.m = experiment.clean.mlps.clone()
            self.projected: dict[str, Tensor] = {}  # current q, k or v of a port
            self.deltas: dict[tuple[str, int], Tensor] = {}  # clean − ablated of a sender, as the stream sees it
            self.levels: dict[str, int] = {}
            self.refresh_since(EdgeMask.all(self.graph))

    @torch.inference_mode()
    def losses_of(self, masks: Sequence[EdgeMask]) -> list[float]:
        """The loss of each of some masks, from its edge set alone: every node that differs from the clean run is
        evaluated; of a mask that is a part of the one before, those that differ from that.
        """
        rows: list[Tensor] = []
        latest: EdgeMask | None = None
        for mask in masks:
            if latest is None or not mask.is_part_of(latest):
                latest = EdgeMask.all(self.graph)
                self.z.copy_(self.experiment.clean.heads)
                self.m.copy_(self.experiment.clean.mlps)
                self.projected.clear()
            self.mask = mask
            self.refresh_since(latest)
            rows.append(self.at_readouts(self.input("logits")))
            latest = mask
        metric = self.experiment.metric
        return metric.loss(self.model.unembed(torch.stack(rows), metric.columns)).tolist()

    def at(self, x: Float[Tensor, "*batch row pos d"], level: int) -> Float[Tensor, "*batch row _ d"]:
        """`... row pos d` where it is needed: all of it, or the readouts `... row slot d`."""
        return x if level == ALL else x[..., self.read.every_row, self.read.positions, :]

    def at_readouts(self, x: Float[Tensor, "row slot d_model"]) -> Float[Tensor, "readout d_model"]:
        """The readouts of a stream at `row slot`: `readout d_model`."""
        return x[self.read.row, self.read.slot]

    def port_level(self, port: str) -> int:
        row = self.graph[port]
        if row.letter in ("k", "v"):
            return ALL
        return READ if row.kind == "logits" else self.levels[self.graph.node_of(port)]

    def needed(self) -> dict[str, int]:
        """Where each used node is needed; nodes that feed nothing are absent."""
        levels: dict[str, int] = {"logits": READ}
        ports, projections = self.mask.ports.numpy(), self.mask.projections.numpy()
        port_level = np.full(len(self.graph.ports), -1)
        port_level[-1] = READ
        for i in range(len(self.graph.senders) - 1, -1, -1):
            level = int(port_level.max(where=ports[:, i], initial=-1))
            if level < 0:
                continue
            node = self.graph.senders[i]
            levels[node] = level
            for port in self.graph.ports_of(node):
                row = self.graph.port_index[port]
                if projections[row]:
                    port_level[row] = ALL if self.graph[port].letter in ("k", "v") else level
        return levels

    def W_O(self, heads: Sequence[str]) -> Float[Tensor, "heads_d_head d_model"]:
        """What heads write with, below each other: `(head d_head) d_model`."""
        nodes = [self.graph[head] for head in heads]
        return torch.cat([self.model.layers[node.layer].W_O[node.unit] for node in nodes])

    def ablated_input(self, port: str) -> Float[Tensor, "row pos d_model"]:
        """A port's ablated input, `row pos d_model`."""
        attention, mlp, logits = self.bases
        node = self.graph[port]
        if node.kind == "logits":
            return logits
        return (mlp if node.kind == "mlp" else attention)[node.layer]

    def delta(self, sender: str, level: int) -> Float[Tensor, "row pos d_model"]:
        """clean − ablated of a sender, `row pos d_model`; kept for the next time while there is room."""
        key = (sender, level)
        if key in self.deltas:
            return self.deltas[key]
        clean, ablated = self.experiment.clean, self.experiment.ablated
        node = self.graph[sender]
        if node.kind == "head":
            one = node.layer, node.unit
            z = self.at(clean.heads[one] - ablated.heads[one], level)
            delta = linear(z, self.model.layers[node.layer].W_O[node.unit].T)
        elif node.kind == "mlp":
            delta = self.at(clean.mlps[node.layer] - ablated.mlps[node.layer], level)
        else:
            which = self.graph.sender_index[sender]
            delta = self.at(clean.inputs[which] - ablated.inputs[which], level)
        size = delta.numel() * delta.element_size()
        if size <= self.room:
            self.deltas[key] = delta
            self.room -= size
        return delta

    def received_now(
        self, port: str, level: int, without: frozenset[str] = frozenset()
    ) -> Float[Tensor, "row pos d_model"]:
        """What a port's present edges, but those of some senders, add to its ablated input: Σ current − ablated, `row
        pos d_model`.
        """
        present = self.mask.ports.numpy()[self.graph.port_index[port]].copy()
        present[[self.graph.sender_index[sender] for sender in without]] = False
        total = torch.zeros_like(self.at(self.bases[2], level))
        ablated = self.experiment.ablated
        for i, name in enumerate(self.graph.inputs):
            if present[i]:
                total += self.delta(name, level)
        n_heads = self.graph.config.n_heads
        by_layer = present[len(self.graph.inputs) :].reshape(len(self.model.layers), -1)
        for i in by_layer[:, :n_heads].any(1).nonzero()[0].tolist():
            heads = by_layer[i, :n_heads].nonzero()[0].tolist()
            z = self.at(self.z[i, heads] - ablated.heads[i, heads], level)
            total += self.model.layers[i].write_together(z, heads)
        for i in by_layer[:, n_heads:].any(1).nonzero()[0].tolist():
            total += self.at(self.m[i] - ablated.mlps[i], level)
        return total

    def input(self, port: str) -> Float[Tensor, "row pos d_model"]:
        """A port's current input where it is needed, summed from the edge set."""
        level = self.port_level(port)
        x = self.at(self.ablated_input(port), level)
        return x + self.received_now(port, level) if self.mask.projections[self.graph.port_index[port]] else x

    def _project(self, port: str) -> Tensor:
        """A port's current q, k or v, `row pos d_head`."""
        if port not in self.projected:
            self.projected[port] = self._projection(port, self.input(port)[:, None])[:, 0]
        return self.projected[port]

    def _projection(self, port: str, x: Tensor) -> Tensor:
        """q, k or v from `row variant pos d_model`."""
        node = self.graph[port]
        layer = self.model.layers[node.layer]
        if layer.rotary is None or self.port_level(port) == ALL:
            return layer.project_head(node.letter, node.unit, x)
        return layer.project_head(node.letter, node.unit, x, self.read.positions[:, None])

    def output(
        self, name: str, given: dict[str, Float[Tensor, "row _ _ d_model"]]
    ) -> Float[Tensor, "row variant pos d"]:
        """A node's output for variants of some of its ports' inputs, the others as stored: `row variant pos d`."""
        node, level = self.graph[name], self.levels[name]
        layer = self.model.layers[node.layer]
        if node.kind == "mlp":
            assert layer.mlp is not None
            return layer.mlp(given[name] if name in given else self.input(name)[:, None])
        q, k, v = (
            self._projection(port, given[port]) if port in given else self._project(port)[:, None]
            for port in self.graph.ports_of(name)
        )
        scores = times(q, k.transpose(-2, -1)).mul_(layer.scale)
        pattern = scores.masked_fill_(self.read.masks[level][:, None], float("-inf")).softmax(-1)
        return times(pattern, v)

    def refresh_since(self, earlier: EdgeMask, levels: dict[str, int] | None = None) -> list[str]:
        """Evaluate, in order, every node that differs from what it was under another mask; these nodes.

        Parameters
        ----------
        levels: where nodes were needed then, so where their values are right; None is everywhere that they are now.
        """
        self.levels = self.needed()
        ports, projections = self.mask.ports.numpy(), self.mask.projections.numpy()
        differs = (earlier.ports.numpy() != ports).any(-1) | (earlier.projections.numpy() != projections)
        changed = np.zeros(len(self.graph.senders), dtype=bool)
        refreshed = []
        for i, node in enumerate(self.graph.senders):
            names = self.graph.ports_of(node)
            rows = [self.graph.port_index[port] for port in names]
            changed[i] = any(differs[row] or (projections[row] and ports[row, changed].any()) for row in rows)
            if levels is not None and rows and self.levels.get(node, -1) > levels.get(node, -1):
                changed[i] = True
            if changed[i] and node in self.levels:
                for port in names:
                    self.projected.pop(port, None)
                self.refresh(node)
                refreshed.append(node)
        return refreshed

    def refresh(self, name: str) -> None:
        """A node's output where it is needed, from the current inputs of its ports."""
        node, level = self.graph[name], self.levels[name]
        out = self.output(name, {})[:, 0]
        target = self.z[node.layer, node.unit] if node.kind == "head" else self.m[node.layer]
        if level == ALL:
            target.copy_(out)
        else:
            target[self.read.every_row, self.read.positions] = out


def times(a: Float[Tensor, "row _ n m"], b: Float[Tensor, "row _ m d"]) -> Float[Tensor, "row variant n d"]:
    """`row variant n m` @ `row variant m d`, where either may have one variant only."""
    if b.shape[1] == 1 and a.shape[1] > 1:
        product: Tensor = (a.flatten(1, 2) @ b[:, 0]).unflatten(1, a.shape[1:3])
        return product
    return a @ b
