"""The page of an evaluation: one file here says what is shown of each part."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from acdc.evaluation.part import Evaluation, Part
from acdc.report.evaluate.shown import Shown
from acdc.report.view import Subject, View


def view(evaluation: Evaluation, subject: Subject, circuits: Sequence[str], ablation: str) -> View:
    """Say what is shown of an evaluation.

    Parameters
    ----------
    evaluation : Evaluation
    subject : Subject
    circuits : sequence of str
        Their names.
    ablation : str
        What removed edges carry.
    """
    every = [_shown(part) for part in evaluation.parts]
    what = circuits[0] if len(circuits) == 1 else f"{len(circuits)} circuits"
    return View(
        f"Evaluation · {subject.task} · {subject.model}",
        f"{what} in {subject.model}, on {subject.pairs} pairs of the task {subject.task} with ablation={ablation}.",
        [section for one in every for section in one.sections],
        [item for one in every for item in one.console],
    )


def _shown(part: Part) -> Shown:
    module = importlib.import_module(f"{__name__}.{part.name}")
    shown: Shown = module.shown(part)
    return shown
