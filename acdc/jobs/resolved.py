"""`resolved.yaml`: every setting of a run as it is really used. What was asked stands in `.hydra/`."""

from __future__ import annotations

from typing import Any

from yaml import safe_dump

from acdc.evaluation.known import known_circuits
from acdc.evaluation.method_table import usual_equal_size
from acdc.evaluation.minimality import threshold_of
from acdc.jobs.prepare import Prepared
from acdc.jobs.settings import CompareSettings, EvaluateSettings, as_group


def resolved(prepared: Prepared) -> dict[str, Any]:
    """The groups that the run's job uses, with the values that stand for null, `auto` and `default`."""
    settings, experiment = prepared.settings, prepared.experiment
    model = {"device": str(experiment.model.device), "dtype": str(experiment.model.dtype).removeprefix("torch.")}
    groups = {
        "job": as_group("job", settings.job) | _of_job(prepared),
        "model": as_group("model", settings.model) | model,
        "task": as_group("task", settings.task),
        "metric": as_group("metric", experiment.measured),
        "ablation": as_group("ablation", settings.ablation),
        "graph": {"split_embedding": experiment.graph.config.split_embedding},
        "tracker": as_group("tracker", settings.tracker),
    }
    if settings.job.name == "discover":
        groups["method"] = as_group("method", settings.method) | settings.method.resolved(experiment)
    if settings.job.name == "patch":
        groups["patch"] = as_group("patch", settings.patch)
    return groups if settings.circuit is None else groups | {"circuit": settings.circuit}


def resolved_yaml(prepared: Prepared) -> str:
    """The same as text, for `resolved.yaml` and the report."""
    return safe_dump(resolved(prepared), sort_keys=False, allow_unicode=True)


def _of_job(prepared: Prepared) -> dict[str, Any]:
    job, experiment = prepared.settings.job, prepared.experiment
    if isinstance(job, EvaluateSettings):
        circuits = list(prepared.circuits.values())
        values: dict[str, Any] = {
            "parts": list(job.chosen(len(circuits))),
            "fresh_seed": prepared.settings.task.seed + 1 if job.fresh_seed is None else job.fresh_seed,
            "fresh_size": len(experiment.pairs) if job.fresh_size is None else job.fresh_size,
        }
        if len(circuits) == 1 and job.threshold is None:
            values["threshold"] = threshold_of(circuits[0], experiment.metric_name)
        return values
    if isinstance(job, CompareSettings):
        n_edges = len(experiment.graph)
        size = job.equal_size or usual_equal_size(n_edges, known_circuits(experiment, own=job.truth)[0])
        methods = [name for name in job.settings if name != "random"]
        return {"methods": methods, "sizes": list(job.sizes_of(n_edges)), "fractions": None, "equal_size": size}
    return {}
