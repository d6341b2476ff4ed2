"""Everything a run is told, as settings; `conf/` is written from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from acdc import patching
from acdc.ablation import ABLATIONS, Ablation
from acdc.discovery import METHODS, Method
from acdc.discovery.random import Random
from acdc.doors import TARGET, Door
from acdc.errors import ConfigError
from acdc.evaluation import completeness, random_circuits
from acdc.evaluation.method_table import usual_sizes
from acdc.graph import GraphSettings
from acdc.metrics import METRICS, Metric
from acdc.model.load import ModelSettings
from acdc.settings import Settings, as_mapping, from_mapping, option
from acdc.tasks import TASKS
from acdc.tasks.base import TaskSettings
from acdc.tracking import TrackerSettings

PATHS = ("path", "frequencies", "truth", "ranking")  # keys whose values are files or folders; of the last, some are


@dataclass(frozen=True)
class JobSettings(Settings):
    """A job: what to do."""

    GROUP: ClassVar[str] = "job"

    name: str = ""


@dataclass(frozen=True)
class DiscoverSettings(JobSettings):
    """Find a circuit, measure it, draw it."""

    name: str = "discover"


@dataclass(frozen=True)
class CheckSettings(JobSettings):
    """Look at the pairs and at what the model makes of them; find nothing."""

    name: str = "check"


@dataclass(frozen=True)
class PatchSettings(JobSettings):
    """Put values of one run into another, site by site: what matters, and where (patch.* says which sites)."""

    name: str = "patch"


PARTS = ("faithfulness", "completeness", "minimality", "hypotheses", "areas", "stability", "grades")
OF_SEVERAL = ("faithfulness", "grades")  # what is asked of several circuits unless told otherwise


@dataclass(frozen=True)
class EvaluateSettings(JobSettings):
    """Measure and grade circuits: job=evaluate circuit=FILE, or a folder of runs."""

    name: str = "evaluate"
    parts: list[str] | None = option(
        None,
        "some of [faithfulness,completeness,minimality,hypotheses,areas,stability,grades]; null: all for one"
        " circuit, faithfulness and grades for several",
        PARTS,
    )
    seed: int = option(0, "seeds every draw: random circuits, resamples, knock-outs, orders")
    random: int = option(10, "random circuits of the same size to compare with; 0 for none", least=0)
    random_kind: str = option(
        "paths",
        "paths: random paths from input to logits; edges: any edges",
        random_circuits.KINDS,
    )
    bootstrap: int = option(1000, "resamples of the pairs for the intervals; 0 for no intervals", least=0)
    confidence: float = option(0.95, "of the intervals", above=0, below=1)
    fresh_seed: int | None = option(
        None,
        "of the task, for pairs that the circuit was not found on; null: the seed behind the task's",
    )
    fresh_size: int | None = option(None, "how many fresh pairs; null: as many as the task's; 0 for none", least=0)
    scrubs: int = option(10, "draws of causal scrubbing; 0 for none", least=0)
    knockouts: int = option(50, "completeness: how many random sets are knocked out of circuit and model", least=1)
    knockout_kind: str = option("nodes", "nodes (heads and MLPs of the circuit) or edges", completeness.KINDS)
    knockout_size: int | None = option(None, "how many of them at once; null draws the number too", least=1)
    threshold: float | None = option(
        None,
        "minimality: what an edge should be worth; null: the threshold that the circuit was found with",
    )
    prune: bool = option(False, "prune again until no edge is worth less, and write circuit.pruned.json")
    epsilon: float = option(
        0.1,
        "equivalence test: how far from 1/2 the chance to outdo the model may be",
        above=0,
        below=0.5,
    )
    permutations: int = option(1000, "of the independence test", least=1)
    inflated: int = option(100, "minimality test: circuits with a random path added", least=1)
    quantile: float = option(
        0.9,
        "minimality test: share of the random edges that an edge should outdo",
        above=0,
        below=1,
    )
    stability: int = option(
        0,
        "how often to find the circuit again: on resampled pairs, by other seeds, in other orders; 0: never",
        least=0,
    )
    absolute: bool = option(False, "rank scores by their size, whatever their sign")
    truth: str | None = option(None, "a circuit file of your own to grade against, besides the task's known circuits")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts == []:
            raise ConfigError(f"job.parts=[] is not allowed: choose of {', '.join(PARTS)}")
        if self.parts is not None and ("stability" in self.parts) != bool(self.stability):
            has_runs = "has no effect without stability among job.parts" if self.stability else "is no number of runs"
            raise ConfigError(f"job.stability={self.stability} {has_runs}: give both, or neither")
        if self.prune and self.parts is not None and "minimality" not in self.parts:
            raise ConfigError("job.prune=true has no effect without minimality among job.parts: add it")

    def chosen(self, n_circuits: int) -> tuple[str, ...]:
        """The parts that are measured of this number of circuits, in their order."""
        wanted = self.parts or (PARTS if n_circuits == 1 else OF_SEVERAL)
        dropped = () if self.stability else ("stability",)
        also = ("stability",) if self.stability else ()
        return tuple(part for part in PARTS if part in (*wanted, *also) and part not in dropped)


# Options that say nothing in a comparison, which takes the same number of every method's best edges.
NOT_COMPARED = ("edges", "fraction", "threshold", "absolute", "prune", "path_limit", "compare")


@dataclass(frozen=True)
class CompareSettings(JobSettings):
    """Judge the discovery methods in one table: on the same pairs, metric and ablation."""

    name: str = "compare"
    methods: list[str] | None = option(
        None,
        "some of [acdc_scores,eap,eap_ig,exact,…]; null: all; ACDC is acdc_scores, random is always there",
    )
    options: dict[str, Any] | None = option(
        None,
        "of single methods, such as {acdc_scores:{nested:true},edge_pruning:{steps:200}}; null: each method's defaults",
    )
    sizes: list[int] | None = option(
        None,
        "numbers of edges at which KL is told; null: 5, 10, 20, 50, … as far as the model's edges go, six at most",
        least=1,
    )
    fractions: list[float] | None = option(
        None,
        "the same as shares of all edges, such as [0.01,0.05]",
        above=0,
        most=1,
    )
    equal_size: int | None = option(
        None,
        "edges of the circuits that are drawn and compared; null: as many as the known circuit has, or else a"
        " tenth of all, at most 50",
        least=1,
    )
    absolute: bool = option(
        True,
        "rank edges by the size of their scores, whatever their sign; CPR and CMD have MIB's own rules",
    )
    random: int = option(5, "random rankings that the baseline is the mean of", least=1)
    seed: int = option(0, "of the first of them", least=0)
    truth: str | None = option(None, "a circuit file of your own to grade against, besides the task's known circuits")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.methods is not None:
            allowed = [name for name in METHODS.names() if name != "acdc"]
            if "acdc" in self.methods:
                raise ConfigError(
                    "job.methods=acdc gives one circuit, not a circuit of every size: give acdc_scores, which is ACDC"
                    " over a grid of thresholds"
                )
            if not self.methods or set(self.methods) - set(allowed):
                wrong = sorted(set(self.methods) - set(allowed))
                raise ConfigError(
                    f"job.methods={wrong[0] if wrong else '[]'} is not known: choose of {', '.join(allowed)}"
                )
        _ = self.settings

    @property
    def settings(self) -> dict[str, Method]:
        """The settings of every method that is compared, `random` last; ConfigError for an option that is wrong."""
        chosen = [name for name in self.methods or METHODS.built_in if name not in ("acdc", "random")]
        given = self.options or {}
        if strangers := [name for name in given if name not in chosen]:
            why = "is drawn by job.random and job.seed" if strangers[0] == "random" else "is not among job.methods"
            raise ConfigError(f"job.options has {strangers[0]}, which {why}: choose of {', '.join(chosen) or 'none'}")
        found = {}
        for name in dict.fromkeys(chosen):
            options = given.get(name) or {}
            if not isinstance(options, Mapping):
                raise ConfigError(f"job.options.{name}={options} is not allowed: give a mapping such as {{steps: 5}}")
            if idle := [key for key in options if key in NOT_COMPARED]:
                raise ConfigError(
                    f"job.options.{name}.{idle[0]} has no effect in a comparison, which takes every method's best"
                    " edges: see job.sizes, job.equal_size and job.absolute"
                )
            known = METHODS.load(name)
            if options.get("select") == "threshold":
                raise ConfigError(f"job.options.{name}.select=threshold is no order of the edges: give top_n or greedy")
            found[name] = from_mapping(known, {"name": name, **known.in_comparison, **options}, f"job.options.{name}")
        return found | {"random": Random(seed=self.seed)}

    def sizes_of(self, n_edges: int) -> tuple[int, ...]:
        """The sizes at which KL is told, in order; ConfigError for a size of `job` that is larger than the model."""
        if self.equal_size is not None and self.equal_size > n_edges:
            raise ConfigError(f"job.equal_size={self.equal_size} is not allowed: this model has {n_edges:,} edges")
        if not self.sizes and not self.fractions:
            return usual_sizes(n_edges)
        sizes = {*(self.sizes or ()), *(max(1, int(share * n_edges)) for share in self.fractions or ())}
        if max(sizes) > n_edges:
            raise ConfigError(f"job.sizes={max(sizes)} is not allowed: this model has {n_edges:,} edges")
        return tuple(sorted(sizes))


# The jobs with their settings; each is a module of this package.
JOBS: dict[str, type[JobSettings]] = {
    "discover": DiscoverSettings,
    "check": CheckSettings,
    "patch": PatchSettings,
    "evaluate": EvaluateSettings,
    "compare": CompareSettings,
}


@dataclass(frozen=True)
class RunSettings:
    """Everything a run is told; `config` is the same as a plain mapping, as it was asked.

    `circuit` is a file or folder for the jobs that read one. `given`: the groups and keys that the command line names,
    such as `task` or `task.size`; None counts everything as given.
    """

    job: JobSettings
    model: ModelSettings
    task: TaskSettings
    method: Method
    metric: Metric | None
    ablation: Ablation
    patch: Any
    tracker: TrackerSettings
    graph: GraphSettings
    circuit: str | None
    config: Mapping[str, Any] = field(repr=False)
    given: frozenset[str] | None = field(default=None, repr=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], base: Path, given: frozenset[str] | None = None) -> RunSettings:
        """Settings from the composed configuration.

        Parameters
        ----------
        base: the folder that relative paths start from; `config` gets them absolute, so that a run can be resumed
            from anywhere.

        Raises
        ------
        ConfigError: any wrong key, type or value.
        """
        if unknown := [key for key in config if key not in (*GROUPS, "circuit")]:
            raise ConfigError(f"{unknown[0]} does not exist; there are {', '.join(GROUPS)} and circuit")
        if missing := [group for group in GROUPS if not isinstance(config.get(group), Mapping)]:
            raise ConfigError(f"{missing[0]} is missing: give {missing[0]}=OPTION (acdc --help lists them)")
        circuit = config.get("circuit")
        if circuit is not None and not isinstance(circuit, str):
            raise ConfigError(f"circuit={circuit} is not allowed: give a circuit file or a folder of runs, or null")
        config = {group: _with_absolute_paths(config[group], base) for group in GROUPS}
        config["circuit"] = None if circuit is None else _absolute(circuit, base)
        return cls(
            **{group: settings_of(group, config[group]) for group in GROUPS},
            circuit=config["circuit"],
            config=config,
            given=given,
        )

    @property
    def experiment_key(self) -> tuple[Any, ...]:
        """What the experiment is built from."""
        return self.model, self.task, self.metric, self.ablation, self.graph


DOORS: dict[str, Door[Any]] = {"task": TASKS, "method": METHODS, "metric": METRICS, "ablation": ABLATIONS}
CHOICES = {  # the groups of which a run chooses one option: what is chosen unless told otherwise, and what it is
    "job": ("discover", "what to do"),
    "model": (
        "pocket",
        "the bundled one (pocket), a checkpoint folder (local) or one by name, from the Hugging Face hub",
    ),
    "task": ("ioi", "pairs of clean and corrupted prompts and what is measured on them"),
    "metric": ("default", "what is measured; default is the task's own"),
    "ablation": ("corrupted", "what a removed edge carries instead"),
    "method": ("acdc", "how a circuit is found"),
    "patch": ("activation", "for job=patch: what is patched"),
    "tracker": ("none", "where the run is followed, besides the console"),
}
GROUPS = (*CHOICES, "graph")
ABOUT_CIRCUIT = (
    "a circuit file (circuit.json, GraphML, MIB's JSON or .pt, edges of the original ACDC, scores of AutoCircuit) or a"
    " folder of runs, for job=evaluate"
)


def settings_of(group: str, values: Mapping[str, Any]) -> Any:
    """The settings of a group; None for `metric=default`, the task's own.

    Raises
    ------
    ConfigError
        A wrong name, key, type or value, or something of one's own that cannot be used.
    """
    name = str(values.get("name"))
    if group == "metric" and values.get("name") is None and values.get(TARGET) is None:
        if more := [key for key in values if key not in ("name", TARGET)]:
            raise ConfigError(f"metric.{more[0]} does not exist; metric has name")
        return None
    if group in DOORS:
        return DOORS[group].settings(values)
    if group == "job":
        if name not in JOBS:
            raise ConfigError(f"job={name} does not exist; choose one of {', '.join(JOBS)}")
        return from_mapping(JOBS[name], values)
    if group == "patch":
        return from_mapping(patching.load(name).Settings, values, "patch")
    if group == "model":  # its `_target_` is a family
        family = {"family": values[TARGET]} if values.get(TARGET) is not None else {}
        return from_mapping(ModelSettings, {key: value for key, value in values.items() if key != TARGET} | family)
    return from_mapping({"tracker": TrackerSettings, "graph": GraphSettings}[group], values)


def as_group(group: str, settings: Any) -> dict[str, Any]:
    """The mapping that `settings_of` reads."""
    return DOORS[group].as_mapping(settings) if group in DOORS else as_mapping(settings)


def _with_absolute_paths(group: Mapping[str, Any], base: Path) -> Mapping[str, Any]:
    given = {key: group[key] for key in PATHS if isinstance(group.get(key), str)}
    is_path = {key: key != "ranking" or value.endswith(".csv") for key, value in given.items()}
    return {**group, **{key: _absolute(value, base) for key, value in given.items() if is_path[key]}}


def _absolute(path: str, base: Path) -> str:
    return os.path.abspath(base / Path(path).expanduser())
