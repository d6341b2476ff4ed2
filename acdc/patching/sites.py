"""The sites of a model whose value can be replaced, and the choice of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.model.parts import LanguageModel
from acdc.patching.base import DIRECTIONS, PatchOptions, check_ablation, check_scale
from acdc.patching.positions import Chosen, Place, places
from acdc.settings import option


@dataclass(frozen=True)
class Kind:
    """A kind of site. `point`: where in its layer a change of it reaches the residual stream (see `ResumedRun`).

    `units`: what there are several of in a layer, `head` or `neuron`; empty where there is one site a layer.
    """

    name: str
    point: str
    units: str
    meaning: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind("resid_pre", "pre", "", "the residual stream before attention"),
        Kind("resid_mid", "mid", "", "the residual stream between attention and MLP"),
        Kind("resid_post", "post", "", "the residual stream after a layer"),
        Kind("attn_out", "mid", "", "what all heads of a layer write"),
        Kind("mlp_out", "post", "", "what an MLP writes"),
        Kind("head_output", "mid", "head", "what a head writes"),
        Kind("q", "mid", "head", "a head's queries"),
        Kind("k", "mid", "head", "a head's keys"),
        Kind("v", "mid", "head", "a head's values"),
        Kind("pattern", "mid", "head", "a head's attention pattern; a position is a query's"),
        Kind("neuron", "post", "neuron", "an MLP's neuron, as the output matrix reads it"),
    )
}
# How the sites of a kind are told apart, within a layer; the first is what `auto` takes.
WAYS = {
    "": ("position",),
    "head": ("head", "position", "head_position"),
    "neuron": ("neuron", "neuron_position"),
}


@dataclass(frozen=True)
class Site:
    """One site: a row of `patch.csv`. `head` and `neuron` None: all of the layer, or there are none."""

    kind: str
    layer: int
    head: int | None
    neuron: int | None
    place: Place

    @property
    def name(self) -> str:
        """The name that tells the site apart from others of its kind, such as `a9.h6`, `3@S2` or `m0.n12`."""
        return self._of_layer + f"@{self.place.name}" * bool(self.place.name)

    def __str__(self) -> str:
        return self._of_layer + f" @{self.place.label}" * bool(self.place.name)

    @property
    def _of_layer(self) -> str:
        if self.head is not None:
            return f"a{self.layer}.h{self.head}"
        return str(self.layer) if self.neuron is None else f"m{self.layer}.n{self.neuron}"


@dataclass(frozen=True)
class Grid:
    """The sites of one kind: layers × units × places. `units` is (None,) where those of a layer go together."""

    kind: Kind
    by: str
    layers: tuple[int, ...]
    units: tuple[int | None, ...]
    places: tuple[Place, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.layers), len(self.units), len(self.places)

    def __len__(self) -> int:
        return len(self.layers) * len(self.units) * len(self.places)

    def __iter__(self) -> Iterator[Site]:
        for layer in self.layers:
            for unit in self.units:
                for place in self.places:
                    head, neuron = (unit, None) if self.kind.units == "head" else (None, unit)
                    yield Site(self.kind.name, layer, head, neuron, place)


@dataclass(frozen=True)
class Choice:
    """Which sites of the kinds named in `site`; None is all of them."""

    site: list[str] | str
    by: str
    layers: list[int] | int | None
    heads: list[int] | int | None
    neurons: list[int] | int | None
    positions: Chosen

    @property
    def subset(self) -> str:
        """The name of the choice, empty if it is all sites of their kind."""
        chosen = {key: _list(getattr(self, key)) for key in ("layers", "heads", "neurons", "positions")}
        return " ".join(f"{key}={','.join(map(str, value))}" for key, value in chosen.items() if value is not None)

    def grids(self, experiment: Experiment) -> list[Grid]:
        """The chosen sites of a model, a grid a kind.

        Raises
        ------
        ConfigError
            A kind, layer, head, neuron or position that the model or the pairs do not have.
        """
        kinds = list(dict.fromkeys(_list(self.site) or []))
        if not kinds:
            raise ConfigError(f"patch.site is empty: choose from {', '.join(KINDS)}")
        for key, units in (("heads", "head"), ("neurons", "neuron")):
            if getattr(self, key) is not None and not any(k in KINDS and KINDS[k].units == units for k in kinds):
                raise ConfigError(f"patch.{key} has no effect with patch.site={','.join(kinds)}: leave it out")
        return [self._grid(experiment, kind) for kind in kinds]

    def _grid(self, experiment: Experiment, name: str) -> Grid:
        if name not in KINDS:
            raise ConfigError(f"patch.site={name} is not known: choose from {', '.join(KINDS)}")
        kind, model = KINDS[name], experiment.model
        _require(kind, model)
        ways = WAYS[kind.units]
        by = ways[0] if self.by == "auto" else self.by
        if by not in ways:
            raise ConfigError(f"patch.by={by} does not fit patch.site={name}: choose auto or {' or '.join(ways)}")
        layers = _chosen("layers", self.layers, len(model.layers))
        units: tuple[int | None, ...] = (None,)
        if by.startswith("head"):
            units = _chosen("heads", self.heads, model.config.n_heads)
        elif by.startswith("neuron"):
            mlp = model.layers[0].mlp
            assert mlp is not None
            units = _chosen("neurons", self.neurons, mlp.W_out.shape[0])
        elif self.heads is not None and kind.units == "head":
            raise ConfigError(f"patch.heads has no effect with patch.by={by}: choose patch.by=head or head_position")
        return Grid(kind, by, layers, units, places(experiment, self.positions, apart=by.endswith("position")))


@dataclass(frozen=True)
class SiteSettings(PatchOptions):
    """Which sites are patched, and which way."""

    name: str = ""
    site: list[str] | str = option(
        "head_output",
        "resid_pre, resid_mid, resid_post, attn_out, mlp_out, head_output, q, k, v, pattern or neuron; [q,k]"
        " for several",
    )
    by: str = option(
        "auto",
        "how the sites of a layer are told apart: position, head, head_position, neuron, neuron_position;"
        " auto: head, neuron or else position",
        ("auto", *dict.fromkeys(way for ways in WAYS.values() for way in ways)),
    )
    direction: str = option(
        "both",
        "noise: corrupted value into the clean run; denoise: clean value into the corrupted run; both",
        (*DIRECTIONS, "both"),
    )
    layers: list[int] | int | None = option(None, "those to patch, such as [0,3]; null is all")
    heads: list[int] | int | None = option(None, "the same for heads")
    neurons: list[int] | int | None = option(None, "the same for neurons")
    positions: list[int | str] | int | str | None = option(
        None,
        'indices, labels of the task and spans, such as [S2,-1,"2:5"]; null is all. By head or neuron they are'
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
    def choice(self) -> Choice:
        return Choice(self.site, self.by, self.layers, self.heads, self.neurons, self.positions)


def check_sites(experiment: Experiment, settings: SiteSettings) -> list[Grid]:
    """The sites that would be patched, a grid a kind; what cannot be done is refused.

    Raises
    ------
    ConfigError
        See `Choice.grids`; an ablation other than `corrupted`.
    TaskError
        The metric is the same on clean and corrupted prompts, so that there is nothing to recover.
    """
    check_ablation(experiment)
    grids = settings.choice.grids(experiment)
    check_scale(experiment)
    return grids


def _require(kind: Kind, model: LanguageModel) -> None:
    """ConfigError where a model has no sites of a kind."""
    if kind.name in ("resid_mid", "mlp_out", "neuron") and model.layers[0].mlp is None:
        raise ConfigError(f"patch.site={kind.name}: {model.name} has no MLPs; choose another site")
    if kind.name == "resid_mid" and model.config.parallel_attn_mlp:
        raise ConfigError(
            f"patch.site=resid_mid: attention and MLP of {model.name} work in parallel, so nothing is between them;"
            " choose resid_pre or resid_post"
        )


def _list(value: Any) -> Sequence[Any] | None:
    return value if value is None or isinstance(value, list) else [value]


def _chosen(key: str, value: list[int] | int | None, count: int) -> tuple[int, ...]:
    """All of `count`, or those that were chosen."""
    chosen = _list(value)
    if chosen is None:
        return tuple(range(count))
    if not chosen or (wrong := [i for i in chosen if not 0 <= i < count]):
        given = "[]" if not chosen else wrong[0]
        raise ConfigError(f"patch.{key}={given} is not there: give numbers from 0 to {count - 1}, or null for all")
    return tuple(dict.fromkeys(chosen))
