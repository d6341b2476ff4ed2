"""What every kind of patching shares: what is refused, both ends of the scale, blocks of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from acdc.ablation import Values
from acdc.engine.memory import row_blocks
from acdc.engine.resumed import ResumedRun
from acdc.errors import ConfigError, TaskError
from acdc.experiment import Experiment
from acdc.metrics import alike
from acdc.model.forward import streams
from acdc.process import undisturbed
from acdc.settings import Settings

DIRECTIONS = ("noise", "denoise")
_MOST_BYTES = 2**28  # of one batch: larger ones are no faster


@dataclass(frozen=True)
class PatchOptions(Settings):
    """A kind of patching."""

    GROUP: ClassVar[str] = "patch"

    name: str = ""


Progress = Callable[[int, int], None]  # sites (or paths) done, and in all


def check_ablation(experiment: Experiment) -> None:
    """Refuse an ablation other than `corrupted`.

    Raises
    ------
    ConfigError
        Another ablation.
    """
    if experiment.ablation.name != "corrupted":
        raise ConfigError(
            f"ablation={experiment.ablation.name} does not fit job=patch, which puts values of the corrupted run in:"
            " give ablation=corrupted"
        )


def check_scale(experiment: Experiment) -> None:
    """Refuse a metric that is the same on clean and corrupted prompts, so that there is nothing to recover.

    Raises
    ------
    TaskError
        The metric is the same.
    """
    clean, corrupted = (float((values * experiment.readouts.weight).sum()) for values in ends(experiment))
    if alike(clean, corrupted):
        raise TaskError(
            f"metric={experiment.metric_name} is {clean:.4g} on clean and on corrupted prompts, so there is nothing to"
            " recover: choose another metric or corruption"
        )


def runs_of(block: Experiment) -> dict[str, ResumedRun]:
    """The runs that are patched and patched from, `clean` and `corrupted`."""
    return {"clean": ResumedRun(block, block.clean), "corrupted": ResumedRun(block, block.ablated)}


def base_and_source(direction: str) -> tuple[str, str]:
    """Return which run is patched in a direction, and which run gives the values."""
    return ("clean", "corrupted") if direction == "noise" else ("corrupted", "clean")


def blocks(experiment: Experiment, memory: int) -> list[Experiment]:
    """The experiment, or blocks of its rows such that both stored runs of each, and one patched run, fit in half of the
    memory; the other half is for `batch_bytes`."""
    row = ResumedRun(experiment.rows(0, 1), experiment.clean.rows(0, 1))
    return list(row_blocks(experiment, max(1, memory // 2 // (2 * row.nbytes + row.bytes_per_variant()))))


def batch_bytes(memory: int) -> int:
    """What patched runs that are evaluated at once may take of the memory; see `blocks`."""
    return min(memory // 2, _MOST_BYTES)


@torch.no_grad()
def ends(experiment: Experiment) -> tuple[Tensor, ...]:
    """The metric at each readout of the clean and of the corrupted run."""
    metric, model = experiment.metric, experiment.model
    found = (last_stream(experiment, values) for values in (experiment.clean, experiment.ablated))
    return tuple(metric.values(model.unembed(end, metric.columns)) for end in found)


def last_stream(experiment: Experiment, values: Values) -> Tensor:
    """The last residual stream of a run at the readouts, `readout d_model`."""
    parts = (values.inputs, values.heads, values.mlps)
    return streams(experiment.model, Values(*(experiment.read(part)[..., None, :] for part in parts)))[2][:, 0]


def by_pair(experiment: Experiment, values: Tensor) -> Tensor:
    """Average over the partners and positions of each pair.

    Of a block of rows, the result is what these rows add to the average, so that blocks can be added up;
    `Experiment.mean_by_pair` is the mean over the rows that are there.

    Parameters
    ----------
    experiment : Experiment
        The experiment, or a block of its rows.
    values : torch.Tensor
        `... readout`.

    Returns
    -------
    torch.Tensor
        `... pair`, in float64 on the CPU.
    """
    readouts = experiment.readouts
    pair = torch.tensor(experiment.batch.source, device=values.device)[readouts.row]
    weighted = (values * readouts.weight).double() * len(experiment.pairs)
    out = weighted.new_zeros(*values.shape[:-1], len(experiment.pairs))
    return out.index_add(-1, pair, weighted).cpu()


@undisturbed
def correlation(kind: Callable[[np.ndarray, np.ndarray], Any], a: Tensor, b: Tensor) -> float:
    """Compute a correlation by a function of `scipy.stats`; NaN where one side does not vary or is not finite."""
    x, y = a.flatten().numpy(), b.flatten().numpy()
    if len(x) < 2 or not np.isfinite([x, y]).all() or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(kind(x, y).statistic)
