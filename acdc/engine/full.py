"""The circuit evaluated in full: every node, under any edge mask, for several variants of the mask at once.

This is the definition (Conmy et al. 2023, as the original's code has it): a port's value is its ablated input plus, for
every present edge, the sender's output under the circuit minus the sender's ablated output. It is differentiable in
the mask, and the oracle for every faster way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from acdc.engine.mask import EdgeMask
from acdc.engine.memory import budget_bytes
from acdc.experiment import Experiment
from acdc.graph import LETTERS, Graph
from acdc.model.forward import Site, forward, streams


@dataclass(frozen=True)
class Needed:
    """What an evaluation has to compute: layers before `first_layer` have all their edges, so they are clean; of the
    others only the heads and MLPs that feed something that is read.
    """

    first_layer: int
    heads: list[Int[Tensor, " _"]]
    mlps: list[bool]

    @classmethod
    def everything(cls, graph: Graph) -> Needed:
        layers = range(graph.config.n_layers)
        return cls(0, [torch.arange(graph.config.n_heads) for _ in layers], [True for _ in layers])

    @classmethod
    def of(
        cls, graph: Graph, ports: Bool[Tensor, "variant port sender"], projections: Bool[Tensor, "variant port"]
    ) -> Needed:
        """For masks `variant port sender` and `variant port`."""
        whole = (ports == EdgeMask.all(graph).ports).all(-1).all(0) & projections.all(0)
        present = ports.any(0)
        read = torch.zeros(len(graph.ports), dtype=torch.bool)
        read[-1] = True
        live = [False] * len(graph.senders)
        for sender in range(len(graph.senders) - 1, -1, -1):
            if bool(present[read, sender].any()):
                live[sender] = True
                for port in graph.ports_of(graph.senders[sender]):
                    read[graph.port_index[port]] = True
        first_layer = 0
        heads, mlps = [], []
        for i in range(graph.config.n_layers):
            if first_layer == i and bool(whole[graph.layer_ports(i)].all()):
                first_layer = i + 1
            of_heads, mlp = graph.head_senders(i), graph.mlp_sender(i)
            heads.append(torch.tensor([h for h, one in enumerate(live[of_heads]) if one], dtype=torch.long))
            mlps.append(mlp is not None and live[mlp])
        return cls(first_layer, heads, mlps)


class FullEngine:
    """Evaluates circuits of an experiment by complete forward passes.

    Parameters
    ----------
    memory_gb: what temporary tensors may take; None is a share of what is free. Where one evaluation of all pairs
        needs more, pairs are evaluated in blocks.
    """

    def __init__(self, experiment: Experiment, memory_gb: float | None = None) -> None:
        self.experiment = experiment
        self.model = experiment.model
        self.parts: list[FullEngine] = []
        n_rows, n_positions = experiment.batch.clean.shape
        config = self.model.config
        vectors = len(experiment.graph.senders) + 10 * config.n_heads + 8
        per_row = vectors * n_positions * config.d_model * self.model.W_E.element_size()
        memory = budget_bytes(self.model.device, memory_gb)
        rows = max(1, memory // per_row)
        if rows < n_rows:
            cuts = range(0, n_rows, rows)
            parts = (experiment.rows(start, min(start + rows, n_rows)) for start in cuts)
            self.parts = [FullEngine(part, 2 * memory / 2**30) for part in parts]
        with torch.no_grad():
            self.attention_base, self.mlp_base, self.logits_base = streams(self.model, experiment.ablated)
        self.max_variants = max(1, min(64, memory // (per_row * n_rows), 2**28 // (per_row * n_rows)))

    def stream(
        self,
        ports: Shaped[Tensor, "variant port sender"],
        projections: Shaped[Tensor, "variant port"] | None = None,
        needed: Needed | None = None,
        added: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "variant readout d_model"]:
        """The residual stream that the logits are read from.

        Parameters
        ----------
        ports: `variant port sender`, 1 where an edge is present, or anything between.
        projections: `variant port`, 1 where a projection edge is present; None is all.
        needed: what may be left out because it is clean or feeds nothing; None leaves out nothing.
        added: told rows of `ports`, gives what else these ports receive, `port row pos d_model`; for `logits` at the
            readouts, `1 1 readout d_model`.

        Returns `variant readout d_model`.
        """
        run = _EdgewiseRun(self, ports, projections, needed or Needed.everything(self.experiment.graph), added)
        mask = self.experiment.attention_mask
        forward(
            self.model, self.logits_base, run, run.needed.first_layer, mask=mask, heads=run.needed.heads.__getitem__
        )
        return run.at_logits()

    def clean_changes(
        self, first_layer: int
    ) -> list[tuple[Int[Tensor, " sender"], Float[Tensor, "1 sender row pos d_model"]]]:
        """Clean − ablated of the senders before a layer, the inputs and one layer a group: `1 sender row pos d`."""
        clean, ablated, graph = self.experiment.clean, self.experiment.ablated, self.experiment.graph
        changes = [(torch.arange(len(graph.inputs)), (clean.inputs - ablated.inputs)[None])]
        for i in range(first_layer):
            senders = torch.arange(len(graph.senders))[graph.head_senders(i)]
            changes.append((senders, self.model.layers[i].write(clean.heads[i] - ablated.heads[i])[None]))
            if (mlp := graph.mlp_sender(i)) is not None:
                changes.append((torch.tensor([mlp]), (clean.mlps[i] - ablated.mlps[i])[None, None]))
        return changes

    def logits(
        self, masks: Sequence[EdgeMask], columns: Int[Tensor, " column"] | None = None
    ) -> Float[Tensor, "variant readout _"]:
        """Logits at the readouts, `variant readout column`, in batches that fit in memory."""
        if self.parts:
            return torch.cat([part.logits(masks, columns) for part in self.parts], 1)
        parts = []
        with torch.no_grad():
            for start in range(0, len(masks), self.max_variants):
                some = masks[start : start + self.max_variants]
                ports = torch.stack([mask.ports for mask in some])
                projections = torch.stack([mask.projections for mask in some])
                needed = Needed.of(self.experiment.graph, ports, projections)
                parts.append(self.model.unembed(self.stream(ports, projections, needed), columns))
        return torch.cat(parts)

    def loss(self, mask: EdgeMask) -> float:
        return self.losses([mask])[0]

    def values(self, masks: Sequence[EdgeMask]) -> Float[Tensor, "variant readout"]:
        """The metric of each mask at each readout, in its own direction: `variant readout`."""
        metric = self.experiment.metric
        cuts = range(0, len(masks), self.max_variants)
        logits = (self.logits(masks[start : start + self.max_variants], metric.columns) for start in cuts)
        return torch.cat([metric.values(some) for some in logits])

    def losses(self, masks: Sequence[EdgeMask]) -> list[float]:
        """The loss of each mask."""
        metric = self.experiment.metric
        return [
            loss
            for start in range(0, len(masks), self.max_variants)
            for loss in metric.loss(self.logits(masks[start : start + self.max_variants], metric.columns)).tolist()
        ]


class _EdgewiseRun:
    """The visitor that gives every port what its present edges bring, and keeps what every sender adds by them.

    Nothing is written to the residual stream. Parameters as in `FullEngine.stream`.
    """

    def __init__(
        self,
        engine: FullEngine,
        ports: Tensor,
        projections: Tensor | None,
        needed: Needed,
        added: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.engine, self.model, self.graph = engine, engine.model, engine.experiment.graph
        self.ports = ports.to(self.model.device, self.model.dtype)
        self.projections, self.needed, self.added = projections, needed, added
        # What senders add to a port through present edges: output − ablated output, in groups that came together.
        self.changes = engine.clean_changes(needed.first_layer)

    def __call__(self, site: Site, value: Tensor | None) -> Tensor | None:
        kind, i = site
        ablated = self.engine.experiment.ablated
        if kind.endswith("_input"):
            heads = self.needed.heads[i]
            return self._received(self.engine.attention_base[i], self._rows(i, kind[0])) if len(heads) else None
        if kind == "mlp_in":
            row = torch.tensor([self.graph.mlp_port(i)])
            return self._received(self.engine.mlp_base[i], row) if self.needed.mlps[i] else None
        if value is None:
            return None
        if kind in LETTERS and self.projections is not None:
            return self._projected(kind, i, value)
        if kind == "head_output":
            heads, layer = self.needed.heads[i], self.model.layers[i]
            senders = heads + self.graph.head_senders(i).start
            self.changes.append((senders, layer.write(value - ablated.heads[i, heads], heads)))
            return None
        if kind == "mlp_out":
            self.changes.append((torch.tensor([self.graph.mlp_sender(i)]), value - ablated.mlps[i]))
            return None
        return value

    def at_logits(self) -> Tensor:
        """What the logits receive at the readouts, `variant readout d_model`."""
        read = self.engine.experiment.read
        # Few positions are looked at.
        self.changes = [(senders, read(change)[:, :, None]) for senders, change in self.changes]
        base = read(self.engine.logits_base)[None]
        return self._received(base, torch.tensor([len(self.graph.ports) - 1]))[:, 0, 0]

    def _rows(self, i: int, letter: str) -> Tensor:
        first: int = self.graph.head_ports(i, letter).start
        return self.needed.heads[i] + first

    def _projected(self, letter: str, i: int, value: Tensor) -> Tensor:
        """q, k or v, or where the projection edge is gone the ablated one."""
        assert self.projections is not None
        heads, layer = self.needed.heads[i], self.model.layers[i]
        kept = self.projections[:, self._rows(i, letter)].to(value)[..., None, None, None]
        removed = layer.project(letter, self.engine.attention_base[i].expand(len(heads), -1, -1, -1), heads)
        return kept * value + (1 - kept) * removed

    def _received(self, base: Tensor, rows: Tensor) -> Tensor:
        """The inputs of the ports of some rows, `variant port ...` where `base`, the ablated one, is `...`."""
        ports, changes = self.ports, self.changes
        value = base.expand(len(ports), len(rows), *base.shape)
        if self.added is not None:
            value = value + self.added(rows)
        if ports.requires_grad and len(changes) > 1:
            # As one group: the sums of many leave holes in the heap, which grows to ten times what is in it.
            parts = [change.expand(len(ports), *change.shape[1:]) for _, change in changes]
            changes[:] = [(torch.cat([senders for senders, _ in changes]), torch.cat(parts, 1))]
        for senders, change in changes:
            edges = ports[:, rows][:, :, senders]
            if not edges.requires_grad:
                present = edges.flatten(0, 1).any(0).nonzero()[:, 0]
                if not len(present):
                    continue
                edges, change = edges[:, :, present], change[:, present]
            variants = "v" if len(change) == len(ports) else "u"
            value = value + torch.einsum(f"vrs,{variants}s...->vr...", edges, change)
        return value
