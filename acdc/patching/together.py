"""Sites ablated in the clean run, alone or in sets: the metric, and what the run computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from acdc.engine.joint import JointRun, Replaced
from acdc.engine.resumed import ResumedRun
from acdc.experiment import Experiment
from acdc.patching.base import batch_bytes, blocks, by_pair
from acdc.patching.changes import Changes
from acdc.patching.sites import KINDS, Grid, Site
from acdc.patching.standins import StandIns

Sites = Sequence[Site]


@dataclass(frozen=True)
class Batch:
    """Some of the ablated runs: those of `sets`, in one draw of the stand-ins, on the rows of `run`, whose readouts are
    `here` in the whole experiment's."""

    run: JointRun
    replaced: Mapping[tuple[str, int], Replaced]
    sets: slice
    here: Tensor


class Together:
    """Ablates sites, many or many sets of them at once, in blocks of rows that fit in memory.

    Parameters
    ----------
    memory: bytes of temporary tensors. tick: is told of how many sets have been done, also in parts.
    """

    def __init__(
        self, experiment: Experiment, stand_ins: StandIns, memory: int, tick: Callable[[float], None] = lambda _: None
    ) -> None:
        self.experiment, self.stand_ins, self.tick = experiment, stand_ins, tick
        self.memory = batch_bytes(memory)
        self.blocks = blocks(experiment, memory)

    def alone(self, grid: Grid) -> Tensor:
        """The metric of each pair once one site is ablated, the mean over draws: `layer unit place pair`.

        As `values` of a set a site, but faster: what lies before a single site need not be computed again.
        """
        together = grid.units == (None,)
        total = self._zeros(*grid.shape)
        units = torch.tensor([0 if unit is None else unit for unit in grid.units], device=total.device)
        axes = (torch.arange(n, device=total.device) for n in grid.shape[1:])
        unit_of, place_of = (t.flatten() for t in torch.meshgrid(*axes, indexing="xy"))  # sites of a place side by side
        for block, rows, here in self._rows():
            base = ResumedRun(block, block.clean)
            places = torch.stack([place.mask(block) for place in grid.places])
            at_once = max(1, self.memory // base.bytes_per_variant())
            for draw, (i, layer) in product(range(self.stand_ins.draws), enumerate(grid.layers)):
                changes = Changes(grid.kind, layer, base, self._value(grid.kind.name, layer, draw, rows))
                for unit, place in zip(unit_of.split(at_once), place_of.split(at_once), strict=True):
                    change = changes(None if together else units[unit], places[place])
                    values = base.metric_values(layer, grid.kind.point, change)
                    total[i, unit[:, None], place[:, None], here] += values
                    self._tell(len(unit), block)
        return by_pair(self.experiment, total / self.stand_ins.draws)

    def values(self, sets: Sequence[Sites]) -> Tensor:
        """The metric of each pair once the sites of a set are ablated, the mean over draws: `set pair`."""
        total = self._zeros(len(sets))
        for batch in self.batches(sets):
            total[batch.sets, batch.here] += batch.run.metric_values(batch.replaced)
        return by_pair(self.experiment, total / self.stand_ins.draws)

    def batches(self, sets: Sequence[Sites]) -> Iterator[Batch]:
        """Every set on every row, in every draw."""
        for block, rows, here in self._rows():
            run = JointRun(ResumedRun(block, block.clean))
            at_once = max(1, self.memory // run.bytes_per_variant())
            for draw in range(self.stand_ins.draws):
                for start in range(0, len(sets), at_once):
                    some = slice(start, min(start + at_once, len(sets)))
                    yield Batch(run, self._replaced(sets[some], block, rows, draw), some, here)
                    self._tell(some.stop - start, block)

    def _zeros(self, *shape: int) -> Tensor:
        """For sums at each readout."""
        readouts = self.experiment.readouts
        return torch.zeros(*shape, len(readouts), dtype=torch.float64, device=readouts.pair.device)

    def _rows(self) -> Iterator[tuple[Experiment, slice, Tensor]]:
        """Each block, its rows, and which readouts are of them (as indices)."""
        first = 0
        for block in self.blocks:
            rows = slice(first, first + len(block.batch.clean))
            pair = self.experiment.readouts.pair
            yield block, rows, ((pair >= rows.start) & (pair < rows.stop)).nonzero()[:, 0]
            first = rows.stop

    def _tell(self, count: int, block: Experiment) -> None:
        """So many sets are done in one draw, on the rows of a block."""
        self.tick(count * len(block.batch.clean) / len(self.experiment.batch.clean) / self.stand_ins.draws)

    def _value(self, kind: str, layer: int, draw: int, rows: slice) -> Tensor:
        """What stands in, on some rows."""
        value = self.stand_ins(kind, layer, draw)
        return value[:, rows] if KINDS[kind].units == "head" else value[rows]

    def _replaced(
        self, sets: Sequence[Sites], block: Experiment, rows: slice, draw: int
    ) -> dict[tuple[str, int], Replaced]:
        """What each variant, one a set, has replaced on the rows of a block."""
        model, n_rows, n_positions = block.model, *block.batch.clean.shape
        masks: dict[str, Tensor] = {}
        where: dict[tuple[str, int], Tensor] = {}
        for i, sites in enumerate(sets):
            for site in sites:
                units = KINDS[site.kind].units
                mask = masks.get(site.place.name)
                if mask is None:
                    mask = masks.setdefault(site.place.name, site.place.mask(block))
                key = site.kind, site.layer
                if key not in where:
                    mlp = model.layers[site.layer].mlp
                    shape: tuple[int, ...] = (n_rows, n_positions, 1)
                    if units == "head":
                        shape = (model.config.n_heads, *shape)
                    elif units == "neuron" and mlp is not None:
                        shape = (n_rows, n_positions, mlp.W_out.shape[0])
                    where[key] = torch.zeros(len(sets), *shape, dtype=torch.bool, device=model.device)
                if units == "head":
                    where[key][i, slice(None) if site.head is None else site.head] |= mask[..., None]
                elif units == "neuron":
                    where[key][i, ..., site.neuron] |= mask
                else:
                    where[key][i] |= mask[..., None]
        return {key: Replaced(chosen, self._value(*key, draw, rows)) for key, chosen in where.items()}
