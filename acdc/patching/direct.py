"""Direct logit attribution (Elhage et al. 2021): what each part of the model writes into the logit difference itself.

The logits are linear in the residual stream once the final norm's scale is taken as it is in the run, and the stream is
the sum of what embedding, heads, MLPs and biases write. So the logit difference is exactly the sum of their shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from acdc.ablation import Values
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.model.forward import streams
from acdc.model.parts import LanguageModel
from acdc.patching import base
from acdc.patching.base import PatchOptions, Progress
from acdc.result import Labelled, Result, as_table
from acdc.settings import option

DOING = ("direct shares", "sums")  # what the progress bar says, and what it counts
WAYS = ("layer", "sublayer", "head", "neuron")


@dataclass(frozen=True)
class Settings(PatchOptions):
    """Direct logit attribution: what each part of the model writes into the logit difference itself."""

    name: str = "direct"
    by: list[str] | str = option(
        ["layer", "head"],
        "layer, sublayer (attention and MLP), head (and MLP) or neuron (and head); each sums to the logit difference",
        WAYS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ways:
            raise ConfigError(f"patch.by is empty: choose from {', '.join(WAYS)}")

    @property
    def ways(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([self.by] if isinstance(self.by, str) else self.by))


@dataclass(frozen=True)
class Part:
    """What writes: `embed`, `pos_embed`, `attn`, `attn_bias`, `head`, `mlp`, `mlp_bias`, `neuron`, `layer` or
    `final_bias`, the last of these what the final norm's bias and the unembedding's add."""

    kind: str
    layer: int | None = None
    unit: int | None = None

    def __str__(self) -> str:
        short = {"attn": "a{0}", "head": "a{0}.h{1}", "mlp": "m{0}", "neuron": "m{0}.n{1}", "layer": "layer {0}"}
        names = {"attn_bias": "a{0} bias", "mlp_bias": "m{0} bias"}
        return (short | names).get(self.kind, self.kind).format(self.layer, self.unit)


@dataclass(frozen=True)
class Shares:
    """One way to take the logit difference apart.

    Attributes
    ----------
    parts : tuple of Part
        The parts, in the order in which they write to the residual stream.
    clean, corrupted : torch.Tensor
        The share of each part in the logit difference of the run, `part pair`. The shares of all parts sum to it.
    """

    by: str
    parts: tuple[Part, ...]
    clean: Tensor
    corrupted: Tensor

    @property
    def difference(self) -> Tensor:
        """Clean − corrupted, `part pair`."""
        return self.clean - self.corrupted


@dataclass(frozen=True)
class Direct(Result):
    """The result of direct logit attribution.

    Attributes
    ----------
    shares : tuple of Shares
        One for each way to take the logit difference apart.
    metric : str
    clean, corrupted : torch.Tensor
        The metric of each pair in the two runs, `pair`.
    """

    shares: tuple[Shares, ...]
    metric: str
    clean: Tensor
    corrupted: Tensor

    def rows(self) -> list[dict[str, Any]]:
        """A row a part, as in `direct.csv`; `cumulative` sums up to and with the part, over clean prompts."""
        rows = []
        for one in self.shares:
            columns = (one.clean.mean(-1), one.corrupted.mean(-1), one.difference.mean(-1))
            spread = one.clean.std(-1).tolist() if len(self.clean) > 1 else [None] * len(one.parts)
            numbers = zip(*(c.tolist() for c in (*columns, columns[0].cumsum(0))), spread, strict=True)
            for part, (clean, corrupted, difference, cumulative, std) in zip(one.parts, numbers, strict=True):
                rows.append(
                    {
                        "by": one.by,
                        "part": str(part),
                        "kind": part.kind,
                        "layer": part.layer,
                        "head": part.unit if part.kind == "head" else None,
                        "neuron": part.unit if part.kind == "neuron" else None,
                        "clean": clean,
                        "corrupted": corrupted,
                        "difference": difference,
                        "std_clean": std,
                        "cumulative": cumulative,
                        "n": len(self.clean),
                    }
                )
        return rows

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"direct": as_table(self.rows())}

    def arrays(self) -> dict[str, dict[str, Labelled]]:
        """Return the arrays of `direct.npz`.

        `BY_clean` and `BY_corrupted` are the shares, `part pair`; `BY_parts` are the names of the parts; `clean` and
        `corrupted` are the metric, `pair`.
        """
        runs = (("clean", self.clean), ("corrupted", self.corrupted))
        arrays = {name: Labelled(("pair",), values.numpy()) for name, values in runs}
        for one in self.shares:
            arrays[f"{one.by}_clean"] = Labelled(("part", "pair"), one.clean.numpy())
            arrays[f"{one.by}_corrupted"] = Labelled(("part", "pair"), one.corrupted.numpy())
            arrays[f"{one.by}_parts"] = Labelled(("part",), np.array([str(part) for part in one.parts]))
        return {"direct": arrays}

    def summary(self) -> dict[str, object]:
        """Return the metric of both runs, and the largest share of each way."""
        summary: dict[str, object] = {
            "metric": self.metric,
            "clean": float(self.clean.mean()),
            "corrupted": float(self.corrupted.mean()),
            "pairs": len(self.clean),
        }
        for one in self.shares:
            means = one.clean.mean(-1)
            summary[f"{one.by}_parts"] = len(one.parts)
            summary[f"{one.by}_largest"] = str(one.parts[int(means.argmax())])
            summary[f"{one.by}_largest_share"] = float(means.max())
        return summary


def check(experiment: Experiment, settings: Settings) -> None:
    """What has no direct shares is refused.

    Raises
    ------
    ConfigError
        A metric that is not linear in the logits; an ablation other than `corrupted`; neurons where there are no MLPs.
    """
    base.check_ablation(experiment)
    if experiment.metric_name != "logit_diff":
        raise ConfigError(
            f"metric={experiment.metric_name} is not a sum of what each part writes, so it does not fit patch=direct:"
            " give metric=logit_diff"
        )
    if "neuron" in settings.ways and experiment.model.layers[0].mlp is None:
        raise ConfigError(f"patch.by=neuron: {experiment.model.name} has no MLPs; choose layer, sublayer or head")


def patch(experiment: Experiment, settings: Settings, progress: Progress | None = None) -> Direct:
    """The share of every part in the logit difference, on clean and on corrupted prompts.

    Each run has its own final norm's scale, so that its shares sum to its own logit difference.

    Parameters
    ----------
    progress : callable or None
        Called with the number of sums that are done, and with the number of all: one for each run and way.

    Raises
    ------
    ConfigError
        See `check`.
    """
    check(experiment, settings)
    found: dict[str, list[Tensor]] = {way: [] for way in settings.ways}
    parts: dict[str, tuple[Part, ...]] = {}
    steps = [(run, way) for run in (experiment.clean, experiment.ablated) for way in settings.ways]
    for done, (run, way) in enumerate(steps, 1):
        groups = list(_Sums(experiment, run).parts(way))
        parts[way] = tuple(part for some, _ in groups for part in some)
        found[way].append(torch.cat([base.by_pair(experiment, shares) for _, shares in groups]))
        if progress is not None:
            progress(done, len(steps))
    ends = (base.by_pair(experiment, values) for values in base.ends(experiment))
    return Direct(tuple(Shares(way, parts[way], *found[way]) for way in settings.ways), experiment.metric_name, *ends)


def logit_direction(experiment: Experiment, stream: Tensor) -> Tensor:
    """The direction in which the final residual stream is read as a logit difference, the final norm's scale held.

    The difference is between the mean answer and the mean wrong answer. Where a pair lacks wrong answers, the mean
    over the vocabulary stands for them; where one lacks answers, the model's top token does.

    Parameters
    ----------
    experiment : Experiment
    stream : torch.Tensor
        The stream of the run whose scale is held, at the readouts: `readout d_model`.

    Returns
    -------
    torch.Tensor
        `readout d_model`; its product with what a part writes is the part's share of the logit difference.
    """
    model, readouts = experiment.model, experiment.readouts
    right, wrong = readouts.answers, readouts.wrong_answers
    if not _all_given(right):
        right = experiment.clean_logits.argmax(-1, keepdim=True)
    against = _mean_column(model, wrong) if _all_given(wrong) else model.W_U.mean(1)
    return model.final_norm.held(_mean_column(model, right) - against, stream)


def _all_given(ids: Tensor) -> bool:
    return bool((ids >= 0).any(-1).all())


def _mean_column(model: LanguageModel, ids: Tensor) -> Tensor:
    """The mean of the unembedding's columns of each row's ids, padded with −1: `row d_model`."""
    given = ids >= 0
    columns = model.W_U.T[ids.clamp_min(0)] * given[..., None]
    return columns.sum(1) / given.sum(1, keepdim=True)


class _Sums:
    """A run's shares: each part's write at the readouts, times the metric's direction there."""

    @torch.no_grad()
    def __init__(self, experiment: Experiment, values: Values) -> None:
        self.experiment, self.model, self.values = experiment, experiment.model, values
        _, mlp, final = streams(experiment.model, values)
        self.mlp_inputs = [experiment.read(x) for x in mlp]
        stream, metric = experiment.read(final), experiment.metric
        self.direction = logit_direction(experiment, stream)
        whole = metric.values(self.model.unembed(stream, metric.columns))
        self.rest = whole - (self.direction * stream).sum(-1)  # of the final norm's bias and the unembedding's

    @torch.no_grad()
    def parts(self, way: str) -> Iterator[tuple[list[Part], Tensor]]:
        """All parts of a way, in groups, with the share of each at each readout, `part readout`."""
        for name, written in zip(("embed", "pos_embed"), self.values.inputs, strict=False):
            yield [Part(name)], self._share(written)
        for i in range(len(self.model.layers)):
            if way == "layer":
                shares = torch.cat([shares for _, shares in self._layer(i, "sublayer")])
                yield [Part("layer", i)], shares.sum(0, keepdim=True)
            else:
                yield from self._layer(i, way)
        yield [Part("final_bias")], self.rest[None]

    def _layer(self, i: int, way: str) -> Iterator[tuple[list[Part], Tensor]]:
        layer = self.model.layers[i]
        z = self.experiment.read(self.values.heads[i])
        heads = torch.einsum("hre,hed,rd->hr", z, layer.W_O, self.direction)
        if way == "sublayer":
            yield [Part("attn", i)], heads.sum(0, keepdim=True)
        else:
            yield [Part("head", i, head) for head in range(len(heads))], heads
        if layer.b_O is not None:
            yield [Part("attn_bias", i)], (self.direction @ layer.b_O)[None]
        if layer.mlp is None:
            return
        if way != "neuron":
            yield [Part("mlp", i)], self._share(self.values.mlps[i])
            return
        neurons = (layer.mlp.neurons(self.mlp_inputs[i]) * (self.direction @ layer.mlp.W_out.T)).T
        yield [Part("neuron", i, neuron) for neuron in range(len(neurons))], neurons
        if layer.mlp.b_out is not None:
            yield [Part("mlp_bias", i)], (self.direction @ layer.mlp.b_out)[None]

    def _share(self, written: Tensor) -> Tensor:
        return (self.experiment.read(written) * self.direction).sum(-1)[None]
