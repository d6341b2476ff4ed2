"""What one part of an evaluation says, and what the parts share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from rich.console import RenderableType

from acdc.circuit import Circuit
from acdc.evaluation.random_circuits import random_circuits
from acdc.jobs.prepare import Prepared
from acdc.jobs.settings import EvaluateSettings
from acdc.report.html import Section

Row = tuple[str, str, str, float | None]


@dataclass(frozen=True)
class Part:
    """What one part of an evaluation says.

    Attributes
    ----------
    name, values: its key in `evaluate.json`, and what stands there.
    rows: lines of `evaluate.csv`: circuit, against (a known circuit, or nothing), measure, value.
    metrics: numbers for `metrics.json` and trackers. shown: for the console. files: that it wrote, by name.
    """

    name: str
    values: Any
    rows: list[Row]
    metrics: Mapping[str, Any]
    shown: Sequence[RenderableType]
    sections: list[Section]
    files: Mapping[str, Path] = field(default_factory=dict)


def settings_of(prepared: Prepared) -> EvaluateSettings:
    """The job's own settings."""
    assert isinstance(prepared.settings.job, EvaluateSettings)
    return prepared.settings.job


def randoms_of(prepared: Prepared, circuit: Circuit) -> list[Circuit]:
    """The random circuits of the same size, the same ones in every part."""
    job = settings_of(prepared)
    return random_circuits(circuit, job.random, job.seed, job.random_kind)


def spread(values: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """`mean` and standard deviation `sd` of each number over some draws, those left out that are not finite."""
    names = dict.fromkeys(name for one in values for name in one)
    columns = {name: [one[name] for one in values if name in one and math.isfinite(one[name])] for name in names}
    return {
        "mean": {name: fmean(column) if column else None for name, column in columns.items()},
        "sd": {name: pstdev(column) if column else None for name, column in columns.items()},
    }


def of(name: str, prepared: Prepared) -> str:
    """Behind a title, which circuit it is about, where there are several."""
    return f" · {name}" if len(prepared.circuits) > 1 else ""


def stem(name: str, what: str, prepared: Prepared) -> str:
    """The name of a file about one circuit, without its suffix."""
    if len(prepared.circuits) == 1:
        return what
    return f"{what}_{list(prepared.circuits).index(name)}"
