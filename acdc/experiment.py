"""`Experiment`: model, graph, pairs, metric and ablation together; the one thing every algorithm is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acdc import tasks
from acdc.ablation import AblationSettings, Values, ablated_values
from acdc.errors import ConfigError, TaskError
from acdc.graph import Graph, GraphSettings
from acdc.metrics import Metric, Readouts, make_metric
from acdc.model.forward import run
from acdc.model.load import ModelSettings, load_model
from acdc.model.parts import LanguageModel
from acdc.process import undisturbed
from acdc.tasks.base import Task, TaskSettings, TokenizedPair, Tokenizer, tokenize_pairs


@dataclass(frozen=True)
class Batch:
    """The pairs as tensors: one row a pair and corrupted partner.

    `clean`, `corrupted`: `row pos`, padded on the right with 0. `lengths`: `row`. `source`: for each row, the pair.
    """

    clean: Tensor
    corrupted: Tensor
    lengths: Tensor
    source: tuple[int, ...]

    def to(self, device: torch.device | str) -> Batch:
        return dataclasses.replace(
            self, clean=self.clean.to(device), corrupted=self.corrupted.to(device), lengths=self.lengths.to(device)
        )


@dataclass(frozen=True)
class Experiment:
    """Everything a circuit is evaluated with. Made by `Experiment.build`; never changed afterwards."""

    model: LanguageModel
    task: Task
    pairs: tuple[TokenizedPair, ...]
    metric_name: str
    ablation: AblationSettings
    batch: Batch
    readouts: Readouts
    notes: tuple[str, ...] = field(default=())

    @classmethod
    @undisturbed
    def build(
        cls,
        model: str | Path | ModelSettings | LanguageModel | None = None,
        task: str | TaskSettings | Task = "ioi",
        metric: str | None = None,
        ablation: str | AblationSettings = "corrupted",
        graph: GraphSettings | None = None,
        **task_options: Any,
    ) -> Experiment:
        """Load, tokenise, check.

        Parameters
        ----------
        model: `pocket`, a name that TransformerLens can fetch, a checkpoint folder, settings, or a loaded model. None
            takes the task's own, where it needs one, and else `pocket`.
        task: a task's name with its options as further keywords (`size=50, filter=["correct"]`), its settings, or a
            Task of your own.
        metric: None takes the task's own.
        graph: what is a node of its own; None as the model has it. A loaded model keeps its graph.

        Raises
        ------
        ConfigError, ModelError, TaskError: each in one line.
        """
        if isinstance(ablation, str):
            ablation = AblationSettings(name=ablation)
        settings = task if isinstance(task, TaskSettings) else None
        if isinstance(task, str):
            known = tasks.load(task).Settings
            allowed = [f.name for f in dataclasses.fields(known)]
            if unknown := sorted(set(task_options) - set(allowed)):
                raise ConfigError(f"task={task} has no option {unknown[0]}: choose from {', '.join(allowed)}")
            settings = known(**task_options)
        elif task_options:
            given = sorted(task_options)[0]
            raise ConfigError(f"the task is given whole, so {given} cannot be given beside it: put it into the task")
        bridge = None  # kept until the parts have been compared with it
        if not isinstance(model, LanguageModel):
            model, bridge = load_model(_model_settings(_own_model(settings or task) if model is None else model), graph)
        model = model.trainable()
        prepend_bos = settings.prepend_bos if settings is not None else None
        tokenizer = Tokenizer(model.tokenizer, model.vocabulary_size, prepend_bos)
        if settings is not None:
            task = tasks.load(settings.name).build(settings, tokenizer)
        assert isinstance(task, Task)
        pairs = tuple(tokenize_pairs(task.pairs, tokenizer))
        _check_pairs_fit(pairs, model)
        _check_model(pairs, model)
        del bridge
        batch, readouts = _tensors(pairs, ablation.draws)
        experiment = cls(
            model=model,
            task=task,
            pairs=pairs,
            metric_name=metric or task.metric,
            ablation=ablation,
            batch=batch.to(model.device),
            readouts=readouts.to(model.device),
            notes=(*model.notes, *task.notes, *tokenizer.notes),
        )
        return experiment._filtered(settings)._checked()

    def _filtered(self, settings: TaskSettings | None) -> Experiment:
        """The experiment on the pairs that pass `task.filter`, with a note of how many fell out."""
        if settings is None or not settings.filter:
            return self
        from acdc.evaluation.pair_filter import keep_good  # to its right, but where pairs are made they are chosen

        return keep_good(self, settings)

    def _checked(self) -> Experiment:
        """Metric and ablation are made now, so that what cannot work is refused before anything is written."""
        _ = self.metric, self.ablated
        return self

    @undisturbed
    def to(self, device: torch.device | str, dtype: torch.dtype) -> Experiment:
        """The same experiment elsewhere or in another precision; every value is computed anew there."""
        return dataclasses.replace(
            self,
            model=self.model.to(device, dtype),
            batch=self.batch.to(device),
            readouts=self.readouts.to(device),
        )

    def with_pairs(self, indices: Sequence[int]) -> Experiment:
        """The experiment on some of its pairs, in this order; means, spreads and weights are theirs alone."""
        task = dataclasses.replace(self.task, pairs=[self.task.pairs[i] for i in indices])
        return self._with(task, tuple(self.pairs[i] for i in indices))

    def with_partner(self, partner: int) -> Experiment:
        """The experiment in which each clean prompt has one of its corrupted partners only."""
        pairs = (dataclasses.replace(pair, corrupted=(pair.corrupted[partner],)) for pair in self.pairs)
        return self._with(self.task, tuple(pairs))

    @undisturbed
    def _with(self, task: Task, pairs: tuple[TokenizedPair, ...]) -> Experiment:
        _check_model(pairs, self.model)
        batch, readouts = _tensors(pairs, self.ablation.draws)
        return dataclasses.replace(
            self,
            task=task,
            pairs=pairs,
            batch=batch.to(self.model.device),
            readouts=readouts.to(self.model.device),
        )._checked()

    def rows(self, start: int, stop: int) -> Experiment:
        """Some rows (pairs and partners) of this experiment, in order, with the values it has computed.

        Weights stay as they are, so that losses over all parts of an experiment add up to its own.
        """
        chosen = (self.readouts.pair >= start) & (self.readouts.pair < stop)
        r = self.readouts
        part = dataclasses.replace(
            self,
            batch=Batch(
                self.batch.clean[start:stop],
                self.batch.corrupted[start:stop],
                self.batch.lengths[start:stop],
                self.batch.source[start:stop],
            ),
            readouts=Readouts(
                r.pair[chosen] - start, r.position[chosen], r.weight[chosen], r.answers[chosen], r.wrong_answers[chosen]
            ),
        )
        part.__dict__["ablated"] = self.ablated.rows(start, stop)
        part.__dict__["_clean_run"] = (self.clean.rows(start, stop), self._clean_run[1][start:stop])
        return part

    @cached_property
    def graph(self) -> Graph:
        """The model's computational graph."""
        return Graph(self.model.config)

    @cached_property
    @undisturbed
    def _clean_run(self) -> tuple[Values, Tensor]:
        return run(self.model, self.batch.clean, self.batch.lengths)

    @property
    def clean(self) -> Values:
        """Every sender's output on the clean prompts."""
        return self._clean_run[0]

    @cached_property
    @undisturbed
    def ablated(self) -> Values:
        """What every sender's removed edges carry."""
        same = self.ablation.name in ("zero", "noise")
        corrupted = self.clean if same else run(self.model, self.batch.corrupted, self.batch.lengths)[0]
        pairs = [self.pairs[i] for i in self.batch.source]
        return ablated_values(self.ablation, self.clean, corrupted, self.batch.lengths, pairs)

    @cached_property
    @undisturbed
    def metric(self) -> Metric:
        """The metric, tied to these pairs and the full model's logits."""
        return make_metric(self.metric_name, self.readouts, self.clean_logits)

    @cached_property
    @undisturbed
    def clean_logits(self) -> Tensor:
        """The full model's logits at the readouts, `readout vocabulary`."""
        return self.model.unembed(self.read(self._clean_run[1]))

    @property
    def clean_stream(self) -> Tensor:
        """The last residual stream of the clean run, `row pos d_model`."""
        return self._clean_run[1]

    @cached_property
    @undisturbed
    def attention_mask(self) -> Tensor:
        """`row query key`, True where a query may not look."""
        return self.model.attention_mask(self.batch.lengths, self.batch.clean.shape[1])

    def read(self, stream: Tensor) -> Tensor:
        """The readouts' rows of a residual stream: `... pair pos d` → `... readout d`."""
        return stream[..., self.readouts.pair, self.readouts.position, :]

    @undisturbed
    def by_pair(self, values: Tensor) -> Tensor:
        """Each pair's mean over its positions, corrupted partners and draws: `... readout` → `... pair`, in float64.

        The mean over pairs is the value over all of them.
        """
        source = torch.tensor(self.batch.source, device=values.device)[self.readouts.pair]
        weights = self.readouts.weight
        zero = weights.new_zeros(len(self.pairs))
        totals = zero.expand(*values.shape[:-1], -1).index_add(-1, source, values.double() * weights)
        return totals / zero.index_add(0, source, weights)

    @property
    def default_threshold(self) -> float | None:
        """The task's own threshold for this metric, or None."""
        return self.task.thresholds.get(self.metric_name)


def _own_model(task: TaskSettings | Task | str) -> str:
    """The model that a task needs, or the bundled one."""
    if isinstance(task, Task):
        return task.model or "pocket"
    name = task if isinstance(task, str) else task.name
    return getattr(tasks.load(name), "MODEL", "pocket")


def _model_settings(model: str | Path | ModelSettings) -> ModelSettings:
    if isinstance(model, ModelSettings):
        return model
    if isinstance(model, Path) or model.startswith((".", "~", "/")) or Path(model).is_dir():
        return ModelSettings(name="local", path=str(model))
    return ModelSettings(name=model)


def _check_pairs_fit(pairs: Sequence[TokenizedPair], model: LanguageModel) -> None:
    """TaskError for a prompt longer than the model reads, or an answer that it has no logit for."""
    n_outputs = model.W_U.shape[1]
    for pair in pairs:
        if len(pair.clean) > model.max_length:
            raise TaskError(
                f"{pair.where}: the prompt has {len(pair.clean)} tokens, more than the {model.max_length} that"
                f" {model.name} can read{f' ({model.limit})' if model.limit else ''}"
            )
        answers = [token for here in (*pair.answers, *pair.wrong_answers) for token in here]
        if answers and max(answers) >= n_outputs:
            raise TaskError(
                f"{pair.where}: the answer {max(answers)} is no output of {model.name}, which has {n_outputs}: use the"
                " task's own model"
            )


def _check_model(pairs: Sequence[TokenizedPair], model: LanguageModel) -> None:
    """ModelError if the model's parts do not compute what the model does; each length of prompt is looked at once."""
    if model.self_check is not None:
        model.self_check(model, [pair.clean for pair in pairs])


def _tensors(pairs: Sequence[TokenizedPair], draws: int) -> tuple[Batch, Readouts]:
    """Pairs, each once per corrupted partner (and draw), as tensors."""
    rows = [(i, pair, partner) for i, pair in enumerate(pairs) for partner in pair.corrupted for _ in range(draws)]
    width = max(len(pair.clean) for pair in pairs)
    readouts: list[tuple[int, int, float]] = []
    answers: list[Sequence[int]] = []
    wrong: list[Sequence[int]] = []
    for row, (_, pair, _) in enumerate(rows):
        weight = 1.0 / (len(pairs) * len(pair.corrupted) * draws * len(pair.positions))
        readouts += [(row, position, weight) for position in pair.positions]
        answers += pair.answers
        wrong += pair.wrong_answers
    at, where, weights = zip(*readouts, strict=True)
    return (
        Batch(
            clean=_padded([pair.clean for _, pair, _ in rows], width, 0),
            corrupted=_padded([partner for _, _, partner in rows], width, 0),
            lengths=torch.tensor([len(pair.clean) for _, pair, _ in rows]),
            source=tuple(i for i, _, _ in rows),
        ),
        Readouts(
            pair=torch.tensor(at),
            position=torch.tensor(where),
            weight=torch.tensor(weights, dtype=torch.float64),
            answers=_padded(answers, max(map(len, answers)), -1),
            wrong_answers=_padded(wrong, max(map(len, wrong)), -1),
        ),
    )


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> Tensor:
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long).reshape(
        len(rows), width
    )
