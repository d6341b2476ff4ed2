"""What comes before every job: everything that could be refused is looked at, and nothing is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import acdc.build
from acdc import patching
from acdc.circuit import Circuit
from acdc.discovery import Method
from acdc.errors import AcdcError, ConfigError, FormatError, TaskError
from acdc.evaluation.completeness import knockable
from acdc.evaluation.ground_truth import load_truth
from acdc.evaluation.method_table import check_recovery
from acdc.evaluation.minimality import threshold_of
from acdc.evaluation.pair_check import PairCheck, check_task
from acdc.evaluation.stability import settings_of
from acdc.experiment import Experiment
from acdc.formats.reading import read_circuits
from acdc.graph import Graph, GraphSettings
from acdc.jobs.as_found import as_found, differences
from acdc.jobs.settings import CompareSettings, EvaluateSettings, RunSettings
from acdc.process import undisturbed
from acdc.sweep import named
from acdc.tracking import check_tracker

_LONGEST_TAG = 64  # of W&B


@dataclass(frozen=True)
class Prepared:
    """A run that can start.

    Attributes
    ----------
    check: of the pairs; None with `task.check=off`. circuits: by name, those that the job reads.
    notes: what the user should hear.
    """

    settings: RunSettings
    experiment: Experiment
    notes: tuple[str, ...]
    check: PairCheck | None = None
    circuits: dict[str, Circuit] = dataclasses.field(default_factory=dict)


@undisturbed
def prepare(
    settings: RunSettings, experiment: Experiment | None = None, of_sweep: tuple[str, str] | None = None
) -> Prepared:
    """Load the model, make and check the pairs.

    Parameters
    ----------
    experiment: one that was built from the same settings, if there is one already.
    of_sweep: the name of the sweep that the run belongs to, and what is its own in it; for the tracker.

    Raises
    ------
    AcdcError: whatever makes the run impossible, and with `task.check=error` whatever makes it doubtful.
    """
    job = settings.job.name
    if settings.circuit is not None and job != "evaluate":
        raise ConfigError(f"circuit=FILE is for job=evaluate; job={job} reads no circuit")
    circuits = {}
    if job == "evaluate":
        if settings.circuit is None:
            raise ConfigError(
                "job=evaluate needs circuit=FILE: a circuit.json, a file of another program's, or a folder of runs"
            )
        circuits = named(read_circuits(settings.circuit), settings.circuit)
        settings = as_found(settings, circuits)
    settings = replace(settings, tracker=settings.tracker.really(**_tracked(settings, of_sweep)))
    check_tracker(settings.tracker)
    experiment = experiment or build(settings, circuits)
    circuits = {name: circuit.of_model(experiment.graph, name) for name, circuit in circuits.items()}
    if len({circuit.graph.projection_edges for circuit in circuits.values()}) > 1:
        raise FormatError(
            f"circuit={settings.circuit}: some of these circuits have projection edges, some have none: give circuits"
            " found with the same method.projection_edges"
        )
    if isinstance(settings.job, EvaluateSettings):
        _check_evaluation(settings.job, circuits, experiment)
    if isinstance(settings.job, CompareSettings):
        _check_comparison(settings.job, experiment)
    if job == "discover":
        settings.method.check(experiment)
    if job == "patch":
        patching.load(settings.patch.name).check(experiment, settings.patch)
    wanted = settings.task.check != "off" or job == "check"
    check = check_task(experiment, settings.task) if wanted else None
    problems = check.problems() if check is not None and settings.task.check != "off" else []
    if problems and settings.task.check == "error" and job != "check":  # it shows them first
        raise TaskError(f"task.check=error: {'; '.join(problems)}")
    notes = [*experiment.notes, *differences(settings, experiment, circuits), *problems]
    if job == "discover" and experiment.graph.config.split_embedding:
        notes.append(
            "circuit.mib.json is not written, nor is circuit.mib.pt: MIB's formats know one embedding, not token and"
            " position apart"
        )
    return Prepared(settings, experiment, tuple(notes), check, circuits)


def _check_evaluation(job: EvaluateSettings, circuits: dict[str, Circuit], experiment: Experiment) -> None:
    """Refuse now what the parts of an evaluation would have to refuse later."""
    if job.truth is not None:
        load_truth(job.truth, Graph(experiment.model.config))
    parts = job.chosen(len(circuits))
    if job.prune and len(circuits) > 1:
        raise ConfigError(f"job.prune=true writes one circuit, and there are {len(circuits)}: give one")
    for name, circuit in circuits.items():
        metric = experiment.metric_name
        if job.prune and job.threshold is None and threshold_of(circuit, metric) is None:
            raise ConfigError(
                f"job.prune=true needs job.threshold=NUMBER: {name} was found without a threshold for metric={metric}"
            )
        if "stability" in parts:
            settings_of(circuit, name)
        there = len(knockable(circuit, job.knockout_kind))
        if "completeness" in parts and there < (job.knockout_size or 0):
            raise ConfigError(
                f"job.knockout_size={job.knockout_size} is more than the {there} {job.knockout_kind} of {name}: give a"
                " smaller number, or null"
            )


def _check_comparison(job: CompareSettings, experiment: Experiment) -> None:
    """Refuse now what a comparison would have to refuse later. A method that does not fit has a row that says so."""
    check_recovery(experiment)
    job.sizes_of(len(experiment.graph))
    if job.truth is not None:
        load_truth(job.truth, experiment.graph)
    refused = {name: why for name, settings in job.settings.items() if (why := refusal(experiment, settings))}
    if refused and len(refused) == len(job.settings) - 1:  # random fits always
        raise ConfigError(f"no method of job.methods fits: {'; '.join(refused.values())}")


def refusal(experiment: Experiment, method: Method) -> str:
    """Why a method does not fit an experiment, in its own words; empty if it does."""
    try:
        method.check(experiment)
    except AcdcError as error:
        return str(error)
    return ""


def _tracked(settings: RunSettings, of_sweep: tuple[str, str] | None) -> dict[str, Any]:
    """How a run of a sweep is tracked unless told otherwise: group, name and tags."""
    if of_sweep is None:
        return {}
    how = {"discover": [settings.method.name], "patch": [settings.patch.name]}.get(settings.job.name, [])
    model = settings.model.name if settings.model.path is None else Path(settings.model.path).name
    tags = [tag[:_LONGEST_TAG] for tag in (settings.task.name, model, *how)]
    return {"group": of_sweep[0], "run_name": of_sweep[1] or None, "tags": list(dict.fromkeys(tags))}


def build(settings: RunSettings, circuits: dict[str, Circuit]) -> Experiment:
    """The experiment; its embedding is split as that of the circuits is, unless the settings say otherwise."""
    graph = settings.graph
    said = [c.graph.config.split_embedding for c in circuits.values() if "split_embedding" not in c.unsaid]
    if said and graph.split_embedding is None:
        graph = GraphSettings(split_embedding=said[0])
    return acdc.build.build(settings.model, settings.task, settings.metric, settings.ablation, graph)


def prepare_all(runs: Sequence[RunSettings]) -> list[str]:
    """Prepare every run of a sweep, so that what one cannot do is known before any begins; returns what they note."""
    notes: list[str] = []
    key, experiment = None, None
    for settings in sorted(runs, key=lambda settings: repr(settings.experiment_key)):
        if settings.experiment_key != key or settings.circuit is not None:
            key, experiment = settings.experiment_key, None
        prepared = prepare(settings, experiment)
        experiment = prepared.experiment
        notes += prepared.notes
    return list(dict.fromkeys(notes))
