"""Sets of edges that differ in little from one circuit, without whole forward passes.

The circuit's values are kept; for each variation those nodes are evaluated again that it changes, and put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from acdc.engine.mask import EdgeMask
from acdc.engine.memory import budget_bytes
from acdc.engine.state import CircuitState
from acdc.experiment import Experiment


class Variations:
    """Evaluates variations of a circuit: any masks, fast where they differ from it in few edges.

    Pairs that do not fit in memory at once are evaluated in blocks.
    """

    def __init__(self, experiment: Experiment, mask: EdgeMask) -> None:
        self.experiment = experiment
        n_rows, n_positions = experiment.batch.clean.shape
        config, W_E = experiment.model.config, experiment.model.W_E
        per_row = 8 * (config.n_layers + 4) * n_positions * config.d_model * W_E.element_size()
        memory = budget_bytes(experiment.model.device)
        rows = max(1, memory // per_row)
        blocks = [(start, min(start + rows, n_rows)) for start in range(0, n_rows, rows)]
        self.blocks = [_Block(experiment.rows(*block), mask, memory // len(blocks) // 4) for block in blocks]

    def rebase(self, mask: EdgeMask) -> None:
        """Take another circuit for the one that masks are variations of."""
        for block in self.blocks:
            block.rebase(mask)

    def values(self, masks: Sequence[EdgeMask]) -> Float[Tensor, "variant readout"]:
        """The metric of each mask at each readout, in its own direction: `variant readout`."""
        metric, model = self.experiment.metric, self.experiment.model
        with torch.no_grad():
            values = []
            for mask in masks:
                stream = torch.cat([block.stream(mask) for block in self.blocks])
                values.append(metric.values(model.unembed(stream, metric.columns)))
        return torch.stack(values)

    def losses(self, masks: Sequence[EdgeMask]) -> list[float]:
        """The loss of each mask."""
        metric = self.experiment.metric
        if not masks:
            return []
        return metric.as_loss((self.values(masks).double() * metric.readouts.weight).sum(-1)).tolist()


@dataclass(frozen=True)
class _Kept:
    """A circuit's values: the mask, and of `CircuitState` the levels, z, m and projected values under it."""

    mask: EdgeMask
    levels: dict[str, int]
    z: Tensor
    m: Tensor
    projected: dict[str, Tensor]

    @classmethod
    def of(cls, state: CircuitState) -> _Kept:
        return cls(state.mask, dict(state.levels), state.z.clone(), state.m.clone(), dict(state.projected))


class _Block:
    """Some of the pairs."""

    def __init__(self, experiment: Experiment, mask: EdgeMask, room: int) -> None:
        self.state = CircuitState(experiment, mask.copy(), room)
        self.kept = _Kept.of(self.state)
        self.touched: list[str] = []

    @torch.inference_mode()
    def rebase(self, mask: EdgeMask) -> None:
        self._vary(mask.copy())
        self.kept = _Kept.of(self.state)
        self.touched = []

    @torch.inference_mode()
    def stream(self, mask: EdgeMask) -> Float[Tensor, "readout d_model"]:
        """What the logits are read from, `readout d_model`."""
        self._vary(mask)
        return self.state.at_readouts(self.state.input("logits"))

    def _vary(self, mask: EdgeMask) -> None:
        state, kept = self.state, self.kept
        for name in self.touched:
            node = state.graph[name]
            if node.kind == "head":
                state.z[node.layer, node.unit] = kept.z[node.layer, node.unit]
            else:
                state.m[node.layer] = kept.m[node.layer]
        state.projected = dict(kept.projected)
        state.mask = mask
        self.touched = state.refresh_since(kept.mask, kept.levels)
