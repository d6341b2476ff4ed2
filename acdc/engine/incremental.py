"""The pruning loop's losses without whole forward passes; the decisions are those of the full engine.

While a receiver is tested, everything before it still has all its edges and the clean prompt, so its senders' outputs
are the clean run's, and removing sender s adds ablated(s) − clean(s) to the receiver's input. Behind the receiver
everything is pruned already: only its own node and what it reaches through kept edges can change. Those nodes are
evaluated again, for many candidates at once; all others keep their stored values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from acdc.engine.logits import LogitLosses
from acdc.engine.mask import EdgeMask
from acdc.engine.receiver import Receiver
from acdc.engine.state import ALL, READ, CircuitState
from acdc.errors import RunError
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.model.linear import linear

_MOST_VARIANTS = 256


class IncrementalPruning:
    """A `PruningEngine`.

    Parameters
    ----------
    memory: bytes that variants evaluated at once may take.
    room: bytes that may be spent on keeping what senders add, and again on maps from heads to logits.
    like: the engine of another block of pairs, whose copy of the unembedding serves here too.

    Attributes
    ----------
    state: the circuit's values.
    logits: the losses when senders of the logits change.
    receiver: the one that is tested; None before the first.
    limit: of variants that are evaluated at once, lowered where memory has run out.
    """

    def __init__(
        self,
        experiment: Experiment,
        mask: EdgeMask,
        memory: int = 2**30,
        room: int = 2**30,
        like: IncrementalPruning | None = None,
    ) -> None:
        self.memory = memory
        self.state = CircuitState(experiment, mask, room)
        with torch.inference_mode():
            self.logits: LogitLosses = LogitLosses(self.state, room, None if like is None else like.logits.readout)
        self.receiver: Receiver | None = None
        self.changed = False  # whether the receiver has lost edges
        self.limit = self.most_variants = _MOST_VARIANTS

    @torch.inference_mode()
    def enter(self, receiver: str, senders: list[str]) -> None:
        self._settle()
        self.state.levels = self.state.needed()
        self.receiver = Receiver.enter(self.state, receiver, senders)
        self.most_variants = self._worth(self.receiver)

    @torch.inference_mode()
    def losses(self, edges: list[Edge], gone: list[bool], wanted: list[bool] | None = None) -> list[float]:
        assert self.receiver is not None
        return self._try(self.receiver, edges, gone, wanted or [True] * len(edges), self.receiver.kept_before(edges[0]))

    def leave(self, removed: list[Edge]) -> None:
        self.changed = bool(removed)

    def _try(
        self, receiver: Receiver, edges: list[Edge], gone: list[bool], wanted: list[bool], kept: list[str]
    ) -> list[float]:
        """The losses, in halves where the device has no memory for all at once."""
        if not any(wanted):
            return []
        try:
            return self._evaluate(receiver, receiver.inputs(edges, gone, wanted, kept)).tolist()
        except torch.OutOfMemoryError as error:
            half = len(edges) // 2
            if not half:
                raise RunError(
                    "out of memory with a single variant: lower method.memory_gb or task.size, or use a smaller model"
                ) from error
        self.logits.maps.clear()
        torch.cuda.empty_cache()
        self.most_variants = self.limit = half
        stay = [edge.sender for edge, goes in zip(edges[:half], gone, strict=False) if not goes]
        first = self._try(receiver, edges[:half], gone[:half], wanted[:half], kept)
        return first + self._try(receiver, edges[half:], gone[half:], wanted[half:], kept + stay)

    def _worth(self, receiver: Receiver) -> int:
        """How many variants are worth evaluating at once: blocks under 16 MB are reused by the allocator rather than
        given back to the system and faulted in again, which costs more than the arithmetic on them.
        """
        state = self.state
        one = state.at(state.bases[2], receiver.level)
        per_variant = one.numel()
        for node in receiver.all_nodes():
            if state.graph[node].kind != "logits":
                values = state.at(state.bases[2], state.levels[node])
                per_variant = max(per_variant, int(self._widening(node) * values.numel()))
        per_variant *= one.element_size()
        block = 2**24 if one.device.type == "cpu" else 2**28
        held = 4 + len(receiver.nodes)
        return int(max(1, min(self.limit, max(8, block // per_variant), self.memory // (held * per_variant))))

    def _widening(self, node: str) -> float:
        """The widest that a node makes of a position, in units of d_model: an MLP's hidden layer, a head's scores."""
        row = self.state.graph[node]
        if row.kind == "head":
            _, n_positions, d_model = self.state.bases[2].shape
            return max(1.0, n_positions / d_model)
        mlp = self.state.model.layers[row.layer].mlp
        assert mlp is not None
        return mlp.W_in.shape[1] / mlp.W_in.shape[0] * (1 if mlp.W_gate is None else 2)

    def _settle(self) -> None:
        """After a receiver is done: its node and all that it changed, from the edge set as it is now."""
        receiver, state = self.receiver, self.state
        if receiver is None or not self.changed:
            return
        self.changed = False
        state.levels = state.needed()
        if state.graph[receiver.own].kind == "logits":
            self.logits.forget()
            return
        for port in receiver.all_ports():
            state.projected.pop(port, None)
        before = self.logits.before(receiver.to_logits)
        for node in receiver.all_nodes():
            if node in state.levels:
                state.refresh(node)
        if receiver.to_logits:
            self.logits.follow(receiver.to_logits, before)

    def _evaluate(self, receiver: Receiver, variants: Tensor) -> Tensor:
        """Losses of variants of the receiver's input, `row variant pos d_model` → `variant`."""
        read = self.state.read
        if self.state.graph[receiver.own].kind == "logits":
            return self.logits.readout.losses(variants[read.row, :, read.slot])
        changes = {receiver.own: self._changed(receiver.own, {receiver.port: variants})}
        for name, ports in receiver.nodes:
            inputs = {
                port: receiver.rests[port][:, None] + self._received(changes, port, senders)
                for port, senders in ports.items()
            }
            changes[name] = self._changed(name, inputs)
        if not receiver.to_logits:
            return self.logits.unchanged().expand(variants.shape[1])
        port = self.state.graph.ports[-1]
        x = receiver.rests[port][:, None] + self._received(changes, port, receiver.to_logits)
        return self.logits.of(x[read.row, :, read.slot], changes, receiver.to_logits)

    def _changed(self, name: str, inputs: dict[str, Tensor]) -> Tensor:
        """A node's output for variants of its inputs, minus its ablated one: z for heads."""
        node, level, ablated = self.state.graph[name], self.state.levels[name], self.state.experiment.ablated
        value = ablated.heads[node.layer, node.unit] if node.kind == "head" else ablated.mlps[node.layer]
        return self.state.output(name, inputs).sub_(self.state.at(value, level)[:, None])

    def _received(self, changes: Mapping[str, Tensor], port: str, senders: Sequence[str]) -> Tensor:
        """What changed senders add to a port's ablated input."""
        state, level = self.state, self.state.port_level(port)

        def at_port(sender: str) -> Tensor:
            change = changes[sender]
            if level == READ and state.levels[sender] == ALL:
                return change[state.read.every_row, :, state.read.positions].transpose(1, 2)
            return change

        heads = [sender for sender in senders if state.graph[sender].kind == "head"]
        written = [at_port(sender) for sender in senders if state.graph[sender].kind != "head"]
        if heads:  # one product for all of them
            z = torch.cat([at_port(head) for head in heads], -1)
            written.append(linear(z, state.W_O(heads).T))
        total, *others = written
        for other in others:
            total = total + other
        return total
