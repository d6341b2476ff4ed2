"""`Experiment`: model, graph, pairs, metric and ablation together; the one thing every algorithm is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from acdc.ablation import Ablation, Values
from acdc.errors import TaskError
from acdc.graph import Graph
from acdc.metrics import METRICS, BoundMetric, Metric, Readouts, bind
from acdc.model.forward import run
from acdc.model.parts import LanguageModel
from acdc.process import undisturbed
from acdc.tasks.base import Task, TaskSettings, TokenizedPair, Tokenizer, tokenize_pairs


@dataclass(frozen=True)
class Batch:
    """The pairs as tensors: one row a pair, corrupted partner and draw.

    Attributes
    ----------
    clean, corrupted : `row pos`, padded on the right with 0.
    lengths : tokens of each row, `row`.
    source : the pair of each row.
    """

    clean: Tensor
    corrupted: Tensor
    lengths: Tensor
    source: tuple[int, ...]

    def rows(self, start: int, stop: int) -> Batch:
        """Some of the rows."""
        some = slice(start, stop)
        return Batch(self.clean[some], self.corrupted[some], self.lengths[some], self.source[some])

    def to(self, device: torch.device | str) -> Batch:
        return dataclasses.replace(
            self, clean=self.clean.to(device), corrupted=self.corrupted.to(device), lengths=self.lengths.to(device)
        )


@dataclass(frozen=True)
class Runs:
    """What the model does on the rows of a batch.

    Attributes
    ----------
    clean : every sender's output on the clean prompts.
    stream : the last residual stream of the clean run, `row pos d_model`.
    ablated : what every sender's removed edges carry.
    """

    clean: Values
    stream: Tensor
    ablated: Values

    def rows(self, start: int, stop: int) -> Runs:
        """Those of some rows."""
        return Runs(self.clean.rows(start, stop), self.stream[start:stop], self.ablated.rows(start, stop))


@dataclass(frozen=True)
class Experiment:
    """Everything a circuit is evaluated with. A plain value: what follows from its fields is computed once, when it is
    asked for.

    Attributes
    ----------
    model : the model as parts.
    task : the task that the pairs are of.
    pairs : the pairs, as token ids.
    measured : the metric; `metric` is the same together with these pairs.
    ablation : what a removed edge carries.
    batch : the pairs as tensors.
    readouts : where the metric reads.
    notes : what the user should hear.
    runs : what the model does on this batch, where it is known already; None computes it.
    """

    model: LanguageModel
    task: Task
    pairs: tuple[TokenizedPair, ...]
    measured: Metric
    ablation: Ablation
    batch: Batch
    readouts: Readouts
    notes: tuple[str, ...] = field(default=())
    runs: Runs | None = field(default=None, repr=False, compare=False)

    @classmethod
    def build(cls, *arguments: Any, **options: Any) -> Experiment:
        """Load, tokenise, check: see `acdc.build.build`, which takes the same and stands in front of this class."""
        from acdc.build import build

        return build(*arguments, **options)

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        task: Task,
        pairs: Sequence[TokenizedPair],
        metric: Metric,
        ablation: Ablation,
        notes: Sequence[str] = (),
    ) -> Experiment:
        """The experiment on these pairs.

        Raises
        ------
        ConfigError, ModelError, TaskError
            The metric or the ablation cannot be had on these pairs, or the model's parts do not compute what the model
            does on them.
        """
        if model.self_check is not None:
            model.self_check(model, [pair.clean for pair in pairs])
        batch, readouts = _tensors(pairs, ablation.n_draws)
        made = cls(
            model, task, tuple(pairs), metric, ablation, batch.to(model.device), readouts.to(model.device), tuple(notes)
        )
        _ = made.metric, made.ablated  # what cannot work is refused before anything is written
        return made

    @undisturbed
    def to(self, device: torch.device | str, dtype: torch.dtype) -> Experiment:
        """The same experiment elsewhere or in another precision; every value is computed anew there."""
        return dataclasses.replace(
            self,
            model=self.model.to(device, dtype),
            batch=self.batch.to(device),
            readouts=self.readouts.to(device),
            runs=None,
        )

    def with_pairs(self, indices: Sequence[int]) -> Experiment:
        """The experiment on some of its pairs, in this order; means, spreads and weights are theirs alone."""
        task = dataclasses.replace(self.task, pairs=[self.task.pairs[i] for i in indices])
        return self._on(task, [self.pairs[i] for i in indices])

    def with_task(self, settings: TaskSettings) -> Experiment:
        """The experiment on the pairs of other settings, all of them, whatever their filter."""
        task, pairs, notes = pairs_of(settings, self.model)
        return Experiment.of(self.model, task, pairs, self.measured, self.ablation, (*self.model.notes, *notes))

    def with_partner(self, partner: int) -> Experiment:
        """The experiment in which each clean prompt has one of its corrupted partners only."""
        return self._on(
            self.task, [dataclasses.replace(pair, corrupted=(pair.corrupted[partner],)) for pair in self.pairs]
        )

    def with_metric(self, metric: str | Metric) -> Experiment:
        """The experiment with another metric, and with the runs that this one has computed."""
        measured = METRICS.chosen(metric)
        return dataclasses.replace(self, measured=measured, runs=self._runs)

    @undisturbed
    def _on(self, task: Task, pairs: Sequence[TokenizedPair]) -> Experiment:
        return Experiment.of(self.model, task, pairs, self.measured, self.ablation, self.notes)

    def rows(self, start: int, stop: int) -> Experiment:
        """Some rows (pairs and partners) of this experiment, in order, with the values it has computed.

        Weights stay as they are, so that losses over all parts of an experiment add up to its own.
        """
        chosen = (self.readouts.row >= start) & (self.readouts.row < stop)
        r = self.readouts
        return dataclasses.replace(
            self,
            batch=self.batch.rows(start, stop),
            readouts=Readouts(
                r.row[chosen] - start, r.position[chosen], r.weight[chosen], r.answers[chosen], r.wrong_answers[chosen]
            ),
            runs=self._runs.rows(start, stop),
        )

    @property
    def metric_name(self) -> str:
        return self.measured.name

    @cached_property
    def graph(self) -> Graph:
        """The model's computational graph."""
        return Graph(self.model.config)

    @cached_property
    @undisturbed
    def _clean_run(self) -> tuple[Values, Tensor]:
        if self.runs is not None:
            return self.runs.clean, self.runs.stream
        return run(self.model, self.batch.clean, self.batch.lengths)

    @property
    def _runs(self) -> Runs:
        return self.runs or Runs(*self._clean_run, self.ablated)

    @property
    def clean(self) -> Values:
        """Every sender's output on the clean prompts."""
        return self._clean_run[0]

    @property
    def clean_stream(self) -> Tensor:
        """The last residual stream of the clean run, `row pos d_model`."""
        return self._clean_run[1]

    @cached_property
    @undisturbed
    def ablated(self) -> Values:
        """What every sender's removed edges carry."""
        if self.runs is not None:
            return self.runs.ablated
        corrupted = self.clean
        if self.ablation.reads_corrupted_run:
            corrupted = run(self.model, self.batch.corrupted, self.batch.lengths)[0]
        pairs = [self.pairs[i] for i in self.batch.source]
        return self.ablation.values(self.clean, corrupted, self.batch.lengths, pairs)

    @cached_property
    @undisturbed
    def metric(self) -> BoundMetric:
        """The metric, together with these pairs and the full model's logits."""
        return bind(self.measured, self.readouts, self.clean_logits)

    @cached_property
    @undisturbed
    def clean_logits(self) -> Tensor:
        """The full model's logits at the readouts, `readout vocabulary`."""
        return self.model.unembed(self.read(self.clean_stream))

    @cached_property
    @undisturbed
    def attention_mask(self) -> Tensor:
        """`row query key`, True where a query may not look."""
        return self.model.attention_mask(self.batch.lengths, self.batch.clean.shape[1])

    def read(self, stream: Tensor) -> Tensor:
        """A residual stream at the readouts: `... row pos d` → `... readout d`."""
        return stream[..., self.readouts.row, self.readouts.position, :]

    @undisturbed
    def mean_by_pair(self, values: Tensor) -> Tensor:
        """Each pair's mean over its positions, corrupted partners and draws: `... readout` → `... pair`, in float64.

        The mean over pairs is the value over all of them.
        """
        source = torch.tensor(self.batch.source, device=values.device)[self.readouts.row]
        weights = self.readouts.weight
        zero = weights.new_zeros(len(self.pairs))
        totals = zero.expand(*values.shape[:-1], -1).index_add(-1, source, values.double() * weights)
        return totals / zero.index_add(0, source, weights)

    @property
    def default_threshold(self) -> float | None:
        """The task's own threshold for this metric, or None."""
        return self.task.thresholds.get(self.metric_name)


def pairs_of(task: TaskSettings | Task, model: LanguageModel) -> tuple[Task, list[TokenizedPair], list[str]]:
    """A task's pairs as token ids of a model, and what the user should hear of them.

    Raises
    ------
    ConfigError, TaskError
        The pairs cannot be made, or the model cannot read them.
    """
    settings = task if isinstance(task, TaskSettings) else None
    words = Tokenizer(model.tokenizer, model.vocabulary_size, settings.prepend_bos if settings else None)
    made = settings.build(words) if settings else task
    if not isinstance(made, Task):
        raise TaskError(f"task={settings.name if settings else task} makes a {type(made).__name__}, not a Task")
    pairs = tokenize_pairs(made.pairs, words)
    _check_pairs_fit(pairs, model)
    return made, pairs, [*made.notes, *words.notes]


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
            row=torch.tensor(at),
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
