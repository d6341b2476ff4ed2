"""Keep the pairs that suit the model: `task.filter=[correct,minimal:2]`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from acdc.errors import ConfigError, TaskError
from acdc.evaluation.pair_check import PairCheck, check_task
from acdc.evaluation.pair_record import PairRecord
from acdc.experiment import Experiment
from acdc.result import Result, as_table
from acdc.tasks.base import TaskSettings

# What each filter keeps, and which of the `Limits` its number is.
FILTERS = {
    "correct": ("the model prefers the answer on the clean prompt", ""),
    "flips": ("the corrupted prompt reverses the preference", ""),
    "weakened": ("the corrupted prompt reverses the preference or leaves at most this share of it", "left"),
    "confident": (
        "on the clean prompt the answers are more probable than the wrong answers by at least this",
        "margin",
    ),
    "minimal": ("at least one token differs, and at most this many", "differing"),
    "unique": ("no repetition of an earlier pair, and two different prompts", ""),
}
MARGINS = (0.05, 0.1, 0.25, 0.5)
_NEEDS_ANSWERS = ("correct",)
_NEEDS_CHOICE = ("correct", "flips", "weakened", "confident")


@dataclass(frozen=True)
class Filtered:
    """What filters leave.

    Attributes
    ----------
    indices : list of int
        The pairs that are left.
    dropped : dict of str to int
        How many pairs fell out at each filter, in turn.
    """

    indices: list[int]
    dropped: dict[str, int]

    def note(self) -> str:
        """Say in a line what is left."""
        n = len(self.indices) + sum(self.dropped.values())
        return f"task.filter keeps {len(self.indices)} of {n} pairs; fell out: {_counts(self.dropped)}"


def keep_good(experiment: Experiment, settings: TaskSettings) -> Experiment:
    """Return the experiment on the pairs that pass `settings.filter`; a note says how many fell out.

    Raises
    ------
    ConfigError, TaskError
        As `apply_filter`.
    """
    names = [settings.filter] if isinstance(settings.filter, str) else settings.filter
    filtered = apply_filter(names, check_task(experiment, settings))
    kept = experiment.with_pairs(filtered.indices)
    return dataclasses.replace(kept, notes=(*experiment.notes, filtered.note()))


def apply_filter(names: Sequence[str], check: PairCheck) -> Filtered:
    """Find the pairs that pass the filters, in turn; a pair with several corrupted partners has to pass with each.

    Parameters
    ----------
    names : sequence of str
        Names of `FILTERS`. A filter with a limit may be given one: `confident:0.25`, `minimal:3`, `weakened:0.2`.
    check : PairCheck

    Raises
    ------
    ConfigError
        No such filter, or one that these pairs or this model cannot answer.
    TaskError
        No pair is left.
    """
    left, dropped = set(range(len(check.pairs))), {}
    tests = [(str(name), *_parse(str(name), check)) for name in names]
    for text, name, limit in tests:
        passing = left & set(_passing(name, limit, check))
        dropped[text] = len(left) - len(passing)
        left = passing
    if not left:
        raise TaskError(
            f"task.filter leaves none of the {len(check.pairs)} pairs (fell out: {_counts(dropped)}): give fewer or"
            " milder filters, a larger task.size, or a model that knows the task"
        )
    return Filtered(sorted(left), dropped)


def limits_table(check: PairCheck) -> list[tuple[str, int]]:
    """Return how many pairs each filter, as `task.filter` takes it, would leave by itself."""
    most = sorted({max(len(r.swaps) for r in records) for records in check.records_of_pairs} - {0})
    limits: dict[str, Sequence[float]] = {"weakened": [check.limits.left], "confident": MARGINS, "minimal": most[:5]}
    rows = []
    for name in FILTERS:
        if (check.has_choice or name not in _NEEDS_CHOICE) and (check.has_answers or name not in _NEEDS_ANSWERS):
            for limit in limits.get(name, [math.nan]):
                text = name if math.isnan(limit) else f"{name}:{limit:g}"
                rows.append((text, len(_passing(name, limit, check))))
    return rows


@dataclass(frozen=True)
class CheckedPairs(Result):
    """A check of the pairs, with what each filter would leave.

    Attributes
    ----------
    check : PairCheck
    notes_on_task : tuple of str
        What was said when the pairs were made.
    """

    check: PairCheck
    notes_on_task: tuple[str, ...] = ()

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return `pairs`, a row a pair and partner."""
        return {"pairs": as_table(self.check.as_rows())}

    def documents(self) -> dict[str, object]:
        check = self.check
        return {
            "pairs": {
                "task": check.task,
                "model": check.model,
                "frequencies": check.frequencies.source if check.frequencies is not None else None,
                "summary": check.numbers(),
                "filters": dict(limits_table(check)),
                "problems": check.problems(),
                "notes": list(self.notes_on_task),
                "pairs": check.as_rows(),
            }
        }

    def summary(self) -> dict[str, object]:
        return self.check.numbers()


def _parse(text: str, check: PairCheck) -> tuple[str, float]:
    """Return a filter's name and its limit."""
    name, colon, number = text.partition(":")
    if name not in FILTERS:
        raise ConfigError(f"task.filter={text} is not known: choose of {', '.join(FILTERS)}")
    if name in _NEEDS_CHOICE and not check.has_choice:
        raise ConfigError(f"task.filter={text}: {check.model} has one output, so it prefers nothing; leave {name} out")
    if name in _NEEDS_ANSWERS and not check.has_answers:
        raise ConfigError(f"task.filter={text} needs answers in every pair: give them, or leave {name} out")
    attribute = FILTERS[name][1]
    if not colon:
        return name, float(getattr(check.limits, attribute)) if attribute else math.nan
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not attribute:
        raise ConfigError(f"task.filter={text} is not allowed: {name} takes no number")
    if not math.isfinite(limit):
        raise ConfigError(f"task.filter={text} is not allowed: give a number, such as confident:0.25 or minimal:3")
    return name, limit


def _passing(name: str, limit: float, check: PairCheck) -> list[int]:
    return [
        i for i, records in enumerate(check.records_of_pairs) if all(_passes(name, limit, record) for record in records)
    ]


def _passes(name: str, limit: float, record: PairRecord) -> bool:
    match name:
        case "correct":
            return record.prefers_answer
        case "flips":
            return record.outcome == "opposite"
        case "weakened":
            return record.left <= limit
        case "confident":
            return record.clean.margin >= limit
        case "minimal":
            return 1 <= len(record.swaps) <= limit
        case _:
            return record.repeats is None and bool(record.swaps)


def _counts(dropped: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in dropped.items()) or "none"
