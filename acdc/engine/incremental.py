"""The pruning loop's losses without whole forward passes; the decisions are those of the full engine.

While a receiver is tested, everything before it still has all its edges and the clean prompt, so its senders' outputs
are the clean run's, and removing sender s adds ablated(s) − clean(s) to the receiver's input. Behind the receiver
everything is pruned already: only its own node and what it reaches through kept edges can change. Those nodes are
evaluated again, for many candidates at once; all others keep their stored values.

A node matters only where something live reads it: the logits at the readouts, a q port and an MLP where their own
node is read, k and v ports everywhere. So every node is needed either at the readouts or at all positions.

Variant tensors are `pair variant pos d`: pairs first, since candidates share everything that is stored per pair.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acdc.engine.chunks import ChunkSize
from acdc.engine.full import streams
from acdc.engine.mask import EdgeMask
from acdc.engine.readout import Readout
from acdc.errors import RunError
from acdc.experiment import Experiment
from acdc.graph import LETTERS, Edge, node_of, parse_node

READ, ALL = 0, 1  # where a node is needed


@dataclass
class _Plan:
    """What must be evaluated again when a receiver's input changes.

    `nodes`: those behind the receiver's own, in order, each with its changing ports and the changed senders of these.
    `to_logits`: the changed senders that the logits read.
    """

    receiver: str
    own: str
    nodes: list[tuple[str, dict[str, list[str]]]]
    to_logits: list[str]


class IncrementalPruning:
    """A `PruningEngine`.

    Parameters
    ----------
    chunk: variants evaluated at once; None lets the number grow and shrink.
    memory: bytes that the variants of one chunk may take.
    """

    def __init__(self, experiment: Experiment, mask: EdgeMask, chunk: int | None = None, memory: int = 2**30) -> None:
        self.experiment, self.mask = experiment, mask
        self.model, self.graph = experiment.model, mask.graph
        self.chunk = ChunkSize(chunk)
        self.memory = memory
        with torch.inference_mode():
            self.readout = Readout(experiment)
            self.bases = streams(self.model, experiment.ablated)
            self.clean = streams(self.model, experiment.clean)
            self._set_read_positions()
            # Current outputs of every sender: z for heads, and the MLPs'. Clean until something behind changes.
            self.z = experiment.clean.heads.clone()
            self.m = experiment.clean.mlps.clone()
            self.inputs: dict[str, Tensor] = {}  # current input of a port, where the port is needed
            self.projected: dict[str, Tensor] = {}  # current q, k or v of a port
            self.deltas: dict[tuple[str, int], Tensor] = {}  # clean − ablated of a sender, as the stream sees it
            self.maps: dict[tuple[str, ...], list[Tensor]] = {}  # what heads' z do to the logits
            self.base_logits: list[Tensor] | None = None  # of the current input of `logits`
            self.base_age = 0
            self.delta_logits: dict[str, list[Tensor]] = {}  # what a sender's removal at `logits` does to the logits
            self.plan: _Plan | None = None
            self.changed = False
            self._refresh_all()

    # What the loop calls.

    @torch.inference_mode()
    def loss(self) -> float:
        return float(self.readout.losses(self._rows(self._input("logits"))[:, None])[0])

    @torch.inference_mode()
    def enter(self, receiver: str) -> None:
        self._refresh_behind()
        self.levels = self._needed()
        self.plan = self._make_plan(receiver, node_of(receiver))
        self.now = self._frontier_input(receiver)
        self.chunk.largest = self._most_variants()
        if receiver == "logits":
            self.base_logits = None
            self.delta_logits.clear()

    def losses_without(self, edges: list[Edge]) -> Generator[float, None, None]:
        if self.plan is not None and self.plan.own == "logits" and self.readout.columns is None:
            yield from self._losses_at_logits(edges)
            return
        x = self.now
        for batch in self.chunk.cut(edges):
            losses, x = self._try(x, batch)
            yield from losses

    @torch.inference_mode()
    def _try(self, x: Tensor, edges: Sequence[Edge]) -> tuple[list[float], Tensor]:
        """Losses without the first, the first two, ... of these edges, and the input without all of them; in halves
        where the device has no memory for all at once."""
        try:
            variants = self._without(x, edges)
            return self._evaluate(variants).tolist(), variants[:, -1]
        except torch.OutOfMemoryError as error:
            half = len(edges) // 2
            if not half:
                raise RunError(
                    "out of memory with a single variant: lower method.memory_gb or task.size, or use a smaller model"
                ) from error
            self.chunk.largest = half
        torch.cuda.empty_cache()
        first, x = self._try(x, edges[:half])
        second, x = self._try(x, edges[half:])
        return first + second, x

    @torch.inference_mode()
    def remove(self, edges: list[Edge]) -> None:
        if edges:
            self.now = self._without(self.now, edges)[:, -1]
            self.changed = True
            self.base_logits = None if self.plan and self.plan.own == "logits" else self.base_logits

    def _most_variants(self) -> int:
        """How many variants are worth evaluating at once: blocks under 16 MB are reused by the allocator rather than
        given back to the system and faulted in again, which costs more than the arithmetic on them."""
        assert self.plan is not None
        per_variant = self.now.numel() * self.now.element_size()
        for node, _ in self.plan.nodes:
            if self.levels[node] == ALL:
                grown = 4 if node.startswith("m") else 1
                per_variant = max(per_variant, grown * self.clean[2].numel() * self.now.element_size())
        block = 2**24 if self.now.device.type == "cpu" else 2**28
        held = 4 + len(self.plan.nodes)
        return int(max(1, min(256, max(8, block // per_variant), self.memory // (held * per_variant))))

    # Positions.

    def _set_read_positions(self) -> None:
        """`read_positions`: `pair slot`; readout r stands at (`read_pair[r]`, `read_slot[r]`)."""
        readouts, n_pairs = self.experiment.readouts, len(self.experiment.batch.lengths)
        of_pair: list[list[int]] = [[] for _ in range(n_pairs)]
        slots = []
        for pair, position in zip(readouts.pair.tolist(), readouts.position.tolist(), strict=True):
            if position not in of_pair[pair]:
                of_pair[pair].append(position)
            slots.append(of_pair[pair].index(position))
        width = max(map(len, of_pair))
        rows = [positions + positions[-1:] * (width - len(positions)) for positions in of_pair]
        device = self.model.device
        self.read_positions = torch.tensor(rows, device=device)
        self.read_pair, self.read_slot = readouts.pair, torch.tensor(slots, device=device)
        self.pair_index = torch.arange(n_pairs, device=device)[:, None]
        mask = self.experiment.attention_mask.expand(n_pairs, -1, -1)
        self.masks = (mask[self.pair_index, self.read_positions], mask)

    def _at(self, x: Tensor, level: int) -> Tensor:
        """`... pair pos d` where it is needed: all of it, or the readouts `... pair slot d`."""
        return x if level == ALL else x[..., self.pair_index, self.read_positions, :]

    def _rows(self, x: Tensor) -> Tensor:
        """The readouts of a stream at `pair slot`: `readout d_model`."""
        return x[self.read_pair, self.read_slot]

    def _port_level(self, port: str) -> int:
        return ALL if port.endswith(("<k>", "<v>")) else READ if port == "logits" else self.levels[node_of(port)]

    # What depends on what, in the mask as it is.

    def _needed(self) -> dict[str, int]:
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
            for port in self._ports_of(node):
                row = self.graph.port_index[port]
                if projections[row]:
                    port_level[row] = ALL if port.endswith(("<k>", "<v>")) else level
        return levels

    @staticmethod
    def _ports_of(node: str) -> list[str]:
        if node.startswith("input"):
            return []
        return [node] if node.startswith("m") else [f"{node}<{letter}>" for letter in LETTERS]

    def _make_plan(self, receiver: str, own: str) -> _Plan:
        if own == "logits":
            return _Plan(receiver, own, [], [])
        changed: dict[int, str] = {self.graph.sender_index[own]: own}
        nodes = []
        ports, projections = self.mask.ports.numpy(), self.mask.projections.numpy()
        affected = ports[:, self.graph.sender_index[own]].copy()
        for i in range(self.graph.sender_index[own] + 1, len(self.graph.senders)):
            node = self.graph.senders[i]
            if node not in self.levels:
                continue
            rows = {port: self.graph.port_index[port] for port in self._ports_of(node)}
            changing = {
                port: [name for j, name in changed.items() if ports[row, j]]
                for port, row in rows.items()
                if affected[row] and projections[row]
            }
            if changing:
                nodes.append((node, changing))
                changed[i] = node
                affected |= ports[:, i]
        return _Plan(receiver, own, nodes, [name for j, name in changed.items() if ports[-1, j]])

    # Stored values.

    def _delta(self, sender: str, level: int) -> Tensor:
        """clean − ablated of a sender, `pair pos d_model`."""
        key = (sender, level)
        if key not in self.deltas:
            clean, ablated = self.experiment.clean, self.experiment.ablated
            node = parse_node(sender)
            if node.kind == "head":
                z = self._at((clean.heads - ablated.heads)[node.layer, node.head], level)
                delta = z @ self.model.layers[node.layer].W_O[node.head]
            elif node.kind == "mlp":
                delta = self._at(clean.mlps[node.layer] - ablated.mlps[node.layer], level)
            else:
                which = self.graph.inputs.index(sender)
                delta = self._at(clean.inputs[which] - ablated.inputs[which], level)
            self.deltas[key] = delta
        return self.deltas[key]

    def _received_now(self, port: str, level: int) -> Tensor:
        """What a port's present edges add to its ablated input: Σ current − ablated, `pair pos d_model`."""
        present = self.mask.ports.numpy()[self.graph.port_index[port]]
        total = torch.zeros_like(self._at(self.bases[2], level))
        ablated = self.experiment.ablated
        for i, name in enumerate(self.graph.inputs):
            if present[i]:
                total += self._delta(name, level)
        n_heads, start = self.graph.config.n_heads, len(self.graph.inputs)
        for i, layer in enumerate(self.model.layers):
            heads = present[start : start + n_heads].nonzero()[0].tolist()
            if heads:
                z = self._at(self.z[i, heads] - ablated.heads[i, heads], level)
                total += layer.write(z, heads).sum(0)
            start += n_heads
            if layer.mlp is not None:
                if present[start]:
                    total += self._at(self.m[i] - ablated.mlps[i], level)
                start += 1
        return total

    def _base(self, port: str, kind: tuple[list[Tensor], list[Tensor], Tensor]) -> Tensor:
        """A port's ablated (or clean) input, `pair pos d_model`."""
        attention, mlp, logits = kind
        node = parse_node(port)
        return logits if port == "logits" else mlp[node.layer] if node.kind == "mlp" else attention[node.layer]

    def _input(self, port: str) -> Tensor:
        """A port's current input where it is needed, summed from the edge set."""
        if port not in self.inputs:
            level = self._port_level(port)
            x = self._at(self._base(port, self.bases), level)
            if self.mask.projections[self.graph.port_index[port]]:
                x = x + self._received_now(port, level)
            self.inputs[port] = x
        return self.inputs[port]

    def _frontier_input(self, receiver: str) -> Tensor:
        """The input of the receiver to be tested: the clean one, less what is removed already."""
        port = receiver.replace("[", "<").replace("]", ">")
        level = self._port_level(port)
        x = self._at(self._base(port, self.clean), level)
        present = self.mask.ports[self.graph.port_index[port]]
        for i, sender in enumerate(self.graph.senders_of(port)):
            if not present[i]:
                x = x - self._delta(sender, level)
        return x

    def _project(self, port: str) -> Tensor:
        """A port's current q, k or v, `pair pos d_head`."""
        if port not in self.projected:
            self.projected[port] = self._projection(port, self._input(port)[:, None])[:, 0]
        return self.projected[port]

    def _projection(self, port: str, x: Tensor) -> Tensor:
        """q, k or v from `pair variant pos d_model`."""
        node = parse_node(port)
        layer = self.model.layers[node.layer]
        if layer.rotary is None or self._port_level(port) == ALL:
            return layer.project_head(node.port, node.head, x)
        return layer.project_head(node.port, node.head, x, self.read_positions[:, None])

    # Refreshing what is stored.

    def _refresh_all(self) -> None:
        """Evaluate every node that differs from the clean run, in order."""
        self.levels = self._needed()
        missing = (EdgeMask.all(self.graph).ports & ~self.mask.ports).any(-1).numpy()
        ports, projections = self.mask.ports.numpy(), self.mask.projections.numpy()
        changed = np.zeros(len(self.graph.senders), dtype=bool)
        for i, node in enumerate(self.graph.senders):
            rows = [self.graph.port_index[port] for port in self._ports_of(node)]
            changed[i] = any(missing[row] or not projections[row] or ports[row, changed].any() for row in rows)
            if changed[i] and node in self.levels:
                self._refresh(node)

    def _refresh_behind(self) -> None:
        """After a receiver is done: its node and all that it changed, from the edge set as it is now."""
        plan, self.plan = self.plan, None
        if plan is None or not self.changed:
            return
        self.changed = False
        self.levels = self._needed()
        for port in [*self._ports_of(plan.own), *(port for _, ports in plan.nodes for port in ports)]:
            self.inputs.pop(port, None)
            self.projected.pop(port, None)
        before = [self._z_rows(head, self.z) for head in plan.to_logits] if self._is_linear(plan) else []
        for node in (plan.own, *(node for node, _ in plan.nodes)):
            if node in self.levels and node != "logits":
                self._refresh(node)
        if plan.to_logits or plan.own == "logits":
            self.inputs.pop("logits", None)
        if before and self.base_age < 16:
            after = [self._z_rows(head, self.z) for head in plan.to_logits]
            moved = torch.cat(after, -1) - torch.cat(before, -1)
            for tile, of_heads in zip(self.base_logits or [], self._map(tuple(plan.to_logits)), strict=True):
                tile.addmm_(moved, of_heads[: moved.shape[-1]])
            self.base_age += 1
        elif plan.to_logits:
            self.base_logits = None

    def _is_linear(self, plan: _Plan) -> bool:
        """Whether the base logits are there and change only through few heads."""
        return self.base_logits is not None and self._thin(plan.to_logits)

    def _thin(self, senders: list[str]) -> bool:
        """Whether a change through these senders has a low rank."""
        heads = all(parse_node(sender).kind == "head" for sender in senders)
        return heads and 0 < 2 * len(senders) * self.model.d_head <= self.model.config.d_model

    def _z_rows(self, head: str, z: Tensor) -> Tensor:
        """A head's stored z at the readouts, `readout d_head`."""
        node, readouts = parse_node(head), self.experiment.readouts
        return z[node.layer, node.head][readouts.pair, readouts.position]

    def _refresh(self, name: str) -> None:
        """A node's output where it is needed, from the current inputs of its ports."""
        node, level = parse_node(name), self.levels[name]
        out = self._output(name, {})[:, 0]
        target = self.z[node.layer, node.head] if node.kind == "head" else self.m[node.layer]
        if level == ALL:
            target.copy_(out)
        else:
            target[self.pair_index, self.read_positions] = out

    # Evaluating variants.

    def _without(self, x: Tensor, edges: Sequence[Edge]) -> Tensor:
        """A receiver's input without the first edge, the first two, ...: `pair variant pos d_model`."""
        variants = x.new_empty((x.shape[0], len(edges), *x.shape[1:]))
        for i, edge in enumerate(edges):
            if edge.is_projection:
                variants[:, i] = self._at(self._base(edge.sender, self.bases), self._port_level(edge.sender))
            else:
                torch.sub(x, self._delta(edge.sender, self._port_level(edge.receiver)), out=variants[:, i])
            x = variants[:, i]
        return variants

    def _losses_at_logits(self, edges: list[Edge]) -> Generator[float, None, None]:
        """As `losses_without` for the receiver `logits`: there a removal is linear, and its share of the logits is
        made once, however often the batch is begun again behind an edge that is kept."""
        with torch.inference_mode():
            x = self._rows(self.now)
            base = self.base_logits = self.base_logits or self.readout.base(x)
        for i, edge in enumerate(edges):
            with torch.inference_mode():
                if edge.sender not in self.delta_logits:
                    self.delta_logits = self._delta_logits([e.sender for e in edges[i : i + 16]])
                x = x - self._rows(self._delta(edge.sender, READ))
                base = [tile - share for tile, share in zip(base, self.delta_logits[edge.sender], strict=True)]
                loss = float(self.readout.losses(x[:, None], base)[0])
            yield loss

    def _delta_logits(self, senders: list[str]) -> dict[str, list[Tensor]]:
        """(clean − ablated) U of some senders, tiles `readout column` each."""
        rows = torch.cat([self._rows(self._delta(sender, READ)) for sender in senders])
        parts = [tile.split(len(rows) // len(senders)) for tile in self.readout.base(rows)]
        return {sender: [part[i] for part in parts] for i, sender in enumerate(senders)}

    def _output(self, name: str, given: dict[str, Tensor]) -> Tensor:
        """A node's output for variants of some of its ports' inputs, the others as stored: `pair variant pos d`."""
        node, level = parse_node(name), self.levels[name]
        layer = self.model.layers[node.layer]
        if node.kind == "mlp":
            assert layer.mlp is not None
            return layer.mlp(given[name] if name in given else self._input(name)[:, None])
        q, k, v = (
            self._projection(port, given[port]) if port in given else self._project(port)[:, None]
            for port in self._ports_of(name)
        )
        scores = _times(q, k.transpose(-2, -1)).mul_(layer.scale)
        pattern = scores.masked_fill_(self.masks[level][:, None], float("-inf")).softmax(-1)
        return _times(pattern, v)

    def _evaluate(self, variants: Tensor) -> Tensor:
        """Losses of variants of the receiver's input, `pair variant pos d_model` → `variant`."""
        plan = self.plan
        assert plan is not None
        if plan.own == "logits":
            return self.readout.losses(variants[self.read_pair, :, self.read_slot])
        port = plan.receiver.replace("[", "<").replace("]", ">")
        changes = {plan.own: self._changed(plan.own, {port: variants})}
        for name, ports in plan.nodes:
            inputs = {
                port: self._input(port)[:, None] + self._received(changes, port, senders)
                for port, senders in ports.items()
            }
            changes[name] = self._changed(name, inputs)
        return self._losses(changes, plan.to_logits)

    def _changed(self, name: str, inputs: dict[str, Tensor]) -> Tensor:
        """A node's output minus its stored one: z for heads."""
        node, level = parse_node(name), self.levels[name]
        stored = self.z[node.layer, node.head] if node.kind == "head" else self.m[node.layer]
        return self._output(name, inputs).sub_(self._at(stored, level)[:, None])

    def _received(self, changes: dict[str, Tensor], port: str, senders: list[str]) -> Tensor:
        """What changed senders add to a port's input."""
        level = self._port_level(port)
        total: Tensor | None = None
        for sender in senders:
            change = changes[sender]
            if level == READ and self.levels[sender] == ALL:
                change = change[self.pair_index, :, self.read_positions].transpose(1, 2)
            node = parse_node(sender)
            if node.kind == "head":
                change = change @ self.model.layers[node.layer].W_O[node.head]
            total = change if total is None else total + change
        assert total is not None
        return total

    def _losses(self, changes: dict[str, Tensor], to_logits: list[str]) -> Tensor:
        """The losses when these senders of the logits change."""
        current = self._input("logits")
        if not to_logits:
            n_variants = next(iter(changes.values())).shape[1]
            return self.readout.losses(self._rows(current)[:, None]).expand(n_variants)
        x = current[:, None] + self._received(changes, "logits", to_logits)
        x = x[self.read_pair, :, self.read_slot]
        if not self._thin(to_logits) or self.readout.columns is not None:
            return self.readout.losses(x)
        if self.base_logits is None:
            self.base_logits, self.base_age = self.readout.base(self._rows(current)), 0
        z = []
        for sender in to_logits:
            change = changes[sender]
            where = self.experiment.readouts.position if self.levels[sender] == ALL else self.read_slot
            z.append(change[self.read_pair, :, where])
        return self.readout.losses(x, self.base_logits, torch.cat(z, -1), self._map(tuple(to_logits)))

    def _map(self, heads: tuple[str, ...]) -> list[Tensor]:
        """What these heads' z do to the logits; the latest few are kept, for a layer's heads take turns."""
        if heads not in self.maps:
            nodes = [parse_node(head) for head in heads]
            W_O = torch.cat([self.model.layers[node.layer].W_O[node.head] for node in nodes])
            kept = dict(list(self.maps.items())[-15:])
            self.maps = {**kept, heads: self.readout.through(W_O)}
        return self.maps[heads]


def _times(a: Tensor, b: Tensor) -> Tensor:
    """`pair variant n m` @ `pair variant m d`, where either may have one variant only."""
    if b.shape[1] == 1 and a.shape[1] > 1:
        return (a.flatten(1, 2) @ b[:, 0]).unflatten(1, a.shape[1:3])
    return a @ b
