"""Everything a run is told, as dataclasses; `conf/` repeats their defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from acdc import discovery, patching, tasks
from acdc.ablation import AblationSettings
from acdc.errors import ConfigError
from acdc.evaluation import completeness, random_circuits
from acdc.evaluation.method_table import usual_sizes
from acdc.graph import GraphSettings
from acdc.metrics import METRICS
from acdc.model.load import ModelSettings
from acdc.settings import from_mapping
from acdc.tasks.base import TaskSettings
from acdc.tracking import TrackerSettings

CHECKS = ("error", "warn", "off")
PATHS = ("path", "frequencies", "truth", "ranking")  # keys whose values are files or folders; of the last, some are


@dataclass(frozen=True)
class JobSettings:
    """`name`: what to do; one of `JOBS`."""

    name: str = "discover"

    def __post_init__(self) -> None:
        if self.name not in JOBS:
            raise ConfigError(f"job={self.name} does not exist; choose one of {', '.join(JOBS)}")


PARTS = ("faithfulness", "completeness", "minimality", "hypotheses", "areas", "stability", "grades")
OF_SEVERAL = ("faithfulness", "grades")  # what is asked of several circuits unless told otherwise


@dataclass(frozen=True)
class EvaluateSettings(JobSettings):
    """Of `job=evaluate`.

    Attributes
    ----------
    parts: some of `PARTS`; None is all for one circuit (stability with `stability` runs only), `OF_SEVERAL` for more.
    seed: of everything that is drawn here. random: random circuits of the same size to compare with, 0 for none.
        random_kind: `paths` or `edges`.
    bootstrap: resamples of the pairs, 0 for no intervals. confidence: of the intervals.
    fresh_seed: None is the seed behind the task's. fresh_size: pairs; None is as many as the task's, 0 none.
    scrubs: draws of causal scrubbing, 0 for none.
    knockouts: sets that are knocked out. knockout_kind: `nodes` or `edges`. knockout_size: of each; None draws it too.
    threshold: τ for minimality; None is that of the circuit's file. prune: prune again until no edge is below it.
    epsilon: of the equivalence test. permutations: of the independence test. inflated, quantile: of the minimality
        test, circuits with a random path and the share of them that an edge should beat.
    stability: how often the circuit is found again, for each kind of change; 0 is not.
    absolute: rank scores by their size, whatever their sign. truth: a circuit file of your own to grade against,
        besides the known circuits of the task.
    """

    name: str = "evaluate"
    parts: list[str] | None = None
    seed: int = 0
    random: int = 10
    random_kind: str = "paths"
    bootstrap: int = 1000
    confidence: float = 0.95
    fresh_seed: int | None = None
    fresh_size: int | None = None
    scrubs: int = 10
    knockouts: int = 50
    knockout_kind: str = "nodes"
    knockout_size: int | None = None
    threshold: float | None = None
    prune: bool = False
    epsilon: float = 0.1
    permutations: int = 1000
    inflated: int = 100
    quantile: float = 0.9
    stability: int = 0
    absolute: bool = False
    truth: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts is not None and (not self.parts or (set(self.parts) - set(PARTS))):
            wrong = sorted(set(self.parts) - set(PARTS))
            raise ConfigError(f"job.parts={wrong[0] if wrong else '[]'} is not known: choose of {', '.join(PARTS)}")
        for key, choices in (("random_kind", random_circuits.KINDS), ("knockout_kind", completeness.KINDS)):
            if getattr(self, key) not in choices:
                raise ConfigError(f"job.{key}={getattr(self, key)} is not known: choose one of {', '.join(choices)}")
        least = dict.fromkeys(("random", "bootstrap", "scrubs", "stability", "fresh_size"), 0)
        least |= dict.fromkeys(("knockouts", "permutations", "inflated", "knockout_size"), 1)
        for key, smallest in least.items():
            value = getattr(self, key)
            if value is not None and value < smallest:
                raise ConfigError(f"job.{key}={value} is not allowed: give {smallest} or more")
        for key, low, high in (("confidence", 0, 1), ("quantile", 0, 1), ("epsilon", 0, 0.5)):
            if not low < getattr(self, key) < high:
                raise ConfigError(
                    f"job.{key}={getattr(self, key)} is not allowed: give a number between {low} and {high}"
                )
        if self.parts is not None and ("stability" in self.parts) != bool(self.stability):
            has_runs = "has no effect without stability among job.parts" if self.stability else "is no number of runs"
            raise ConfigError(f"job.stability={self.stability} {has_runs}: give both, or neither")
        if self.prune and self.parts is not None and "minimality" not in self.parts:
            raise ConfigError("job.prune=true has no effect without minimality among job.parts: add it")

    def chosen(self, n_circuits: int) -> tuple[str, ...]:
        """The parts for so many circuits, in their order."""
        wanted = self.parts or (PARTS if n_circuits == 1 else OF_SEVERAL)
        dropped = () if self.stability else ("stability",)
        also = ("stability",) if self.stability else ()
        return tuple(part for part in PARTS if part in (*wanted, *also) and part not in dropped)


# Options that say nothing in a comparison, which takes the same number of every method's best edges.
NOT_COMPARED = ("edges", "fraction", "threshold", "absolute", "prune", "path_limit", "compare")


@dataclass(frozen=True)
class CompareSettings(JobSettings):
    """Of `job=compare`.

    Attributes
    ----------
    methods: some of those that score edges; None is all of them. ACDC is there as `acdc_scores`; `random` always is.
    options: by method, its options, such as `{acdc_scores: {nested: true}}`.
    sizes, fractions: numbers of edges, or shares of them rounded down, at which KL is told; None for both takes
        5, 10, 20, 50, … as far as the model's edges go.
    equal_size: how many edges the circuits have that are drawn and compared; None is as many as the known circuit
        has, or else a tenth of all, at most 50.
    absolute: rank edges by the size of their scores, whatever their sign (CPR and CMD have MIB's own rules).
    random: random rankings that the baseline is the mean of. seed: of the first.
    truth: a circuit file of your own to grade against, besides the known circuits of the task.
    """

    name: str = "compare"
    methods: list[str] | None = None
    options: dict[str, Any] | None = None
    sizes: list[int] | None = None
    fractions: list[float] | None = None
    equal_size: int | None = None
    absolute: bool = True
    random: int = 5
    seed: int = 0
    truth: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = [name for name in discovery.METHODS if name != "acdc"]
        if self.methods is not None:
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
        for key, least in (("equal_size", 1), ("random", 1), ("seed", 0)):
            if getattr(self, key) is not None and getattr(self, key) < least:
                raise ConfigError(f"job.{key}={getattr(self, key)} is not allowed: give {least} or more")
        if wrong_sizes := [size for size in self.sizes or () if size < 1]:
            raise ConfigError(f"job.sizes={wrong_sizes[0]} is not allowed: give numbers of edges from 1 up")
        if wrong_shares := [share for share in self.fractions or () if not 0 < share <= 1]:
            raise ConfigError(f"job.fractions={wrong_shares[0]} is not allowed: give shares above 0 and up to 1")
        _ = self.settings

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of every method that is compared, `random` last; ConfigError for an option that is wrong."""
        chosen = [name for name in self.methods or discovery.METHODS if name not in ("acdc", "random")]
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
            known = discovery.load(name).Settings
            alone = {"compare": False} if name == "attribution_to_circuit" else {}  # ACDC has a row of its own
            if options.get("select") == "threshold":
                raise ConfigError(f"job.options.{name}.select=threshold is no order of the edges: give top_n or greedy")
            found[name] = from_mapping(known, {"name": name, **alone, **options}, f"job.options.{name}")
        return found | {"random": discovery.load("random").Settings(seed=self.seed)}

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
    "discover": JobSettings,
    "check": JobSettings,
    "patch": JobSettings,
    "evaluate": EvaluateSettings,
    "compare": CompareSettings,
}


@dataclass(frozen=True)
class MetricSettings:
    """`name`: what is measured; None takes the task's own metric."""

    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and self.name not in METRICS:
            raise ConfigError(f"metric={self.name} is not known: choose one of {', '.join(METRICS)}")


@dataclass(frozen=True)
class RunSettings:
    """Everything a run is told; `config` is the same as a plain mapping, as it was asked.

    `circuit` is a file or folder for the jobs that read one. `given`: the groups and keys that the command line names,
    such as `task` or `task.size`; None counts everything as given.
    """

    job: JobSettings
    model: ModelSettings
    task: TaskSettings
    method: Any
    metric: MetricSettings
    ablation: AblationSettings
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
        groups = [f.name for f in fields(cls) if f.name not in ("circuit", "config", "given")]
        if unknown := [key for key in config if key not in (*groups, "circuit")]:
            raise ConfigError(f"{unknown[0]} does not exist; there are {', '.join(groups)} and circuit")
        if missing := [group for group in groups if not isinstance(config.get(group), Mapping)]:
            raise ConfigError(f"{missing[0]} is missing: give {missing[0]}=OPTION (acdc --help lists them)")
        circuit = config.get("circuit")
        if circuit is not None and not isinstance(circuit, str):
            raise ConfigError(f"circuit={circuit} is not allowed: give a circuit file or a folder of runs, or null")
        config = {group: _with_absolute_paths(config[group], base) for group in groups}
        config["circuit"] = None if circuit is None else _absolute(circuit, base)
        job = from_mapping(JOBS.get(str(config["job"].get("name")), JobSettings), config["job"], "job")
        task = from_mapping(tasks.load(str(config["task"].get("name"))).Settings, config["task"], "task")
        if task.check not in CHECKS:
            raise ConfigError(f"task.check={task.check} is not known: choose one of {', '.join(CHECKS)}")
        return cls(
            job=job,
            model=from_mapping(ModelSettings, config["model"], "model"),
            task=task,
            method=from_mapping(discovery.load(str(config["method"].get("name"))).Settings, config["method"], "method"),
            metric=from_mapping(MetricSettings, config["metric"], "metric"),
            ablation=from_mapping(AblationSettings, config["ablation"], "ablation"),
            patch=from_mapping(patching.load(str(config["patch"].get("name"))).Settings, config["patch"], "patch"),
            tracker=from_mapping(TrackerSettings, config["tracker"], "tracker"),
            graph=from_mapping(GraphSettings, config["graph"], "graph"),
            circuit=config["circuit"],
            config=config,
            given=given,
        )

    @property
    def experiment_key(self) -> tuple[Any, ...]:
        """What the experiment is built from."""
        return self.model, self.task, self.metric.name, self.ablation, self.graph


def _with_absolute_paths(group: Mapping[str, Any], base: Path) -> Mapping[str, Any]:
    given = {key: group[key] for key in PATHS if isinstance(group.get(key), str)}
    is_path = {key: key != "ranking" or value.endswith(".csv") for key, value in given.items()}
    return {**group, **{key: _absolute(value, base) for key, value in given.items() if is_path[key]}}


def _absolute(path: str, base: Path) -> str:
    return os.path.abspath(base / Path(path).expanduser())
