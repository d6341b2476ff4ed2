"""The pruning loop's losses without whole forward passes; the decisions are those of the full engine.

While a receiver is tested, everything before it still has all its edges and the clean prompt, so its senders' outputs
are the clean run's, and removing sender s adds ablated(s) − clean(s) to the receiver's input. Behind the receiver
everything is pruned already: only its own node and what it reaches through kept edges can change. Those nodes are
evaluated again, for many candidates at once; all others keep their stored values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from acdc.engine.mask import EdgeMask
from acdc.engine.readout import Readout
from acdc.engine.state import ALL, READ, CircuitState
from acdc.errors import RunError
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.model.linear import linear

_STRIDE = 16  # of stored partial sums
_MOST_VARIANTS = 256
_UPDATES = 16  # of the base logits before they are made whole again
_MAGNIFIED = 8  # times by which the last norm may magnify the rounding of the base logits


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


class IncrementalPruning(CircuitState):
    """A `PruningEngine`.

    Parameters
    ----------
    memory: bytes that variants evaluated at once may take. room: bytes that may be spent on keeping what senders add,
        and again on maps from heads to logits. like: the readout of another block of pairs.
    """

    def __init__(
        self,
        experiment: Experiment,
        mask: EdgeMask,
        memory: int = 2**30,
        room: int = 2**30,
        like: Readout | None = None,
    ) -> None:
        super().__init__(experiment, mask, room)
        self.memory, self.room_of_maps = memory, room
        with torch.inference_mode():
            self.readout = Readout(experiment, like)
        self.most_variants = 1
        self.limit = _MOST_VARIANTS
        self.maps: dict[tuple[str, ...], list[Tensor]] = {}  # what heads' z do to the logits
        self.current: Tensor | None = None
        self.base_logits: list[Tensor] | None = None  # of the current input of `logits`
        self.base_scale = torch.zeros(())  # the smallest that the last norm had since the base was made whole
        self.base_age = 0
        self.plan: _Plan | None = None
        self.rests: dict[str, Tensor] = {}  # inputs of the plan's ports without the senders that change
        self.changed = False

    @torch.inference_mode()
    def enter(self, receiver: str, senders: list[str]) -> None:
        self._refresh_behind()
        self.levels = self._needed()
        self.plan = self._make_plan(receiver, self.graph.node_of(receiver))
        self.port = self.graph.port_of(receiver)
        self.order = senders
        self.tails = self._tails()
        self.most_variants = self._most_variants()
        self.rests.clear()

    @torch.inference_mode()
    def losses(self, edges: list[Edge], gone: list[bool], wanted: list[bool] | None = None) -> list[float]:
        return self._try(edges, gone, wanted or [True] * len(edges), self._kept_before(edges[0]))

    def _kept_before(self, edge: Edge) -> list[str]:
        """The senders whose edges to the receiver were tested before an edge, and kept."""
        if edge.is_projection:
            return []
        present = self.mask.ports.numpy()[self.graph.port_index[self.port]]
        earlier = self.order[: self.order.index(edge.sender)]
        return [sender for sender in earlier if present[self.graph.sender_index[sender]]]

    def _try(self, edges: list[Edge], gone: list[bool], wanted: list[bool], kept: list[str]) -> list[float]:
        """The losses, in halves where the device has no memory for all at once."""
        if not any(wanted):
            return []
        try:
            return self._evaluate(self._without(edges, gone, wanted, kept)).tolist()
        except torch.OutOfMemoryError as error:
            half = len(edges) // 2
            if not half:
                raise RunError(
                    "out of memory with a single variant: lower method.memory_gb or task.size, or use a smaller model"
                ) from error
        self.maps.clear()
        torch.cuda.empty_cache()
        self.most_variants = self.limit = half
        stay = [edge.sender for edge, goes in zip(edges[:half], gone, strict=False) if not goes]
        first = self._try(edges[:half], gone[:half], wanted[:half], kept)
        return first + self._try(edges[half:], gone[half:], wanted[half:], kept + stay)

    def leave(self, removed: list[Edge]) -> None:
        self.changed = bool(removed)
        if removed and self.port == "logits":
            self.base_logits = None

    def _most_variants(self) -> int:
        """How many variants are worth evaluating at once: blocks under 16 MB are reused by the allocator rather than
        given back to the system and faulted in again, which costs more than the arithmetic on them."""
        assert self.plan is not None
        one = self._at(self.bases[2], self._port_level(self.port))
        per_variant = one.numel()
        for node in (self.plan.own, *(name for name, _ in self.plan.nodes)):
            if node != "logits":
                values = self._at(self.bases[2], self.levels[node])
                per_variant = max(per_variant, int(self._widening(node) * values.numel()))
        per_variant *= one.element_size()
        block = 2**24 if one.device.type == "cpu" else 2**28
        held = 4 + len(self.plan.nodes)
        return int(max(1, min(self.limit, max(8, block // per_variant), self.memory // (held * per_variant))))

    def _widening(self, node: str) -> float:
        """The widest that a node makes of a position, in units of d_model: an MLP's hidden layer, a head's scores."""
        if self.graph[node].kind == "head":
            return max(1.0, self.bases[2].shape[1] / self.bases[2].shape[2])
        mlp = self.model.layers[self.graph[node].layer].mlp
        assert mlp is not None
        return mlp.W_in.shape[1] / mlp.W_in.shape[0] * (1 if mlp.W_gate is None else 2)

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
            rows = {port: self.graph.port_index[port] for port in self.graph.ports_of(node)}
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

    def _refresh_behind(self) -> None:
        """After a receiver is done: its node and all that it changed, from the edge set as it is now."""
        plan, self.plan = self.plan, None
        if plan is None or not self.changed:
            return
        self.changed = False
        self.levels = self._needed()
        for port in [*self.graph.ports_of(plan.own), *(port for _, ports in plan.nodes for port in ports)]:
            self.projected.pop(port, None)
        before = [self._z_rows(head, self.z) for head in plan.to_logits] if self._is_linear(plan) else []
        for node in (plan.own, *(node for node, _ in plan.nodes)):
            if node in self.levels and node != "logits":
                self._refresh(node)
        if plan.to_logits or plan.own == "logits":
            self.current = None
        if before and self.base_age < _UPDATES:
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
        heads = all(self.graph[sender].kind == "head" for sender in senders)
        return heads and 0 < 2 * len(senders) * self.model.d_head <= self.model.config.d_model

    def _z_rows(self, head: str, z: Tensor) -> Tensor:
        """A head's stored z at the readouts, `readout d_head`."""
        node, readouts = self.graph[head], self.experiment.readouts
        return z[node.layer, node.unit][readouts.pair, readouts.position]

    def _tails(self) -> dict[int, Tensor]:
        """Σ clean − ablated of the receiver's senders from the k-th on, for some k. Inputs are summed from the ablated
        end, so that a port that has lost all its edges gets its ablated input to the last digit: a norm would magnify
        what is left of a difference."""
        level = self._port_level(self.port)
        if self.plan is not None and self.plan.receiver != self.port:
            return {}  # a projection edge
        tail = torch.zeros_like(self._at(self.bases[2], level))
        tails = {len(self.order): tail}
        for k in range(len(self.order) - 1, -1, -1):
            tail = tail + self._delta(self.order[k], level)
            if k % _STRIDE == 0:
                tails[k] = tail
        return tails

    def _tail(self, k: int) -> Tensor:
        stored = min(-(-k // _STRIDE) * _STRIDE, len(self.order))
        tail, level = self.tails[stored], self._port_level(self.port)
        for j in range(stored - 1, k - 1, -1):
            tail = tail + self._delta(self.order[j], level)
        return tail

    def _kept_input(self, kept: list[str]) -> Tensor:
        """The receiver's ablated input with what these senders add."""
        level = self._port_level(self.port)
        x = self._at(self._base(self.port), level)
        for sender in kept:
            x = x + self._delta(sender, level)
        return x

    def _without(self, edges: list[Edge], gone: list[bool], wanted: list[bool], kept: list[str]) -> Tensor:
        """The receiver's input without each wanted one of these edges and those before it that are gone, where of all
        edges before them these senders' are kept: `pair variant pos d_model`."""
        if edges[0].is_projection:
            return self._at(self._base(self.port), self._port_level(self.port))[:, None]
        level, first = self._port_level(self.port), self.order.index(edges[0].sender)
        tail = self._tail(first + len(edges))
        slots = [count - 1 for count in accumulate(wanted)]  # of each wanted edge, its variant
        variants = tail.new_empty((tail.shape[0], slots[-1] + 1, *tail.shape[1:]))
        x = self._kept_input(kept)
        if all(gone):
            tail = x + tail
        for i in range(len(edges) - 1, -1, -1):
            here = tail if i == len(edges) - 1 else torch.add(tail, self._delta(edges[i + 1].sender, level))
            if wanted[i]:
                variants[:, slots[i]] = here
            tail = here
        if not all(gone):
            for i, edge in enumerate(edges):
                if wanted[i]:
                    variants[:, slots[i]] += x
                if not gone[i]:
                    x = x + self._delta(edge.sender, level)
        return variants

    def _evaluate(self, variants: Tensor) -> Tensor:
        """Losses of variants of the receiver's input, `pair variant pos d_model` → `variant`."""
        plan = self.plan
        assert plan is not None
        if plan.own == "logits":
            return self.readout.losses(variants[self.read_pair, :, self.read_slot])
        changes = {plan.own: self._changed(plan.own, {self.port: variants})}
        for name, ports in plan.nodes:
            inputs = {
                port: self._rest(port, senders)[:, None] + self._received(changes, port, senders)
                for port, senders in ports.items()
            }
            changes[name] = self._changed(name, inputs)
        return self._losses(changes, plan.to_logits)

    def _changed(self, name: str, inputs: dict[str, Tensor]) -> Tensor:
        """A node's output for variants of its inputs, minus its ablated one: z for heads."""
        node, level, ablated = self.graph[name], self.levels[name], self.experiment.ablated
        value = ablated.heads[node.layer, node.unit] if node.kind == "head" else ablated.mlps[node.layer]
        return self._output(name, inputs).sub_(self._at(value, level)[:, None])

    def _rest(self, port: str, senders: list[str]) -> Tensor:
        """A port's input without the senders that change: what they add is then all of it, so that an input that loses
        everything is its ablated one to the last digit, which a norm needs."""
        if port not in self.rests:
            level = self._port_level(port)
            self.rests[port] = self._at(self._base(port), level) + self._received_now(port, level, frozenset(senders))
        return self.rests[port]

    def _received(self, changes: dict[str, Tensor], port: str, senders: list[str]) -> Tensor:
        """What changed senders add to a port's ablated input."""
        level = self._port_level(port)

        def at_port(sender: str) -> Tensor:
            change = changes[sender]
            if level == READ and self.levels[sender] == ALL:
                return change[self.pair_index, :, self.read_positions].transpose(1, 2)
            return change

        heads = [sender for sender in senders if self.graph[sender].kind == "head"]
        written = [at_port(sender) for sender in senders if self.graph[sender].kind != "head"]
        if heads:  # one product for all of them
            z = torch.cat([at_port(head) for head in heads], -1)
            written.append(linear(z, self._W_O(heads).T))
        total, *others = written
        for other in others:
            total = total + other
        return total

    def _losses(self, changes: dict[str, Tensor], to_logits: list[str]) -> Tensor:
        """The losses when these senders of the logits change."""
        if not to_logits:
            n_variants = next(iter(changes.values())).shape[1]
            return self.readout.losses(self._current()[:, None]).expand(n_variants)
        x = self._rest("logits", to_logits)[:, None] + self._received(changes, "logits", to_logits)
        x = x[self.read_pair, :, self.read_slot]
        if not self._thin(to_logits) or self.readout.columns is not None:
            return self.readout.losses(x)
        current = self._current()
        scale = self.readout.scale(current)
        if self.base_logits is None or bool((scale > _MAGNIFIED * self.base_scale).any()):
            self.base_logits, self.base_scale, self.base_age = self.readout.base(current), scale, 0
        self.base_scale = torch.minimum(self.base_scale, scale)
        if bool((self.readout.scale(x) > _MAGNIFIED * self.base_scale[:, None]).any()):
            return self.readout.losses(x)  # the norm would magnify the base's rounding
        moved = []
        for sender in to_logits:
            where = self.experiment.readouts.position if self.levels[sender] == ALL else self.read_slot
            node = self.graph[sender]
            ablated = self.experiment.ablated.heads[node.layer, node.unit]
            before = self._z_rows(sender, self.z) - ablated[self.read_pair, self.experiment.readouts.position]
            moved.append(changes[sender][self.read_pair, :, where] - before[:, None])
        return self.readout.losses(x, self.base_logits, torch.cat(moved, -1), self._map(tuple(to_logits)))

    def _current(self) -> Tensor:
        """The stream that the logits read as the receiver was entered, `readout d_model`."""
        if self.current is None:
            self.current = self._rows(self._input("logits"))
        return self.current

    def _map(self, heads: tuple[str, ...]) -> list[Tensor]:
        """What these heads' z do to the logits; the latest are kept while there is room, for heads take turns."""
        if heads not in self.maps:
            made = self.readout.through(self._W_O(heads))
            size = sum(tile.numel() * tile.element_size() for tile in made)
            while self.maps and (len(self.maps) + 1) * size > self.room_of_maps:
                del self.maps[next(iter(self.maps))]
            self.maps[heads] = made
        return self.maps[heads]

    def _W_O(self, heads: Sequence[str]) -> Tensor:
        """What heads write with, below each other: `(head d_head) d_model`."""
        nodes = [self.graph[head] for head in heads]
        return torch.cat([self.model.layers[node.layer].W_O[node.unit] for node in nodes])
