"""Runs in which only some paths carry another run's values (Wang et al. 2022, appendix B, in their two passes).

First pass: the senders give the source's output; every other node gives the base run's, but those that may respond,
which are computed from what reaches them. So the input of every port is known. Second pass: the base run, in which the
receivers get these inputs and everything behind them is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from acdc.engine.joint import JointRun, Replaced
from acdc.engine.resumed import ResumedRun
from acdc.graph import LETTERS
from acdc.patching.path_choice import Path

Senders = tuple[str, ...]


class PathRun:
    """Paths patched into one run.

    Parameters
    ----------
    base : ResumedRun
        The run that is patched.
    source : ResumedRun
        The run whose values the senders give.
    through : frozenset of str
        The nodes that may respond.
    place : torch.Tensor
        `row pos`, True where the senders are changed.
    memory : int
        What temporary tensors may take, in bytes.

    A stage is a place of the stream that ports read: 2·layer for q, k and v, and where attention and MLP work in
    parallel the MLP; 2·layer + 1 for an MLP behind attention; 2·layers for the logits.
    """

    @torch.no_grad()
    def __init__(
        self, base: ResumedRun, source: ResumedRun, through: frozenset[str], place: Tensor, memory: int
    ) -> None:
        self.base, self.through, self.place, self.memory = base, through, place, memory
        self.model, self.graph = base.model, base.experiment.graph
        self.inputs, self.heads, self.mlps = (
            (getattr(source.values, part) - getattr(base.values, part)) * place[..., None]
            for part in ("inputs", "heads", "mlps")
        )

    @torch.no_grad()
    def values(self, paths: Sequence[Path], done: Callable[[int], None]) -> Tensor:
        """The metric at each readout with one path patched, `path readout`; `done` is told how many more are done."""
        out = self.base.unchanged.new_empty(len(paths), len(self.base.experiment.readouts))
        # Receivers that read the stream at one place and write to it at one are followed from there, many sets of them
        # at once; other sets by themselves.
        together: dict[object, list[int]] = {}
        for i, path in enumerate(paths):
            ways = {(self._stage(port), self.base.point_of(port)) for port in path.receivers.members}
            together.setdefault(ways.pop() if len(ways) == 1 else path.receivers.members, []).append(i)
        for indices in together.values():
            ports = paths[indices[0]].receivers.members
            stages = sorted({self._stage(port) for port in ports})
            points = list({self.base.point_of(port) for port in ports})
            at_once = max(1, self.memory // self._bytes(len(stages)))
            for start in range(0, len(indices), at_once):
                some = indices[start : start + at_once]
                changes = self._changes([paths[i].senders.members for i in some], stages)
                if len(stages) == len(points) == 1:
                    change = self._written(changes[stages[0]], [paths[i].receivers.members for i in some])
                    out[some] = self.base.metric_values(*points[0], change)
                else:
                    out[some] = self._followed(changes, ports)
                done(len(some))
        return out

    def _bytes(self, n_stages: int) -> int:
        """About what one path takes."""
        run = self.base if n_stages == 1 else JointRun(self.base)
        return run.bytes_per_variant() + (4 + 2 * n_stages) * self.base.pre[0].nbytes

    def _stage(self, port: str) -> int:
        node = self.graph[port]
        if node.kind == "logits":
            return 2 * len(self.model.layers)
        return 2 * node.layer + (node.kind == "mlp" and not self.model.config.parallel_attn_mlp)

    # The first pass.

    def _changes(self, sets: Sequence[Senders], stages: Sequence[int]) -> dict[int, Tensor]:
        """What is added to the stream at each stage, `variant row pos d_model`, a variant for each set of senders."""
        unique = list(dict.fromkeys(sets))
        which = torch.tensor([unique.index(senders) for senders in sets], device=self.place.device)
        has = {name: torch.tensor([name in senders for senders in unique]) for senders in unique for name in senders}
        change = self.inputs.new_zeros(len(unique), *self.inputs.shape[1:])
        for name, own in zip(self.graph.inputs, self.inputs, strict=True):
            if name in has:
                change[has[name]] += own
        found = {}
        for i in range(max(stages) // 2 + 1):
            found[2 * i] = before = change
            if 2 * i == max(stages):
                break
            change = change + self._of_heads(i, before, has)
            found[2 * i + 1] = change
            if self.model.layers[i].mlp is not None:
                change = change + self._of_mlp(i, before if self.model.config.parallel_attn_mlp else change, has)
            for stage in (2 * i, 2 * i + 1):
                if stage not in stages:
                    del found[stage]
        return {stage: found[stage][which] for stage in stages}

    def _of_heads(self, i: int, before: Tensor, has: Mapping[str, Tensor]) -> Tensor:
        """What heads of a layer add, `variant row pos d_model`: senders and those that respond."""
        layer, names = self.model.layers[i], self.graph.heads(i)
        responding = [h for h, name in enumerate(names) if name in self.through]
        change = torch.zeros_like(before)
        touched = before.flatten(1).any(1).cpu() if responding else torch.zeros(len(before), dtype=torch.bool)
        sending = torch.stack([has.get(name, torch.zeros(len(before), dtype=torch.bool)) for name in names])
        active = touched | sending.any(0)
        if not bool(active.any()):
            return change
        z = before.new_zeros(int(active.sum()), *self.heads[i].shape)
        if bool(touched.any()):
            x = self.base.pre[i] + before[active]
            q, k, v = (layer.project_together(letter, x)[:, responding] for letter in LETTERS)
            new = layer.mix(q, k, v, self.base.experiment.attention_mask) - self.base.values.heads[i, responding]
            z[:, responding] = new * self.base.reached(before[active])[:, None, ..., None]
        for h, mine in enumerate(sending[:, active]):
            z[mine, h] = self.heads[i, h]
        change[active] = layer.write_together(z)
        return change

    def _of_mlp(self, i: int, inputs: Tensor, has: Mapping[str, Tensor]) -> Tensor:
        """What the MLP of a layer adds to the stream, whose change at its port is `inputs`."""
        name = self.graph.mlp(i)
        change = self.base.written_by_mlp(i, inputs) if name in self.through else torch.zeros_like(inputs)
        if name is not None and name in has:
            change[has[name]] = self.mlps[i]
        return change

    # The second pass.

    def _written(self, change: Tensor, receivers: Sequence[tuple[str, ...]]) -> Tensor:
        """What receivers that write at one point write there, minus what they wrote, `variant row pos d_model`.

        `change`: of their input, `variant row pos d_model`.
        """
        out = torch.zeros_like(change)
        for ports in dict.fromkeys(receivers):
            which = [i for i, mine in enumerate(receivers) if mine == ports]
            out[which] = self.base.written(ports, change[which])
        return out

    def _followed(self, changes: Mapping[int, Tensor], ports: Sequence[str]) -> Tensor:
        """The metric at each readout, `variant readout`, for receivers in several places; none responds to another.

        What a receiver makes of its recorded input is put into a run in which everything else is computed.
        """
        replaced: dict[tuple[str, int], Replaced] = {}
        everywhere = torch.ones(len(changes[min(changes)]), 1, 1, 1, dtype=torch.bool, device=self.place.device)
        for i, layer in enumerate(self.model.layers):
            for letter in LETTERS:
                told = [port in ports for port in self.graph.ports[self.graph.head_ports(i, letter)]]
                if any(told):
                    recorded = layer.project_together(letter, self.base.pre[i] + changes[2 * i])
                    where = everywhere[:, None] & torch.tensor(told, device=self.place.device)[:, None, None, None]
                    replaced[letter, i] = Replaced(where, recorded)
            if (mlp := self.graph.mlp(i)) in ports and mlp is not None:
                recorded = self.base.values.mlps[i] + self.base.written_by_mlp(i, changes[self._stage(mlp)])
                replaced["mlp_out", i] = Replaced(everywhere, recorded)
        return JointRun(self.base).metric_values(replaced)
