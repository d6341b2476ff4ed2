"""`job=evaluate circuit=FILE`: how well circuits do, and how they stand against known ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from acdc.evaluation.areas import areas_of_circuits
from acdc.evaluation.completeness import completeness_of_circuits
from acdc.evaluation.faithfulness import Asked, faithfulness_of_circuits
from acdc.evaluation.grading import grades_of_circuits
from acdc.evaluation.hypothesis import hypotheses_of_circuits
from acdc.evaluation.minimality import minimality_of_circuits
from acdc.evaluation.part import Evaluation, Part
from acdc.evaluation.random_circuits import random_circuits
from acdc.evaluation.stability import stability_of_circuits
from acdc.jobs.common import progress_bar, write_in_one_go
from acdc.jobs.prepare import Prepared
from acdc.jobs.settings import EvaluateSettings
from acdc.report.evaluate import view
from acdc.report.view import Subject, View


def run(prepared: Prepared, folder: Path, console: Console) -> None:
    """Evaluate the circuits and write everything about them into an existing folder."""
    experiment, circuits, job = prepared.experiment, prepared.circuits, prepared.settings.job
    assert isinstance(job, EvaluateSettings)

    def compute() -> tuple[Evaluation, View]:
        about = {"task": experiment.task.name, "model": experiment.model.name, "metric": experiment.metric_name}
        about |= {"ablation": experiment.ablation.name}
        parts = parts_of(prepared, job, console)
        chosen = [parts[name]() for name in job.chosen(len(circuits))]
        evaluation = Evaluation({**about, "circuits": list(circuits), "notes": list(prepared.notes)}, chosen)
        return evaluation, view(evaluation, Subject.of(experiment), list(circuits), experiment.ablation.name)

    write_in_one_go(prepared, folder, console, compute)


def parts_of(prepared: Prepared, job: EvaluateSettings, console: Console) -> dict[str, Callable[[], Part]]:
    """Return what computes each part of the evaluation, by its name in `job.parts`."""
    experiment, circuits, task = prepared.experiment, prepared.circuits, prepared.settings.task
    randoms = {name: random_circuits(one, job.random, job.seed, job.random_kind) for name, one in circuits.items()}

    def stability() -> Part:
        with progress_bar(console, "finding again", "searches") as progress:
            return stability_of_circuits(experiment, circuits, randoms, task, job.stability, job.seed, progress)

    asked = Asked(job.fresh_size, job.fresh_seed, job.bootstrap, job.confidence, job.scrubs, job.seed)
    return {
        "faithfulness": lambda: faithfulness_of_circuits(experiment, circuits, randoms, task, asked),
        "completeness": lambda: completeness_of_circuits(
            experiment, circuits, randoms, job.knockouts, job.knockout_kind, job.knockout_size, job.seed
        ),
        "minimality": lambda: minimality_of_circuits(experiment, circuits, randoms, job.threshold, job.prune, job.seed),
        "hypotheses": lambda: hypotheses_of_circuits(
            experiment, circuits, randoms, job.epsilon, job.permutations, job.inflated, job.quantile, job.seed
        ),
        "areas": lambda: areas_of_circuits(experiment, circuits, job.random, job.seed),
        "stability": stability,
        "grades": lambda: grades_of_circuits(experiment, circuits, randoms, job.absolute, job.truth),
    }
