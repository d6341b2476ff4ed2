"""Sets of edges that differ in little from one circuit, without whole forward passes.

The circuit's values are kept; for each variation those nodes are evaluated again that it changes, and put back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
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

    def values(self, masks: Sequence[EdgeMask]) -> Tensor:
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
        return metric.as_loss((self.values(masks).double() * metric.readouts.weight.double()).sum(-1)).tolist()


class _Block(CircuitState):
    """Some of the pairs."""

    def __init__(self, experiment: Experiment, mask: EdgeMask, room: int) -> None:
        self.touched: list[str] = []
        super().__init__(experiment, mask.copy(), room)
        self._keep()

    def _keep(self) -> None:
        self.base, self.base_levels = self.mask, dict(self.levels)
        self.base_z, self.base_m = self.z.clone(), self.m.clone()
        self.base_projected = dict(self.projected)
        self.touched.clear()

    @torch.inference_mode()
    def rebase(self, mask: EdgeMask) -> None:
        self._vary(mask.copy())
        self._keep()

    @torch.inference_mode()
    def stream(self, mask: EdgeMask) -> Tensor:
        """What the logits are read from, `readout d_model`."""
        self._vary(mask)
        return self._rows(self._input("logits"))

    def _vary(self, mask: EdgeMask) -> None:
        for name in self.touched:
            node = self.graph[name]
            if node.kind == "head":
                self.z[node.layer, node.unit] = self.base_z[node.layer, node.unit]
            else:
                self.m[node.layer] = self.base_m[node.layer]
        self.touched.clear()
        self.projected = dict(self.base_projected)
        self.mask = mask
        self._refresh_since(self.base, self.base_levels)

    def _refresh(self, name: str) -> None:
        self.touched.append(name)
        super()._refresh(name)
