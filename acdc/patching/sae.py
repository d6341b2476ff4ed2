"""Patching single features of a sparse autoencoder, the error term kept (Marks et al. 2024).

An activation is x = Σ f_i W_dec[i] + b_dec + error. Feature i gets its value from the other run, and the error stays,
so x changes by (f_i(source) − f_i(base)) · W_dec[i]. `noise`: the clean run with a feature's corrupted activation;
`denoise`: the corrupted run with its clean one. Attribution is the gradient of the metric at x in the base run times
that change: all features at once, to first order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from acdc.engine.memory import budget_bytes
from acdc.engine.resumed import ResumedRun
from acdc.errors import ConfigError, ModelError, TaskError
from acdc.experiment import Experiment
from acdc.model.sae import SparseAutoencoder, load_sae
from acdc.patching.activation_result import SiteMap
from acdc.patching.base import (
    DIRECTIONS,
    PatchOptions,
    Progress,
    base_and_source,
    batch_bytes,
    blocks,
    by_pair,
    check_ablation,
    check_scale,
    ends,
    runs_of,
)
from acdc.patching.estimates import backward
from acdc.patching.positions import Place, places
from acdc.patching.sae_reconstruction import POINTS, Survey, activation, features_of, real_tokens
from acdc.patching.sae_result import Example, PatchedFeatures
from acdc.patching.sites import Grid, Kind
from acdc.settings import option
from acdc.tasks.base import Tokenizer

DOING = ("patching", "features")  # what the progress bar says, and what it counts
BY = ("feature", "feature_position")
EXAMPLES = 5  # tokens a feature is shown with
BEFORE = 4  # tokens before each


@dataclass(frozen=True)
class Settings(PatchOptions):
    """Single features of a sparse autoencoder get their value from the other run, the error term kept; they are ranked
    by effect and by attribution."""

    name: str = "sae"
    sae: str = option(
        "pocket",
        "the autoencoder: pocket, that of the bundled model, or a release of SAELens as RELEASE/ID",
    )
    path: str | None = option(
        None,
        "a folder with sae.safetensors (or SAELens' sae_weights.safetensors) and cfg.json; then sae is not looked at",
    )
    by: str = option("feature", "feature: all positions together; feature_position: each position by itself", BY)
    direction: str = option(
        "both",
        "noise: corrupted value into the clean run; denoise: clean value into the corrupted run; both",
        (*DIRECTIONS, "both"),
    )
    features: list[int] | int | None = option(
        None,
        "those to patch, such as [3,141]; null is all that are active on the pairs",
    )
    most: int | None = option(
        None, "patch only this many features, those with the largest attribution; null is all", least=1
    )
    positions: list[int | str] | int | str | None = option(
        None,
        'indices, labels of the task and spans, such as [S2,-1,"2:5"]; null is all. By feature they are'
        " patched together",
    )
    memory_gb: float | None = option(
        None,
        "what temporary tensors may take; null is a share of what is free",
        above=0,
    )

    @property
    def directions(self) -> tuple[str, ...]:
        return DIRECTIONS if self.direction == "both" else (self.direction,)

    @property
    def subset(self) -> str:
        """The name of the choice, empty if it is every active feature at all positions."""
        chosen = {key: getattr(self, key) for key in ("features", "most", "positions")}
        lists = {key: value if isinstance(value, list) else [value] for key, value in chosen.items()}
        return " ".join(f"{key}={','.join(map(str, lists[key]))}" for key in lists if chosen[key] is not None)


def check(experiment: Experiment, settings: Settings) -> tuple[SparseAutoencoder, tuple[Place, ...]]:
    """The autoencoder and the places to patch; what cannot be done is refused.

    Raises
    ------
    ModelError
        No such autoencoder, or one of another model.
    ConfigError
        A feature or position that is not there, an ablation other than `corrupted`.
    TaskError
        The metric is the same on clean and corrupted prompts.
    """
    check_ablation(experiment)
    sae, model = load_sae(settings.sae, settings.path), experiment.model
    of = f" (it is of {sae.model})" if sae.model and sae.model != model.name else ""
    if sae.d_in != model.config.d_model:
        raise ModelError(
            f"the autoencoder {sae.name} reads {sae.d_in} dimensions, but {model.name} has d_model"
            f" {model.config.d_model}{of}: give patch.path or patch.sae of an autoencoder of this model"
        )
    if sae.layer >= len(model.layers):
        raise ModelError(
            f"the autoencoder {sae.name} stands at {sae.site}, but {model.name} has {len(model.layers)} layers{of}"
        )
    if sae.hook == "mlp_out" and model.layers[sae.layer].mlp is None:
        raise ModelError(f"the autoencoder {sae.name} stands at {sae.site}, but {model.name} has no MLPs{of}")
    given = _given(settings)
    if given is not None and (not given or (wrong := [i for i in given if not 0 <= i < sae.d_sae])):
        shown = "[]" if not given else wrong[0]
        raise ConfigError(
            f"patch.features={shown} is not there: give numbers from 0 to {sae.d_sae - 1}, or null for all active ones"
        )
    if settings.most is not None and settings.directions == ("noise",) and experiment.measured.compares_with_model:
        raise ConfigError(
            f"patch.most ranks by attribution, which says nothing when noising with metric={experiment.metric_name}"
            " (its gradient is nil in the clean run): choose patch.direction=both or denoise, or metric=logit_diff"
        )
    where = places(experiment, settings.positions, apart=settings.by == "feature_position")
    check_scale(experiment)
    return sae, where


def patch(experiment: Experiment, settings: Settings, progress: Progress | None = None) -> PatchedFeatures:
    """Check the reconstruction, then patch every chosen feature.

    Parameters
    ----------
    progress : callable or None
        Called with the number of features (at their places, in their directions) that are done, and of all.

    Raises
    ------
    ConfigError, ModelError, TaskError
        See `check`; no feature is active.
    """
    sae, where = check(experiment, settings)
    sae = sae.to(experiment.model.device, experiment.model.dtype)
    memory = budget_bytes(experiment.model.device, settings.memory_gb, "patch")
    work = _Work(experiment, sae, where, memory)
    scale = [by_pair(experiment, values) for values in ends(experiment)]
    survey = Survey(experiment, sae)
    for block, runs in work.blocks():
        survey.add(block, runs)
    reconstruction = survey.result(*(float(values.mean()) for values in scale))
    given = _given(settings)
    chosen = reconstruction.active if given is None else torch.tensor(given, device=experiment.model.device)
    if not len(chosen):
        raise TaskError(f"no feature of the autoencoder {sae.name} is active on these prompts: there is none to patch")
    attributions = work.attributions(chosen, settings.directions)
    gap = float((scale[0] - scale[1]).mean())
    # On the scale of what patching loses (noise) or recovers (denoise).
    attributions = {d: a / (-gap if d == "noise" else gap) for d, a in attributions.items()}
    if experiment.measured.compares_with_model and "noise" in attributions:
        attributions["noise"] = torch.full_like(attributions["noise"], float("nan"))
    if settings.most is not None and settings.most < len(chosen):
        size = torch.stack([a.nan_to_num().abs().amax(1) for a in attributions.values()]).amax(0)
        best = size.argsort(descending=True, stable=True)[: settings.most].sort().values
        chosen, attributions = chosen[best], {d: a[best.cpu()] for d, a in attributions.items()}
    kind = Kind("sae", POINTS[sae.hook], "feature", f"a feature of the autoencoder at {sae.site}")
    grid = Grid(kind, settings.by, (sae.layer,), tuple(chosen.tolist()), where)
    values = work.patched(chosen, settings.directions, progress)
    found = PatchedFeatures(
        sae=sae,
        reconstruction=reconstruction,
        maps=tuple(SiteMap(grid, d, by_pair(experiment, v)[None], scale[0], scale[1]) for d, v in values.items()),
        attributions=tuple(attributions.values()),
        examples=work.examples(chosen),
        metric=experiment.metric_name,
        subset=settings.subset,
    )
    return replace(found, warnings=tuple(_warnings(experiment, found)))


def _warnings(experiment: Experiment, patched: PatchedFeatures) -> list[str]:
    """What the reader should be warned of."""
    found = patched.reconstruction.problems
    if experiment.measured.compares_with_model and any(one.direction == "noise" for one in patched.maps):
        found.append(
            f"metric={experiment.metric_name} is smallest in the clean run, where its gradient is nil: noising has no"
            " attribution"
        )
    for i, one in enumerate(patched.maps):
        if not patched.has_effect(i):
            found.append(
                f"{one.direction}: none of the patched features has any effect: each is inactive where it would count,"
                " or the same in both runs"
            )
    first = getattr(experiment.model.tokenizer, "bos_token_id", None)
    if patched.sae.prepend_bos and any(pair.clean[0] != first for pair in experiment.pairs):
        found.append(
            "the autoencoder was trained on prompts that begin with the tokenizer's first token, and these do not:"
            " task.prepend_bos=true gives it to them"
        )
    return found


def gradient(run: ResumedRun, layer: int, point: str) -> Tensor:
    """The gradient of the metric (its mean over the pairs) at a point of the residual stream, `row pos d_model`."""
    found = next(gradients for i, gradients, _ in backward(run) if i == layer)
    return found.at(point) / len(run.experiment.pairs)


def _given(settings: Settings) -> list[int] | None:
    given = settings.features
    return given if given is None else list(dict.fromkeys(given)) if isinstance(given, list) else [given]


class _Work:
    """What is computed, block of rows by block of rows."""

    def __init__(self, experiment: Experiment, sae: SparseAutoencoder, where: tuple[Place, ...], memory: int) -> None:
        self.experiment, self.sae, self.places = experiment, sae, where
        self.parts, self.memory = blocks(experiment, memory), batch_bytes(memory)
        self.kept: dict[str, ResumedRun] | None = None

    def blocks(self) -> Iterator[tuple[Experiment, dict[str, ResumedRun]]]:
        """Each block with its two runs; those of a single block are kept."""
        for part in self.parts:
            runs = self.kept
            if runs is None:
                runs = runs_of(part)
            self.kept = runs if len(self.parts) == 1 else None
            yield part, runs

    def _features(self, block: Experiment, run: ResumedRun, chosen: Tensor) -> Tensor:
        """Features of a run's real tokens, `row pos feature`."""
        return features_of(self.sae, activation(run, self.sae), chosen) * real_tokens(block)[..., None]

    def _split(self, block: Experiment, chosen: Tensor) -> tuple[Tensor, ...]:
        """Features in parts such that a few tensors of each fit in memory."""
        one = block.batch.clean.numel() * self.sae.W_enc.element_size() * 4
        return torch.split(chosen, max(1, self.memory // one))

    def _places(self, block: Experiment) -> Tensor:
        return torch.stack([place.mask(block) for place in self.places])

    @torch.no_grad()
    def attributions(self, chosen: Tensor, directions: tuple[str, ...]) -> dict[str, Tensor]:
        """Gradient times change of the metric's mean, `feature place`, on the CPU."""
        found = {d: torch.zeros(len(chosen), len(self.places), dtype=torch.float64) for d in directions}
        for block, runs in self.blocks():
            where = self._places(block).double()
            for direction, total in found.items():
                base, source = base_and_source(direction)
                slope = gradient(runs[base], self.sae.layer, POINTS[self.sae.hook]).to(self.sae.W_dec.dtype)
                start = 0
                for some in self._split(block, chosen):
                    change = self._features(block, runs[source], some) - self._features(block, runs[base], some)
                    each = (change * (slope @ self.sae.W_dec[some].T)).double()
                    total[start : start + len(some)] += torch.einsum("rtf,prt->fp", each, where).cpu()
                    start += len(some)
        return found

    @torch.no_grad()
    def patched(
        self, chosen: Tensor, directions: tuple[str, ...], progress: Progress | None = None
    ) -> dict[str, Tensor]:
        """The metric with each feature patched at each place, `feature place readout`."""
        total, done = len(directions) * len(chosen) * len(self.places), 0.0
        found: dict[str, list[Tensor]] = {d: [] for d in directions}
        for block, runs in self.blocks():
            where = self._places(block)
            for direction, collected in found.items():
                base, source = (runs[name] for name in base_and_source(direction))
                parts = []
                for some in self._split(block, chosen):
                    change = self._features(block, source, some) - self._features(block, base, some)
                    values = base.unchanged.new_empty(len(some) * len(where), len(block.readouts))
                    for these in self._batches(base, change, where):
                        values[these] = self._metric(base, some, change, where, these)
                        done += len(these) / len(self.parts)
                        if progress is not None:
                            progress(round(done), total)
                    parts.append(values.unflatten(0, (len(some), len(where))))
                collected.append(torch.cat(parts))
        return {d: torch.cat(parts, -1) for d, parts in found.items()}

    def _batches(self, base: ResumedRun, change: Tensor, where: Tensor) -> Iterator[Tensor]:
        """Numbers (feature × place) of what is evaluated together: changes that begin at about the same position, so
        that what lies before is shared."""
        n_positions = change.shape[1]
        touched = torch.einsum("rtf,prt->fpt", (change != 0).float(), where.float()) > 0
        first = torch.where(touched.any(-1), touched.int().argmax(-1), n_positions).flatten()
        order = first.argsort(stable=True)
        yield from order.split(max(1, self.memory // base.bytes_per_variant()))

    def _metric(self, base: ResumedRun, some: Tensor, change: Tensor, where: Tensor, these: Tensor) -> Tensor:
        """The metric of some features at some places, `variant readout`."""
        which, at = these // len(where), these % len(where)
        sizes = change[..., which].movedim(-1, 0) * where[at]
        changes = (sizes[..., None] * self.sae.W_dec[some[which]][:, None, None]).to(base.model.dtype)
        return base.metric_values(self.sae.layer, POINTS[self.sae.hook], changes)

    @torch.no_grad()
    def examples(self, chosen: Tensor) -> dict[int, list[Example]]:
        """Where each feature is most active, no token twice."""
        best: dict[int, dict[int, tuple[float, str, int, int]]] = {feature: {} for feature in chosen.tolist()}
        start = 0
        for block, runs in self.blocks():
            for name, run in runs.items():
                tokens = getattr(block.batch, name)
                for some in self._split(block, chosen):
                    active = self._features(block, run, some).flatten(0, 1)
                    largest, at = active.topk(min(64, len(active)), dim=0)
                    for i, feature in enumerate(some.tolist()):
                        mine = best[feature]
                        for value, index in zip(largest[:, i].tolist(), at[:, i].tolist(), strict=True):
                            row, position = divmod(index, tokens.shape[1])
                            token = int(tokens[row, position])
                            if value > 0 and value > mine.get(token, (0.0,))[0]:
                                mine[token] = value, name, start + row, position
            start += len(block.batch.clean)
        return {f: [self._example(*e) for e in sorted(of.values(), reverse=True)[:EXAMPLES]] for f, of in best.items()}

    def _example(self, value: float, run: str, row: int, position: int) -> Example:
        model, batch = self.experiment.model, self.experiment.batch
        decode = Tokenizer(model.tokenizer, model.vocabulary_size).decode
        ids = getattr(batch, run)[row].tolist()
        pair = batch.source[row]
        labels = self.experiment.pairs[pair].labels
        label = next((name for name, (first, stop) in labels.items() if first <= position < stop), "")
        before = decode(ids[max(0, position - BEFORE) : position]) if position else ""
        return Example(decode([ids[position]]).strip(), before.strip(), label, run, pair, position, value)
