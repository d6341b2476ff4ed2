"""Each circuit alone: on the pairs it was found on and on fresh ones, scrubbed, beside random circuits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.evaluation.bootstrap import intervals
from acdc.evaluation.faithfulness import Measured, as_numbers, by_partner, measure
from acdc.evaluation.fresh import fresh_experiment
from acdc.evaluation.scrubbing import NO_OTHER, scrub, scrubbable
from acdc.experiment import Experiment
from acdc.jobs.evaluate.part import Part, Row, randoms_of, settings_of, spread
from acdc.jobs.prepare import Prepared
from acdc.report.faithfulness import brief_grid, faithfulness_grid, faithfulness_section
from acdc.report.grades import partners_line, partners_section

_MEASURES = ("circuit", "recovery", "kl", "accuracy", "agreement")


def look(prepared: Prepared, folder: Path, console: Console) -> Part:
    """Measure by complete evaluations; with each corrupted partner alone, where there are several."""
    experiment, circuits = prepared.experiment, prepared.circuits
    fresh, absent = _fresh(prepared)
    results = {name: _measure(prepared, circuit, fresh) for name, circuit in circuits.items()}
    lines = [f"no fresh pairs: {absent}"] if absent else []
    lines += [
        f"{name} has no path from the input to the logits"
        for name, circuit in circuits.items()
        if not circuit.on_path()
    ]
    if settings_of(prepared).scrubs:
        lines += _left_out(experiment)
    rows = [row for name, values in results.items() for row in _rows(name, values)]
    metrics: dict[str, Any] = {"circuits": len(circuits), "metric": experiment.metric_name}
    grid = faithfulness_grid if len(circuits) == 1 else brief_grid
    shown: list[RenderableType] = [grid(results, experiment.metric_name).console(), *lines]
    sections = [faithfulness_section(results, experiment.metric_name, lines)]
    if len(circuits) == 1:
        ((name, circuit),) = circuits.items()
        metrics |= _scalars(results[name])
        if partners := [_finite(one) for one in by_partner(experiment, circuit)]:
            results = {name: results[name] | {"by_partner": partners}}
            shown.append(partners_line(partners))
            sections.append(partners_section(partners, experiment.metric_name))
            rows += [(name, "", f"{key}, partner {i}", v) for i, one in enumerate(partners) for key, v in one.items()]
    values = {**results, **({"fresh_absent": absent} if absent else {})}
    return Part("faithfulness", values, rows, metrics, shown, sections)


def _fresh(prepared: Prepared) -> tuple[Experiment | None, str]:
    """The experiment on fresh pairs, or why there is none."""
    job = settings_of(prepared)
    if job.fresh_size == 0:
        return None, ""
    try:
        return fresh_experiment(prepared.experiment, prepared.settings.task, job.fresh_seed, job.fresh_size), ""
    except AcdcError as error:
        return None, str(error)


def _measure(prepared: Prepared, circuit: Circuit, fresh: Experiment | None) -> dict[str, Any]:
    """Everything about one circuit; the random ones are evaluated with it."""
    job, experiment = settings_of(prepared), prepared.experiment
    own, *randoms = measure(experiment, [circuit, *randoms_of(prepared, circuit)])
    values = _with_intervals(prepared, own, circuit)
    if fresh is not None:
        (other,) = measure(fresh, [circuit])
        values["fresh"] = {**_with_intervals(prepared, other, circuit), "pairs": len(fresh.pairs)}
    if job.scrubs:
        values["scrubbed"] = _scrubbed(prepared, circuit, own)
    if randoms:
        values["random"] = spread([one.summary() for one in randoms])
    return values


def _with_intervals(prepared: Prepared, measured: Measured, circuit: Circuit) -> dict[str, Any]:
    job = settings_of(prepared)
    values = _finite(as_numbers(measured, circuit))
    if job.bootstrap and len(measured.clean) > 1:
        values["intervals"] = intervals(measured, job.bootstrap, job.confidence, job.seed)
    return values


def _scrubbed(prepared: Prepared, circuit: Circuit, own: Measured) -> dict[str, Any]:
    """Causal scrubbing, on the scale of the circuit's recovery; `nothing` is the metric if no edge is important."""
    job = settings_of(prepared)
    chosen = scrubbable(prepared.experiment)
    counts = {"pairs": len(chosen), "left_out": len(prepared.experiment.pairs) - len(chosen)}
    if not chosen:
        return counts
    scrubbed = scrub(prepared.experiment, circuit, job.scrubs, job.seed)
    clean, corrupted = own.clean[chosen], own.corrupted[chosen]
    of_model = {name: values[chosen] for name, values in own.of_model.items()}
    draws = [Measured(scrubbed[i], clean, corrupted, of_model).summary() for i in range(job.scrubs)]
    nothing = scrub(prepared.experiment, Circuit(circuit.graph, {}), job.scrubs, job.seed)
    ends = {"clean": float(clean.mean()), "corrupted": float(corrupted.mean())}
    return {**counts, **ends, **spread(draws), "nothing": float(nothing.metric.mean())}


def _left_out(experiment: Experiment) -> list[str]:
    """What has to be said where not every pair can be scrubbed."""
    n_pairs, n_chosen = len(experiment.pairs), len(scrubbable(experiment))
    if n_chosen == 0:
        return [f"scrubbed: could not be measured, since {NO_OTHER}"]
    if n_chosen < n_pairs:
        return [
            f"scrubbed: on {n_chosen} of {n_pairs} pairs; {n_pairs - n_chosen} are left out, since no other pair has a"
            " clean prompt of their length"
        ]
    return []


def _rows(name: str, values: dict[str, Any]) -> list[Row]:
    """Lines of the CSV: the circuit's own numbers, intervals, and those of the other rows by name."""
    rows: list[Row] = [(name, "", key, value) for key, value in values.items() if not isinstance(value, dict)]
    for what, some in (("", values), (", fresh pairs", values.get("fresh", {}))):
        if what:
            rows += [(name, "", f"{key}{what}", value) for key, value in some.items() if not isinstance(value, dict)]
        for key, ends in some.get("intervals", {}).items():
            rows += [(name, "", f"{key}{what}, {end}", x) for end, x in zip(("low", "high"), ends, strict=True)]
    rows += [(name, "", f"{key}, scrubbed", n) for key, n in _counts(values).items()]
    for what in ("scrubbed", "random"):
        for kind in ("mean", "sd"):
            some = values.get(what, {}).get(kind, {})
            rows += [(name, "", f"{key}, {what}" + ", sd" * (kind == "sd"), value) for key, value in some.items()]
    return rows


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers for `metrics.json`."""
    numbers = {key: value for key, value in values.items() if not isinstance(value, dict)}
    numbers |= {f"fresh_{key}": values["fresh"][key] for key in _MEASURES if key in values.get("fresh", {})}
    numbers |= {f"scrubbed_{key}": n for key, n in _counts(values).items()}
    for what in ("scrubbed", "random"):
        numbers |= {f"{what}_{key}": value for key, value in values.get(what, {}).get("mean", {}).items()}
    return numbers


def _counts(values: dict[str, Any]) -> dict[str, int]:
    """How many pairs were scrubbed, and how many could not be."""
    return {key: values["scrubbed"][key] for key in ("pairs", "left_out") if "scrubbed" in values}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """A recovery that does not exist is None: the model with and without its edges gives the same."""
    return values if math.isfinite(values["recovery"]) else {**values, "recovery": None}
