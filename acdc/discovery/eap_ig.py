"""EAP with integrated gradients (Hanna, Pezzelle and Belinkov 2024, arXiv:2403.17806).

As EAP, but the gradient is its mean over runs on the way from the corrupted to the clean one, so that it does not miss
what is flat at the clean run alone. With α the share of clean:

`inputs`: the embedding is α·clean + (1 − α)·corrupted, for α = 0, 1/n, … (n − 1)/n.
`activations`: the outputs of one group of senders (the input, the heads of a layer, its MLP) are α·clean + (1 − α)·
ablated in the clean run, for α = 1/n, 2/n, … 1, each group in its turn.

Both as in the authors' code and in MIB's; their paper has α = 1/n, … 1 for the inputs as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from acdc.ablation import Values
from acdc.discovery.base import Observer, Store
from acdc.discovery.scores import (
    BlockMethod,
    add_up,
    check_gradients,
    check_slope,
    check_two_runs,
    gradient_work,
)
from acdc.engine.gradients import Replaced
from acdc.experiment import Experiment
from acdc.settings import option

WAYS = ("inputs", "activations")


@dataclass(frozen=True)
class EAPIG(BlockMethod):
    """EAP-IG (Hanna et al. 2024): EAP with the gradient's mean over runs on the way from corrupted to clean."""

    meaning: ClassVar[str] = (
        "(ablated − clean) output of the sender times the loss's gradient at the receiver, its mean over runs"
        " between the corrupted and the clean one; positive means that the edge helps"
    )

    name: str = "eap_ig"
    interpolate: str = option(
        "inputs",
        "between corrupted and clean: inputs (the embedding) or activations (of each layer's heads, MLP)",
        WAYS,
    )
    steps: int = option(5, "runs on the way; with activations, of each group of senders", least=1)

    def check(self, experiment: Experiment) -> None:
        """What cannot be done is refused.

        Raises
        ------
        ConfigError: with `inputs`, an ablation other than `corrupted`; with `activations` and a single step, which is
        the clean run, a metric without a slope there; see also `check_gradients`.
        """
        check_gradients(experiment, self)
        if self.interpolate == "inputs":
            check_two_runs(experiment, self, "method.interpolate=activations")
        elif self.steps == 1:
            check_slope(experiment, self)

    def scores(self, experiment: Experiment, observer: Observer, store: Store) -> Tensor:
        n, config = self.steps, experiment.model.config
        if self.interpolate == "inputs":
            runs = [_between("inputs", 0, k / n) for k in range(n)]
        else:
            kinds = ("heads",) if config.attn_only else ("heads", "mlp")
            groups = [("inputs", 0), *((kind, layer) for layer in range(config.n_layers) for kind in kinds)]
            runs = [_between(*group, k / n) for group in groups for k in range(1, n + 1)]
        work = gradient_work(experiment, runs, self.memory_gb)
        return add_up(experiment, work, observer, store)


def _between(kind: str, layer: int, clean_share: float) -> Callable[[Experiment], Replaced]:
    """The outputs of a group of senders between the ablated and the clean ones."""

    def output(values: Values) -> Tensor:
        return values.inputs if kind == "inputs" else (values.heads if kind == "heads" else values.mlps)[layer]

    def replaced(block: Experiment) -> Replaced:
        between = clean_share * output(block.clean) + (1 - clean_share) * output(block.ablated)
        return Replaced(kind, layer, between)

    return replaced
