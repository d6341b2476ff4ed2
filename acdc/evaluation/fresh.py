"""Pairs of the same task that a circuit was not found on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from acdc.errors import AcdcError, TaskError
from acdc.evaluation.pair_filter import keep_good
from acdc.experiment import Experiment
from acdc.tasks.base import TaskSettings


def fresh_experiment(
    experiment: Experiment, settings: TaskSettings, seed: int | None = None, size: int | None = None
) -> Experiment:
    """Make the experiment on other pairs: the same task, model, metric and ablation, another seed.

    Pairs whose clean prompt occurs among the experiment's own are dropped, and so are repetitions. Of a pairs file, the
    fresh pairs are those that `task.size` leaves out.

    Parameters
    ----------
    experiment : Experiment
    settings : TaskSettings
    seed : int, optional
        None takes the one after the task's own.
    size : int, optional
        How many pairs; None takes as many as the experiment has. There are fewer where the task has no more.

    Raises
    ------
    TaskError
        The task has no other pairs.
    """
    wanted = size or len(experiment.pairs)
    seed = settings.seed + 1 if seed is None else seed
    size_of_other: Any = None if settings.from_file else wanted + len(experiment.pairs)
    if settings.from_file and settings.size is None:
        raise TaskError(
            f"the task {settings.name} has no fresh pairs: the experiment has all of the file's (give task.size)"
        )
    try:
        other = experiment.with_task(replace(settings, seed=seed, filter=[], size=size_of_other))
    except AcdcError as error:
        raise TaskError(f"no fresh pairs of the task {settings.name} can be made: {error}") from error
    seen, new = {pair.clean for pair in experiment.pairs}, []
    for i, pair in enumerate(other.pairs):
        if pair.clean not in seen:
            seen.add(pair.clean)
            new.append(i)
    if not new:
        raise TaskError(f"the task {settings.name} has no fresh pairs: every clean prompt it makes occurs already")
    fresh = other.with_pairs(new)
    if settings.filter:
        fresh = keep_good(fresh, settings)
    return fresh.with_pairs(range(min(wanted, len(fresh.pairs))))
