"""EAP with integrated gradients (Hanna, Pezzelle and Belinkov 2024, arXiv:2403.17806).

As EAP, but the gradient is its mean over runs on the way from the corrupted to the clean one, so that it does not miss
what is flat at the clean run alone. With α the share of clean:

`inputs`: the embedding is α·clean + (1 − α)·corrupted, for α = 0, 1/n, … (n − 1)/n.
`activations`: the outputs of one group of senders (the input, the heads of a layer, its MLP) are α·clean + (1 − α)·
ablated in the clean run, for α = 1/n, 2/n, … 1, each group in its turn.

Both as in the authors' code and in MIB's; their paper has α = 1/n, … 1 for the inputs as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from acdc.ablation import Values
from acdc.circuit import Circuit
from acdc.discovery.base import Decision, Observer, Store
from acdc.discovery.scores import (
    ScoringSettings,
    add_up,
    check_gradients,
    check_slope,
    check_two_runs,
    gradient_work,
    to_circuit,
)
from acdc.engine.gradients import Replaced
from acdc.errors import ConfigError
from acdc.experiment import Experiment

WAYS = ("inputs", "activations")
SCORE = (
    "(ablated − clean) output of the sender times the loss's gradient at the receiver, its mean over runs between the"
    " corrupted and the clean one; positive means that the edge helps"
)


@dataclass(frozen=True)
class Settings(ScoringSettings):
    """EAP-IG's options.

    Attributes
    ----------
    interpolate: `inputs` or `activations`: what is changed step by step from corrupted to clean.
    steps: how many runs there are on the way (of each group of senders, with `activations`).
    """

    name: str = "eap_ig"
    interpolate: str = "inputs"
    steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interpolate not in WAYS:
            raise ConfigError(f"method.interpolate={self.interpolate} is not known: choose one of {', '.join(WAYS)}")
        if self.steps < 1:
            raise ConfigError(f"method.steps={self.steps} is not allowed: give 1 or more")


def check(experiment: Experiment, settings: Settings) -> None:
    """What cannot be done is refused.

    Raises
    ------
    ConfigError: with `inputs`, an ablation other than `corrupted`; with `activations` and a single step, which is the
    clean run, a metric without a slope there; see also `check_gradients`.
    """
    check_gradients(experiment, settings)
    if settings.interpolate == "inputs":
        check_two_runs(experiment, settings, "method.interpolate=activations")
    elif settings.steps == 1:
        check_slope(experiment, settings)


def discover(
    experiment: Experiment,
    settings: Settings,
    observer: Observer | None = None,
    replay: Sequence[Decision] = (),
    store: Store | None = None,
) -> Circuit:
    """Score every edge, and keep those that `settings.select` says; ConfigError as in `check`."""
    check(experiment, settings)
    n, config = settings.steps, experiment.model.config
    if settings.interpolate == "inputs":
        runs = [_between("inputs", 0, k / n) for k in range(n)]
    else:
        kinds = ("heads",) if config.attn_only else ("heads", "mlp")
        groups = [("inputs", 0), *((kind, layer) for layer in range(config.n_layers) for kind in kinds)]
        runs = [_between(*group, k / n) for group in groups for k in range(1, n + 1)]
    work = gradient_work(experiment, runs, settings.memory_gb)
    return to_circuit(experiment, settings, add_up(experiment, work, observer, store), SCORE)


def _between(kind: str, layer: int, clean_share: float) -> Callable[[Experiment], Replaced]:
    """The outputs of a group of senders between the ablated and the clean ones."""

    def output(values: Values) -> Tensor:
        return values.inputs if kind == "inputs" else (values.heads if kind == "heads" else values.mlps)[layer]

    def replaced(block: Experiment) -> Replaced:
        between = clean_share * output(block.clean) + (1 - clean_share) * output(block.ablated)
        return Replaced(kind, layer, between)

    return replaced
