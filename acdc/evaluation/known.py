"""Every circuit that is known for a task and a model."""

from __future__ import annotations

from pathlib import Path

from acdc.errors import ConfigError
from acdc.evaluation.derive import derive_truth
from acdc.evaluation.ground_truth import Truth, load_truth, names, published
from acdc.experiment import Experiment
from acdc.graph import Graph


def known_circuits(
    experiment: Experiment, projection_edges: bool = False, own: str | Path | None = None
) -> tuple[dict[str, Truth], list[str]]:
    """Return every known circuit of the experiment's task and model by its label, and why others are missing.

    Parameters
    ----------
    experiment : Experiment
    projection_edges : bool
        Whether the circuits to grade have projection edges.
    own : str or Path, optional
        A circuit file of the user's, taken for true too.
    """
    task, graph = experiment.task.name, Graph(experiment.model.config, projection_edges)
    truths: dict[str, Truth] = {}
    absent: list[str] = []
    if own is not None:
        truths["file"] = load_truth(own, graph)
    try:
        truths["derived"] = derive_truth(experiment, projection_edges)
    except ConfigError as error:
        absent.append(str(error))
    # The resample set is one of corrupted ablation and no other; that of zero ablation stands beside it.
    resample = f"{task}_resample" if experiment.ablation.name == "corrupted" else ""
    wanted = {"published": task, "published_resample": resample}
    wanted = {label: name for label, name in wanted.items() if name in names()}
    for label, name in wanted.items():
        try:
            truths[label] = published(name, graph)
        except ConfigError as error:
            absent.append(str(error))
    if not wanted:
        absent.append(f"no circuit is published for the task {task}")
    absent += [f"the known circuit {label} has no edges here" for label, truth in truths.items() if not truth.edges]
    return {label: truth for label, truth in truths.items() if truth.edges}, absent
