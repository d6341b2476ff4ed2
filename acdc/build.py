"""From settings to an `Experiment`: the model is loaded, pairs are made, tokenised, checked and filtered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acdc.ablation import ABLATIONS, Ablation
from acdc.errors import ConfigError
from acdc.evaluation.pair_filter import keep_good
from acdc.experiment import Experiment, pairs_of
from acdc.graph import GraphSettings
from acdc.metrics import METRICS, Metric
from acdc.model.load import ModelSettings, adopt_model, load_model
from acdc.model.parts import LanguageModel
from acdc.process import undisturbed
from acdc.tasks import TASKS
from acdc.tasks.base import Task, TaskSettings


@undisturbed
def build(
    model: Any = None,
    task: str | TaskSettings | Task = "ioi",
    metric: str | Metric | None = None,
    ablation: str | Ablation = "corrupted",
    graph: GraphSettings | None = None,
    tokenizer: Any = None,
    **task_options: Any,
) -> Experiment:
    """Load, tokenise, check.

    Parameters
    ----------
    model : `pocket`, a name that TransformerLens can fetch, a checkpoint folder, settings, a TransformerBridge, a
        Hugging Face model (with `tokenizer`), or a loaded model. None takes the task's own, where it needs one, and
        else `pocket`.
    task : a task's name with its options as further keywords (`size=50, filter=["correct"]`), its settings, or a Task
        of your own.
    metric : a name or a metric of your own; None takes the task's own.
    ablation : a name or an ablation of your own.
    graph : what is a node of its own; None as the model has it. A loaded model keeps its graph.
    tokenizer : of a Hugging Face model; None where prompts are token ids.

    Raises
    ------
    ConfigError, ModelError, TaskError
        Whatever cannot be had, each in one line.
    """
    if isinstance(task, str):
        task = TASKS.chosen(task, task_options)
    elif task_options:
        given = sorted(task_options)[0]
        raise ConfigError(f"the task is given whole, so {given} cannot be given beside it: put it into the task")
    bridge = None  # kept until the parts have been compared with it
    if model is None:
        model = (task.model if isinstance(task, Task) else task.own_model) or "pocket"
    if isinstance(model, (str, Path, ModelSettings)):
        model, bridge = load_model(_model_settings(model), graph)
    elif not isinstance(model, LanguageModel):
        model = adopt_model(model, tokenizer, graph)
    assert isinstance(model, LanguageModel)
    model = model.trainable()
    made, pairs, notes = pairs_of(task, model)
    experiment = Experiment.of(
        model,
        made,
        pairs,
        METRICS.chosen(made.metric if metric is None else metric),
        ABLATIONS.chosen(ablation),
        notes=(*model.notes, *notes),
    )
    del bridge
    return keep_good(experiment, task) if isinstance(task, TaskSettings) and task.filter else experiment


def _model_settings(model: str | Path | ModelSettings) -> ModelSettings:
    if isinstance(model, ModelSettings):
        return model
    if isinstance(model, Path) or model.startswith((".", "~", "/")) or Path(model).is_dir():
        return ModelSettings(name="local", path=str(model))
    return ModelSettings(name=model)
