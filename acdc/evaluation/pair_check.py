"""Do the pairs suit the model? An intervention says no more than its pairs do.

`check_pairs` looks at every pair: how many tokens differ and where, how frequent they are, whether the pair repeats
another. It also looks at what the model makes of the pair, with one run on the clean and one on the corrupted prompts:
what it prefers on each prompt and how sure it is. The `PairCheck` says what speaks against the pairs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from acdc.evaluation.frequency import Frequencies
from acdc.evaluation.pair_record import Limits, PairRecord, Swap
from acdc.evaluation.preference import Preference, preferences
from acdc.experiment import Experiment
from acdc.process import undisturbed
from acdc.tasks import TASKS
from acdc.tasks.base import TaskSettings, TokenizedPair, Tokenizer


@dataclass(frozen=True)
class PairCheck:
    """The records of all pairs, and what they say together.

    Attributes
    ----------
    task, model : str
    measure : str
        What a preference is measured by: `logit_diff` or `prob_diff`.
    ablation : str
    pairs : tuple of TokenizedPair
    records : tuple of PairRecord
    tokenizer : Tokenizer
    frequencies : Frequencies or None
    limits : Limits
    """

    task: str
    model: str
    measure: str
    ablation: str
    pairs: tuple[TokenizedPair, ...]
    records: tuple[PairRecord, ...]
    tokenizer: Tokenizer = field(repr=False)
    frequencies: Frequencies | None = field(repr=False)
    limits: Limits = field(default_factory=Limits)

    @cached_property
    def records_of_pairs(self) -> list[list[PairRecord]]:
        """The records of each pair, one a partner."""
        groups: list[list[PairRecord]] = [[] for _ in self.pairs]
        for record in self.records:
            groups[record.pair].append(record)
        return groups

    @property
    def has_choice(self) -> bool:
        """Whether the model has more than one output, so that it can prefer one."""
        return self.records[0].outcome != "none"

    @property
    def has_answers(self) -> bool:
        return all(record.has_answers for record in self.records)

    @property
    def accuracy(self) -> float:
        """The share of pairs in which the model prefers the answer on the clean prompt."""
        return fmean(records[0].prefers_answer for records in self.records_of_pairs)

    @property
    def outcomes(self) -> Counter[str]:
        """How many corrupted prompts have each outcome."""
        return Counter(record.outcome for record in self.records)

    @property
    def swaps(self) -> list[Swap]:
        return [swap for record in self.records for swap in record.swaps]

    @property
    def unlike(self) -> list[PairRecord]:
        """Corrupted prompts whose structure differs: text with too few equal tokens at the same place.

        Token ids need no structure: the inputs of a compiled program have none.
        """
        return [r for r in self.records if self.pairs[r.pair].is_text and r.equal_share < self.limits.equal]

    @property
    def rank_factor(self) -> float | None:
        """How many times rarer the corrupted tokens are, in the geometric mean; None where no rank is known."""
        ratios = [swap.rank_ratio for swap in self.swaps if swap.rank_ratio is not None]
        return math.exp(fmean(map(math.log, ratios))) if ratios else None

    def places(self) -> Counter[str]:
        """Count the pairs that differ at each label (or index, where there is no label)."""
        sets = [{s.label or str(s.position) for r in records for s in r.swaps} for records in self.records_of_pairs]
        return Counter(place for places in sets for place in sorted(places))

    def problems(self) -> list[str]:
        """Return what speaks against the pairs, one line each; empty if nothing does."""
        return list(_problems(self))

    def numbers(self) -> dict[str, Any]:
        """Return the check in a few numbers, for `metrics.json` and trackers; None where one does not exist."""
        differing = [len(record.swaps) for record in self.records]
        counts: dict[str, Any] = {
            "pairs": len(self.pairs),
            "corrupted_prompts": len(self.records),
            "tokens_differing": fmean(differing),
            "tokens_differing_most": max(differing),
            "repeated_pairs": len({r.pair for r in self.records if r.repeats is not None}),
            "identical_prompts": len({r.pair for r in self.records if not r.swaps}),
            "shifted_prompts": len({r.pair for r in self.records if r.shift}),
            "unlike_prompts": len({r.pair for r in self.unlike}),
            "rank_factor": self.rank_factor,
            "problems": len(self.problems()),
        }
        if self.has_choice:
            counts |= {"accuracy": self.accuracy} if self.has_answers else {}
            counts |= {outcome: self.outcomes[outcome] for outcome in ("opposite", "weaker", "same")}
            for side in ("clean", "corrupted"):
                runs: list[Preference] = [getattr(record, side) for record in self.records]
                counts[f"{self.measure}_{side}"] = fmean(run.value for run in runs)
                counts[f"p_answers_{side}"] = fmean(run.p_answers for run in runs)
        counts |= {"kl": fmean(r.kl for r in self.records), "l2": fmean(r.l2 for r in self.records)}
        return counts

    def as_rows(self) -> list[dict[str, Any]]:
        """Return one flat row a pair and partner, for `pairs.csv`; None where a value is missing."""
        return [_row(self, record) for record in self.records]


@undisturbed
def check_pairs(
    experiment: Experiment, limits: Limits | None = None, frequencies: Frequencies | None = None
) -> PairCheck:
    """Look at every pair, and at what the model makes of it.

    Parameters
    ----------
    experiment : Experiment
    limits : Limits, optional
    frequencies : Frequencies, optional
        How frequent tokens are; None takes what is known of the model (`Frequencies.of_model`).
    """
    limits = limits or Limits()
    model, pairs = experiment.model, experiment.pairs
    frequencies = frequencies or Frequencies.of_model(model)
    first_of: dict[Any, int] = {}
    records = []
    runs = iter(preferences(experiment))
    for i, pair in enumerate(pairs):
        same_clean = first_of.setdefault(pair.clean, i)
        same = first_of.setdefault((pair.clean, tuple(sorted(pair.corrupted))), i)
        for j, corrupted in enumerate(pair.corrupted):
            result = next(runs)
            swaps = _swaps(pair, corrupted, frequencies)
            records.append(
                PairRecord(
                    pair=i,
                    partner=j,
                    where=pair.where,
                    n_tokens=len(pair.clean),
                    swaps=swaps,
                    shift=_shift(pair.clean, corrupted),
                    reads_before=bool(swaps) and model.causal and max(pair.positions) < swaps[0].position,
                    repeats=same if same < i else None,
                    same_clean=same_clean if same_clean < i else None,
                    has_answers=all(pair.answers),
                    clean=result.clean,
                    corrupted=result.corrupted,
                    outcome=_outcome(result.clean.value, result.corrupted.value, limits.left),
                    kl=result.kl,
                    l2=result.l2,
                )
            )
    return PairCheck(
        task=experiment.task.name,
        model=model.name,
        measure="prob_diff" if experiment.metric_name == "prob_diff" else "logit_diff",
        ablation=experiment.ablation.name,
        pairs=pairs,
        records=tuple(records),
        tokenizer=Tokenizer(model.tokenizer, model.vocabulary_size),
        frequencies=frequencies,
        limits=limits,
    )


def check_task(experiment: Experiment, settings: TaskSettings) -> PairCheck:
    """Do `check_pairs` with the frequency file of the task's settings, if they name one."""
    if settings.frequencies is None:
        return check_pairs(experiment)
    return check_pairs(experiment, frequencies=Frequencies.read(settings.frequencies, experiment.model.tokenizer))


def _outcome(clean: float, corrupted: float, left: float) -> str:
    if math.isnan(clean):
        return "none"
    share = corrupted / clean if clean else math.inf
    return "opposite" if share < -1e-6 else "weaker" if share <= left else "same"  # −1e-6: rounding around 0


def _swaps(pair: TokenizedPair, corrupted: Sequence[int], frequencies: Frequencies | None) -> tuple[Swap, ...]:
    def rank(token: int) -> int | None:
        return frequencies.rank(token) if frequencies else None

    return tuple(
        Swap(position, _label(pair, position), a, b, rank(a), rank(b))
        for position, (a, b) in enumerate(zip(pair.clean, corrupted, strict=True))
        if a != b
    )


def _label(pair: TokenizedPair, position: int) -> str:
    return next((name for name, (start, stop) in pair.labels.items() if start <= position < stop), "")


def _shift(clean: Sequence[int], corrupted: Sequence[int]) -> int:
    """Return by how much a stretch is moved: three quarters of it are the same, 1 or 2 tokens further on (− is back).

    The stretch goes from the first to the last difference. It has at least five tokens, so that a few words in another
    order do not count.
    """
    at = [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
    if not at or at[-1] - at[0] < 4:
        return 0
    a, b = clean[at[0] : at[-1] + 1], corrupted[at[0] : at[-1] + 1]

    def same(by: int) -> float:
        shifted = list(zip(a[max(0, -by) :], b[max(0, by) :], strict=False))
        return sum(x == y for x, y in shifted) / len(shifted)

    best = max((1, -1, 2, -2), key=same)
    return best if same(best) >= 0.75 and same(best) > same(0) else 0


def _problems(check: PairCheck) -> Iterator[str]:
    n = len(check.pairs)

    def count(pairs: list[PairRecord]) -> str:
        return f"{len({record.pair for record in pairs})} of {n} pairs"

    records, limits = check.records, check.limits
    if same := [r for r in records if not r.swaps]:
        yield f"{count(same)} have the same clean and corrupted prompt (first: {same[0].where})"
    if again := [r for r in records if r.repeats is not None]:
        yield f"{count(again)} repeat an earlier one (first: {again[0].where})"
    if shifted := [r for r in records if r.shift]:
        yield (
            f"in {count(shifted)} part of the corrupted prompt is shifted against the clean one, so positions do not"
            f" correspond (first: {shifted[0].where})"
        )
    if unlike := [r for r in check.unlike if not r.shift]:
        yield (
            f"in {count(unlike)} fewer than {limits.equal:.0%} of the tokens stand at the same place in both prompts,"
            f" so they have not the same structure (first: {unlike[0].where})"
        )
    if before := [r for r in records if r.reads_before]:
        yield (
            f"in {count(before)} the metric reads before the first difference, where the two runs are the same"
            f" (first: {before[0].where})"
        )
    if check.has_choice and check.has_answers and check.accuracy < limits.accuracy:
        yield (
            f"the model prefers the answer to the wrong answer in only {check.accuracy:.0%} of the clean prompts, so a"
            " circuit for the answer may not exist"
        )
    different = [r for r in records if r.swaps and not r.reads_before]
    kept = [r for r in different if r.outcome == "same"]
    if different and len(kept) > limits.unchanged * len(different):
        makes_them = check.task in TASKS and not TASKS.load(check.task).from_file
        other = "another task.corruption" if makes_them else "other corrupted prompts"
        yield (
            f"{len(kept)} of {len(different)} corrupted prompts leave more than {limits.left:.0%} of the model's"
            f" preference, so they take little of the behaviour away: try {other}"
        )
    factor = check.rank_factor
    if factor is not None and max(factor, 1 / factor) > limits.rank_factor:
        side = "corrupted" if factor > 1 else "clean"
        assert check.frequencies is not None
        yield (
            f"the {side} prompts' tokens are {max(factor, 1 / factor):.0f} times rarer than those they are swapped with"
            f" (by {check.frequencies.source}), so frequency is patched along with meaning"
        )
    prompts = {"noise": {p.clean for p in check.pairs}, "mean": {c for p in check.pairs for c in p.corrupted}}
    if len(prompts.get(check.ablation, ())) == 1:
        side, effect = (
            ("clean", "changes nothing") if check.ablation == "noise" else ("corrupted", "is ablation=corrupted")
        )
        yield f"all {side} prompts are the same, so ablation={check.ablation} {effect}: give more pairs"


def _row(check: PairCheck, record: PairRecord) -> dict[str, Any]:
    pair, swaps = check.pairs[record.pair], record.swaps
    decode = check.tokenizer.decode
    row: dict[str, Any] = {
        "pair": record.pair,
        "partner": record.partner,
        "where": record.where,
        "clean": decode(pair.clean),
        "corrupted": decode(pair.corrupted[record.partner]),
        "tokens": record.n_tokens,
        "differing": len(swaps),
        "equal_share": record.equal_share,
        "first_difference": record.first_difference,
        "positions": " ".join(str(s.position) for s in swaps),
        "labels": " ".join(s.label or "-" for s in swaps),
        "clean_tokens": "|".join(decode([s.clean]) for s in swaps),
        "corrupted_tokens": "|".join(decode([s.corrupted]) for s in swaps),
        "clean_ranks": " ".join(str(s.clean_rank or "-") for s in swaps),
        "corrupted_ranks": " ".join(str(s.corrupted_rank or "-") for s in swaps),
        "shift": record.shift,
        "repeats": record.repeats,
        "same_clean": record.same_clean,
        "outcome": record.outcome,
        "left": record.left,
        f"{check.measure}_clean": record.clean.value,
        f"{check.measure}_corrupted": record.corrupted.value,
    }
    for name in ("p_answers", "p_wrong", "margin", "accuracy"):
        row |= {f"{name}_{side}": getattr(getattr(record, side), name) for side in ("clean", "corrupted")}
    row |= {"kl": record.kl, "l2": record.l2}
    return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()}
