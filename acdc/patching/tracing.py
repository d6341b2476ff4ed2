"""Causal tracing (Meng et al. 2022): noise on the subject's embeddings, and single states put back.

Three runs on the clean prompts: the clean one; one with Gaussian noise on the token embeddings of the subject; the
noised one with one state restored to its clean value. A state is the residual stream behind a layer, or what the MLPs
or the attention of a window of layers write, at one token. What restoring it brings back is its indirect effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.ablation import Corrupted
from acdc.engine.joint import JointRun, Replaced
from acdc.engine.memory import budget_bytes
from acdc.engine.resumed import ResumedRun
from acdc.errors import ConfigError, TaskError
from acdc.experiment import Experiment
from acdc.metrics import alike
from acdc.model.forward import run_from
from acdc.patching.base import PatchOptions, Progress, batch_bytes, blocks, by_pair
from acdc.patching.positions import TRACED_BY, Place, subject, traced_places
from acdc.patching.sites import KINDS
from acdc.patching.tracing_result import Traced, TraceMap
from acdc.patching.values import SiteChanges
from acdc.settings import option

DOING = ("tracing", "states")  # what the progress bar says, and what it counts
SITES = ("resid_post", "mlp_out", "attn_out")
_MOST_WINDOW = 10


@dataclass(frozen=True)
class Settings(PatchOptions):
    """Causal tracing: noise on the subject's embeddings, and one state at a time restored to its clean value."""

    name: str = "tracing"
    site: list[str] | str | None = option(
        None,
        "resid_post, mlp_out or attn_out; [mlp_out,attn_out] for several; null is all that the model has",
    )
    by: str = option(
        "role",
        "how the tokens are told apart: role (first, middle, last subject token, first behind it, further,"
        " last) or position",
        TRACED_BY,
    )
    subject: int | str | None = option(
        None,
        'the tokens that are noised: a label of the task, an index or a span such as "2:5"; null is the pairs\''
        " own subject",
    )
    noise: float = option(
        3.0,
        "standard deviation of the noise, in those of the token embeddings of all the subjects",
        above=0,
    )
    draws: int = option(10, "of the noise; effects are means over them", least=1)
    seed: int = option(0, "of the noise")
    window: int | None = option(
        None,
        "layers whose MLPs or attentions are restored together; null is 10, and at most a quarter of the layers",
        least=1,
    )
    memory_gb: float | None = option(
        None,
        "what temporary tensors may take; null is a share of what is free",
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        sites = [] if self.site is None else [self.site] if isinstance(self.site, str) else self.site
        if self.site is not None and (not sites or (wrong := [site for site in sites if site not in SITES])):
            given = wrong[0] if sites else "[]"
            raise ConfigError(f"patch.site={given} is not known: choose from {', '.join(SITES)}, or null for all")
        if self.window is not None and sites and set(sites) == {"resid_post"}:
            raise ConfigError("patch.window has no effect with patch.site=resid_post, which is restored at one layer")

    def sites(self, experiment: Experiment) -> tuple[str, ...]:
        """The sites of a model that are restored.

        Raises
        ------
        ConfigError
            MLPs that it does not have.
        """
        has_mlps = experiment.model.layers[0].mlp is not None
        if self.site is None:
            return tuple(site for site in SITES if site != "mlp_out" or has_mlps)
        if "mlp_out" in self.site and not has_mlps:
            raise ConfigError(f"patch.site=mlp_out: {experiment.model.name} has no MLPs; choose resid_post or attn_out")
        return tuple(dict.fromkeys([self.site] if isinstance(self.site, str) else self.site))

    def window_of(self, site: str, n_layers: int) -> int:
        """How many layers are restored together."""
        if site == "resid_post":
            return 1
        return self.window or min(_MOST_WINDOW, math.ceil(n_layers / 4))


@dataclass(frozen=True)
class Plan:
    """What would be traced.

    Attributes
    ----------
    experiment : Experiment
        It has one row for each pair.
    sites : tuple of str
    subject : Place
        The tokens that get noise.
    places : tuple of Place
        The places that are told apart.
    scale : float
        The noise's standard deviation.
    normal : sequence of torch.Tensor
        See `standard_noise`.
    """

    experiment: Experiment
    sites: tuple[str, ...]
    subject: Place
    places: tuple[Place, ...]
    scale: float
    normal: Sequence[Tensor]


def check(experiment: Experiment, settings: Settings) -> Plan:
    """What would be traced; what cannot be is refused.

    Raises
    ------
    ConfigError
        An ablation; pairs without a subject; a subject, site or way that does not fit.
    TaskError
        Noise on the subject does not change the metric, so that there is nothing to restore.
    """
    if experiment.ablation != Corrupted():
        raise ConfigError(
            f"ablation={experiment.ablation.name} has no effect with patch=tracing, which noises the clean prompts"
            " itself: leave it out"
        )
    where = subject(experiment, settings.subject)
    sites, places = settings.sites(experiment), traced_places(experiment, where, settings.by)
    if any(len(pair.corrupted) > 1 for pair in experiment.pairs):
        experiment = experiment.with_partner(0)  # the clean prompts, each once
    scale = settings.noise * embedding_std(experiment, where)
    normal = standard_noise(where, experiment.model.W_E.shape[1], settings.draws, settings.seed)
    plan = Plan(experiment, sites, where, places, scale, normal)
    clean = noised = 0.0
    for block in blocks(experiment, budget_bytes(experiment.model.device, settings.memory_gb, "patch")):
        clean += float(_unpatched(_clean_run(block)).mean())
        noised += float(_unpatched(noised_run(plan, block, 0)).mean())
    if alike(clean, noised):
        raise TaskError(
            f"metric={experiment.metric_name} is {clean:.4g} with and without noise on the subject, so there is nothing"
            " to restore: choose another subject (patch.subject), more noise or another metric"
        )
    return plan


def patch(experiment: Experiment, settings: Settings, progress: Progress | None = None) -> Traced:
    """Restore every state.

    Parameters
    ----------
    progress : callable or None
        Called with the number of states (token × layer × site × draw) that are done, and with the number of all.

    Raises
    ------
    ConfigError, TaskError
        See `check`.
    """
    plan = check(experiment, settings)
    experiment, model = plan.experiment, experiment.model
    memory = budget_bytes(model.device, settings.memory_gb, "patch")
    row_blocks = blocks(experiment, memory)
    n_layers, firsts = len(model.layers), _first_restored(plan)
    n_tokens = max(len(pair.clean) - first for pair, first in zip(experiment.pairs, firsts, strict=True))
    values = {site: torch.zeros(n_layers, n_tokens, len(firsts), dtype=torch.float64) for site in plan.sites}
    clean = torch.zeros(len(firsts), dtype=torch.float64)
    noised = torch.zeros(settings.draws, len(firsts), dtype=torch.float64)
    done, total = 0.0, len(plan.sites) * n_layers * n_tokens * settings.draws
    for block in row_blocks:
        clean_run = _clean_run(block)
        clean += _unpatched(clean_run)
        at = _restored_tokens(block, firsts, n_tokens)
        for draw in range(settings.draws):
            base = noised_run(plan, block, draw)
            noised[draw] += _unpatched(base)
            restored = Restoring(base, clean_run, batch_bytes(memory))
            for site in plan.sites:
                window = settings.window_of(site, n_layers)
                for layer in range(n_layers):
                    found = restored(site, window_around(layer, window, n_layers), at)
                    values[site][layer] += by_pair(block, found) / settings.draws
                    done += n_tokens / len(row_blocks)
                    if progress is not None:
                        progress(round(done), total)
    maps = [
        TraceMap(site, settings.window_of(site, n_layers), _by_position(plan, values[site], noised.mean(0), firsts))
        for site in plan.sites
    ]
    larger = experiment.metric.larger_is_better
    return Traced(
        tuple(maps), plan.places, plan.subject, experiment.metric_name, larger, clean, noised, plan.scale, settings.by
    )


def embedding_std(experiment: Experiment, subject: Place) -> float:
    """The standard deviation over all entries of the token embeddings of every pair's subject."""
    ids = [pair.clean[i] for pair, at in zip(experiment.pairs, subject.tokens, strict=True) for i in sorted(at)]
    return float(experiment.model.W_E[torch.tensor(ids, device=experiment.model.device)].double().std())


def standard_noise(subject: Place, d_model: int, draws: int, seed: int) -> list[Tensor]:
    """Noise of standard deviation 1 for each pair, `draw token d_model`: on the CPU in float64, so that the same seed
    gives the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((draws, len(tokens), d_model) for tokens in subject.tokens)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def noised_run(plan: Plan, block: Experiment, draw: int) -> ResumedRun:
    """The run with a draw of the noise on the subjects' token embeddings, on the rows of a block."""
    inputs = block.clean.inputs.clone()
    for row, pair in enumerate(block.batch.source):
        noise = plan.scale * plan.normal[pair][draw]
        inputs[0, row, sorted(plan.subject.tokens[pair])] += noise.to(inputs.device, inputs.dtype)
    return ResumedRun(block, run_from(block.model, inputs, block.batch.lengths)[0])


def window_around(layer: int, window: int, n_layers: int) -> range:
    """The layers restored together: `window` of them around `layer`, one more before it if even, those there are."""
    return range(max(0, layer - window // 2), min(n_layers, layer + (window + 1) // 2))


class Restoring:
    """A noised run with states restored to those of the clean run.

    `memory`: bytes that one batch of variants may take.
    """

    def __init__(self, noised: ResumedRun, clean: ResumedRun, memory: int) -> None:
        self.noised, self.clean, self.memory = noised, clean, memory

    def __call__(self, site: str, layers: range, where: Tensor) -> Tensor:
        """The metric at each readout, `variant readout`.

        Parameters
        ----------
        layers : range
            The layers in which `site` is restored together.
        where : torch.Tensor
            True at the tokens that are restored, `variant row pos`.
        """
        joint = JointRun(self.noised)
        run = self.noised if len(layers) == 1 else joint
        parts = where.split(max(1, self.memory // run.bytes_per_variant()))
        if len(layers) == 1:
            change = SiteChanges(KINDS[site], layers[0], self.noised, self.clean)
            point = KINDS[site].point
            return torch.cat([self.noised.metric_values(layers[0], point, change(None, at)) for at in parts])
        values = {(site, layer): self._clean_value(site, layer) for layer in layers}
        return torch.cat(
            [joint.metric_values({key: Replaced(at[..., None], v) for key, v in values.items()}) for at in parts]
        )

    def _clean_value(self, site: str, layer: int) -> Tensor:
        """The value of a site in the clean run, `row pos d_model`."""
        if site == "mlp_out":
            return self.clean.values.mlps[layer]
        if site == "attn_out":
            return self.clean.model.layers[layer].write_together(self.clean.values.heads[layer])
        return self.clean.pre[layer + 1]


def _clean_run(experiment: Experiment) -> ResumedRun:
    return ResumedRun(experiment, experiment.clean)


@torch.no_grad()
def _unpatched(run: ResumedRun) -> Tensor:
    """The metric of each pair in a stored run, `pair`; 0 of pairs that are not among its rows."""
    return by_pair(run.experiment, run.unchanged)


def _first_restored(plan: Plan) -> list[int]:
    """For each pair the first token that is restored: under causal attention what is before the noise is clean."""
    causal = plan.experiment.model.causal
    return [min(tokens) if causal else 0 for tokens in plan.subject.tokens]


def _restored_tokens(block: Experiment, firsts: Sequence[int], n_tokens: int) -> Tensor:
    """The tokens restored one by one, counted from the first of each pair: `token row pos`."""
    batch = block.batch
    first = torch.tensor([firsts[pair] for pair in batch.source], device=batch.clean.device)
    token = first + torch.arange(n_tokens, device=first.device)[:, None]
    position = torch.arange(batch.clean.shape[1], device=first.device)
    return (position == token[..., None]) & (position < batch.lengths[:, None])


def _by_position(plan: Plan, values: Tensor, noised: Tensor, firsts: Sequence[int]) -> Tensor:
    """From tokens counted from the first restored one to positions: `layer token pair` → `layer pos pair`.

    Tokens that were not restored, because they are clean, have the metric of the noised run; NaN is behind the end.
    """
    lengths = [len(pair.clean) for pair in plan.experiment.pairs]
    out = values.new_full((len(values), max(lengths), len(lengths)), float("nan"))
    for pair, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        out[:, :first, pair] = noised[pair]
        out[:, first:length, pair] = values[:, : length - first, pair]
    return out
