"""A sparse autoencoder on a task's own tokens: what its features are there, and how well they give activations back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.engine.resumed import ResumedRun
from acdc.experiment import Experiment
from acdc.metrics import recovery
from acdc.model.sae import SparseAutoencoder

# Where in its layer a change of the activation reaches the residual stream (see `ResumedRun`).
POINTS = {"resid_pre": "pre", "resid_post": "post", "attn_out": "mid", "mlp_out": "post"}
GOOD = 0.8  # of the variance explained, at least, and a recovery as near to 1; anything else is worth a warning
_NUMBERS = 2**22  # features that are computed at once


def activation(run: ResumedRun, sae: SparseAutoencoder) -> Tensor:
    """What the autoencoder reads in a run, `row pos d_model`."""
    layer = run.model.layers[sae.layer]
    if sae.hook == "attn_out":
        written = layer.write_together(run.values.heads[sae.layer])
        return written if layer.b_O is None else written + layer.b_O
    if sae.hook == "mlp_out":
        return run.values.mlps[sae.layer]
    return run.pre[sae.layer + (sae.hook == "resid_post")]


def real_tokens(experiment: Experiment) -> Tensor:
    """`row pos`, False behind a prompt's end."""
    positions = torch.arange(experiment.batch.clean.shape[1], device=experiment.batch.lengths.device)
    return positions < experiment.batch.lengths[:, None]


def features_of(sae: SparseAutoencoder, x: Tensor, chosen: Tensor) -> Tensor:
    """Some features of activations, `... d_model` → `... feature`; `chosen`: their numbers."""
    some = max(1, _NUMBERS // sae.d_sae)
    parts = [sae.encode(part)[:, chosen] for part in x.flatten(0, -2).split(some)]
    return torch.cat(parts).reshape(*x.shape[:-1], len(chosen))


@dataclass(frozen=True)
class Reconstruction:
    """How an autoencoder does on a task's tokens.

    Attributes
    ----------
    tokens : int
        The number of tokens of the clean and corrupted prompts together.
    features : int
        The number of the autoencoder's features.
    active : torch.Tensor
        The numbers of the features that are active on any of the tokens.
    l0 : float
        The mean number of features that are active at a token.
    explained : float
        The share of the activations' variance over the tokens that the reconstruction has.
    explained_later : float or None
        The same without each prompt's first token, whose activation is far larger than all others in many models; None
        where there are no other tokens.
    metric : float
        The metric of the clean run with the reconstruction in the activation's place at every token.
    recovered : float
        That metric on the scale of recovery: 1 is the clean run, 0 the corrupted one.
    loss : str
        What `losses` are: `nll`, of the answers, or without answers `kl_div`.
    losses : tuple
        The loss of the clean run, with the reconstruction in the activation's place, and with zero there.
    """

    tokens: int
    features: int
    active: Tensor
    l0: float
    explained: float
    explained_later: float | None
    metric: float
    recovered: float
    loss: str
    losses: tuple[float, float, float]

    @property
    def loss_recovered(self) -> float:
        """(zero − reconstructed) / (zero − clean): 1 is no loss from the reconstruction, 0 is as bad as zero."""
        clean, reconstructed, zero = self.losses
        return recovery(reconstructed, clean, zero)

    @property
    def problems(self) -> list[str]:
        """What the reader should be warned of."""
        found = []
        if not self.explained >= GOOD:
            found.append(f"explains {max(self.explained, 0):.0%} of the activations' variance")
        if not GOOD <= self.recovered <= 2 - GOOD:
            found.append(f"gives the metric a recovery of {self.recovered:.2f} with its reconstruction spliced in")
        if not found:
            return []
        return [
            f"the autoencoder {' and '.join(found)} on this task's tokens: its features miss much of what the model"
            " does here, and what they miss is in the error term"
        ]


class _Explained:
    """Share of the variance of tokens' activations that their reconstruction has, gathered part by part."""

    def __init__(self) -> None:
        self.count, self.total, self.squares, self.errors = 0, torch.zeros(()), 0.0, 0.0

    def add(self, x: Tensor, error: Tensor) -> None:
        """`x`, `error`: `token d_model`."""
        x = x.double()
        self.count += len(x)
        self.total = self.total.to(x) + x.sum(0)
        self.squares += float(x.square().sum())
        self.errors += float(error.double().square().sum())

    def share(self) -> float | None:
        """None without tokens; NaN where they do not vary."""
        if not self.count:
            return None
        variance = self.squares - float(self.total.square().sum()) / self.count
        return 1 - self.errors / variance if variance > 0 else float("nan")


class Survey:
    """Gathers a `Reconstruction` over blocks of an experiment's rows."""

    def __init__(self, experiment: Experiment, sae: SparseAutoencoder) -> None:
        self.experiment, self.sae = experiment, sae
        device = experiment.model.device
        self.active = torch.zeros(sae.d_sae, dtype=torch.bool, device=device)
        self.count = 0
        self.all, self.later = _Explained(), _Explained()
        self.metric = 0.0
        has_answers = bool((experiment.readouts.answers >= 0).any(-1).all())
        self.loss = "nll" if has_answers else "kl_div"
        self.losses = [0.0, 0.0, 0.0]

    @torch.no_grad()
    def add(self, block: Experiment, runs: dict[str, ResumedRun]) -> None:
        """Take in a block's clean and corrupted run."""
        real = real_tokens(block)
        for run in runs.values():
            x = activation(run, self.sae)
            for part, later in self._parts(x, real):
                features = self.sae.encode(part)
                self.active |= (features > 0).any(0)
                self.count += int((features > 0).sum())
                error = part - self.sae.reconstruct(part)
                self.all.add(part, error)
                self.later.add(part[later], error[later])
        clean, point = runs["clean"], POINTS[self.sae.hook]
        x = activation(clean, self.sae)
        back = torch.cat([self.sae.reconstruct(row)[None] for row in x]) - x
        changes = torch.stack((torch.zeros_like(x), back, -x)) * real[..., None]
        measured = ResumedRun(block.with_metric(self.loss), block.clean)
        weight = block.readouts.weight
        for i, change in enumerate(changes):
            self.losses[i] += float((measured.metric_values(self.sae.layer, point, change[None]) * weight).sum())
        self.metric += float((clean.metric_values(self.sae.layer, point, changes[1:2]) * weight).sum())

    def result(self, clean: float, corrupted: float) -> Reconstruction:
        """`clean`, `corrupted`: the metric of the two runs."""
        explained = self.all.share()
        assert explained is not None
        return Reconstruction(
            tokens=self.all.count,
            features=self.sae.d_sae,
            active=self.active.nonzero().flatten(),
            l0=self.count / self.all.count,
            explained=explained,
            explained_later=self.later.share(),
            metric=self.metric,
            recovered=recovery(self.metric, clean, corrupted),
            loss=self.loss,
            losses=(self.losses[0], self.losses[1], self.losses[2]),
        )

    def _parts(self, x: Tensor, real: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Activations of real tokens, some at once, and which of them are no prompt's first."""
        later = torch.ones_like(real)
        later[:, 0] = False
        some = max(1, _NUMBERS // self.sae.d_sae)
        yield from zip(x[real].split(some), later[real].split(some), strict=True)
