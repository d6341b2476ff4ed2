"""`job=compare`: the discovery methods on one experiment, judged in one table.

What each method finds is kept as `methods/NAME/circuit.json`, so that a killed comparison goes on with those that are
done, and inside a method where that keeps its state.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from acdc import discovery
from acdc.circuit import Circuit
from acdc.discovery.base import NoObserver
from acdc.engine.full import FullEngine
from acdc.engine.memory import PeakMemory
from acdc.errors import AcdcError
from acdc.evaluation.comparison import CircuitComparison, compare_circuits
from acdc.evaluation.grading import known_circuits
from acdc.evaluation.method_table import COSTS, Judge, Judged, usual_equal_size
from acdc.experiment import Experiment
from acdc.files import write_csv, write_json
from acdc.jobs.as_found import how_found
from acdc.jobs.common import Outcome, do_in_one_go, progress_bar
from acdc.jobs.prepare import Prepared, refusal
from acdc.jobs.resolved import resolved_yaml
from acdc.jobs.settings import CompareSettings
from acdc.journal import TensorStore
from acdc.report.html import configuration, notes_section, write_page
from acdc.report.method_pictures import draw_circuits, draw_plots
from acdc.report.method_table import sections, table_grid
from acdc.report.pairs import pairs_section
from acdc.tracking import say

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def run(prepared: Prepared, folder: Path, console: Console) -> None:
    """Score the edges by every method, judge them, and write everything into an existing folder."""
    do_in_one_go(prepared, folder, console, lambda: _compare(prepared, folder, console))
    for name in ("compare.csv", "report.html"):
        say(console, f"{name.partition('.')[0]:<20} {folder / name}")


def _compare(prepared: Prepared, folder: Path, console: Console) -> Outcome:
    experiment, job = prepared.experiment, prepared.settings.job
    assert isinstance(job, CompareSettings)
    truths, absent = known_circuits(experiment, own=job.truth)
    n_edges = len(experiment.graph)
    equal_size = job.equal_size or usual_equal_size(n_edges, truths)
    judge = Judge(experiment, job.sizes_of(n_edges), equal_size, job.absolute, truths)
    about = {"settings": how_found(prepared.settings, experiment)}
    judged, refused = judge_all(judge, job, folder, console, about)
    console.print(table_grid(judge, judged, refused, brief=True).console())
    for name, why in refused.items():
        say(console, f"{name} has no numbers: {why}")

    rivals = [one for one in judged if one.method != "random"] or judged
    shared = compare_circuits([(one.method, one.best) for one in judged]) if len(judged) > 1 else None
    files = _tables(judge, judged, refused, shared, folder)
    files |= draw_plots(judge, judged, shared, folder)
    drawn, warning = draw_circuits(rivals, folder)
    files |= drawn
    if warning:
        log.warning("%s", warning)
    told = sections(judge, judged, refused, shared, files, absent)
    if prepared.check is not None:
        told.append(pairs_section(prepared.check))
    files["report.html"] = folder / "report.html"
    write_page(
        files["report.html"],
        f"Methods · {experiment.task.name} · {experiment.model.name}",
        f"{len(rivals)} ways to find a circuit in {experiment.model.name}, on {len(experiment.pairs)} pairs of the task"
        f" {experiment.task.name} with metric={experiment.metric_name} and ablation={experiment.ablation.name}.",
        [
            notes_section([*prepared.notes, *([warning] if warning else [])]),
            *told,
            configuration(resolved_yaml(prepared)),
        ],
    )
    metrics: dict[str, Any] = {"methods": len(judged), "edges_total": n_edges, "metric": experiment.metric_name}
    metrics |= {f"{one.method}_{name}": value for one in judged for name, value in one.numbers.items()}
    return metrics, files


def judge_all(
    judge: Judge, job: CompareSettings, folder: Path, console: Console, about: Mapping[str, Any] | None = None
) -> tuple[list[Judged], dict[str, str]]:
    """Every method's row, the random baseline last; and why others have none. `about`: provenance of all circuits."""
    engine, settings = FullEngine(judge.experiment), job.settings
    judged: list[Judged] = []
    refused: dict[str, str] = {}
    for i, (name, its) in enumerate(settings.items(), 1):
        if why := refusal(judge.experiment, its):
            refused[name] = why
            log.info("%s does not fit: %s", name, why)
            continue
        where = f"{name} ({i} of {len(settings)})"
        try:
            if name == "random":
                known = discovery.load(name).Settings
                draws = {f"{name}{f'_{k}' * (k > 0)}": known(seed=job.seed + k) for k in range(job.random)}
            else:
                draws = {name: its}
            found = [
                find(judge.experiment, one, folder / "methods" / place, console, where, about)
                for place, one in draws.items()
            ]
        except _Failed as error:  # training diverged, say
            refused[name] = str(error)
            log.warning("%s failed: %s", name, error)
            continue
        judged.append(judge.judge(found, engine))
        seconds, memory = (judged[-1].numbers[cost] for cost in ("seconds", "peak_mb"))
        log.info("%s: %s s, %s MB", name, seconds, memory)
        say(console, f"{where}: {seconds:.1f} s")
    return judged, refused


class _Failed(AcdcError):
    """A method came to no scores."""


def find(
    experiment: Experiment,
    settings: Any,
    place: Path,
    console: Console,
    where: str,
    about: Mapping[str, Any] | None = None,
) -> Circuit:
    """A method's circuit with its scores and costs, found now or by an earlier try.

    Costs, in `metrics`: `seconds` by the clock and `processor_seconds` of all threads, both over all tries; `peak_mb`,
    the memory that the method takes besides what is there, in the last try.

    Raises
    ------
    RunError: a file of the earlier try is damaged. _Failed: the method has no scores.
    """
    done = place / "circuit.json"
    if done.is_file():
        return Circuit.load(done)
    place.mkdir(parents=True, exist_ok=True)
    store = _Timed(place)
    memory = PeakMemory(experiment.model.device)
    try:
        with ExitStack() as around:
            bar = around.enter_context(progress_bar(console, where, "steps"))
            around.enter_context(memory)
            store.start()
            circuit = discovery.discover(experiment, settings, _Progress(bar), (), store)
            seconds, processor = store.clock()
    except AcdcError as error:
        raise _Failed(str(error)) from error
    circuit.metrics |= dict(zip(COSTS, (seconds, processor, memory.mb), strict=True))
    circuit.provenance |= about or {}
    circuit.save(done)
    store.remove()
    return circuit


class _Timed(TensorStore):
    """Keeps beside a method's state how long it has taken: `clock`, by the clock and of the processor."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        state = super().load()  # damaged, it is said now
        self.before = state.get("clock", torch.zeros(2, dtype=torch.float64)).tolist()

    def start(self) -> None:
        self.began = time.monotonic(), time.process_time()

    def clock(self) -> tuple[float, float]:
        wall, processor = time.monotonic() - self.began[0], time.process_time() - self.began[1]
        return self.before[0] + wall, self.before[1] + processor

    def load(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in super().load().items() if name != "clock"}

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        super().save({**tensors, "clock": torch.tensor(self.clock(), dtype=torch.float64)})


class _Progress(NoObserver):
    """Shows how far a method is."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def progressed(self, done: int, total: int, values: Mapping[str, float]) -> None:
        self.bar(done, total)


def _tables(
    judge: Judge,
    judged: list[Judged],
    refused: Mapping[str, str],
    shared: CircuitComparison | None,
    folder: Path,
) -> dict[str, Path]:
    """`compare.csv`, a row a method; `curve.csv`, a row a method and size; `compare.json`, all of it."""
    files = {name: folder / name for name in ("compare.csv", "curve.csv", "compare.json")}
    columns, experiment = judge.columns, judge.experiment
    spread = [f"{name}_sd" for name in columns]
    rows: list[dict[str, Any]] = [
        {"method": one.method, **one.numbers, "note": "", **{f"{name}_sd": one.sd.get(name) for name in columns}}
        for one in judged
    ]
    empty = dict.fromkeys(columns)
    rows += [{"method": name, **empty, "note": why, **dict.fromkeys(spread)} for name, why in refused.items()]
    write_csv(files["compare.csv"], rows)
    curve = [
        {"method": one.method, "edges": size.edges, "on_path": size.on_path, "recovery": size.recovery, "kl": size.kl}
        for one in judged
        for size in one.curve
    ]
    write_csv(files["curve.csv"], curve)
    about = {"task": experiment.task.name, "model": experiment.model.name, "metric": experiment.metric_name}
    about |= {"ablation": experiment.ablation.name, "edges_total": len(experiment.graph)}
    truths = {
        label: {"edges": len(truth.edges), "sources": list(truth.sources)} for label, truth in judge.truths.items()
    }
    write_json(
        files["compare.json"],
        {
            **about,
            "absolute": judge.absolute,
            "equal_size": judge.equal_size,
            "truths": truths,
            "methods": {one.method: one.as_dict() for one in judged},
            "refused": dict(refused),
            "shared": None if shared is None else shared.as_dict(),
        },
    )
    return files
