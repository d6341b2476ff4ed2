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
from acdc.discovery.base import Method, NoObserver
from acdc.discovery.random import Random
from acdc.engine.full import FullEngine
from acdc.engine.memory import PeakMemory
from acdc.errors import AcdcError
from acdc.evaluation.known import known_circuits
from acdc.evaluation.method_table import COSTS, Judge, Judged, MethodTable, usual_equal_size
from acdc.experiment import Experiment
from acdc.jobs.as_found import how_found
from acdc.jobs.common import progress_bar, write_in_one_go
from acdc.jobs.prepare import Prepared, refusal
from acdc.jobs.settings import CompareSettings
from acdc.journal import TensorStore
from acdc.report.method_table import view
from acdc.report.view import Subject, View
from acdc.tracking import say

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def run(prepared: Prepared, folder: Path, console: Console) -> None:
    """Score the edges by every method, judge them, and write everything into an existing folder."""
    experiment, job = prepared.experiment, prepared.settings.job
    assert isinstance(job, CompareSettings)

    def compute() -> tuple[MethodTable, View]:
        truths, absent = known_circuits(experiment, own=job.truth)
        n_edges = len(experiment.graph)
        equal_size = job.equal_size or usual_equal_size(n_edges, truths)
        judge = Judge(experiment, job.sizes_of(n_edges), equal_size, job.absolute, truths)
        about = {"settings": how_found(prepared.settings, experiment)}
        table = MethodTable(judge, *judge_all(judge, job, folder, console, about), absent)
        return table, view(table, Subject.of(experiment))

    write_in_one_go(prepared, folder, console, compute)


def judge_all(
    judge: Judge, job: CompareSettings, folder: Path, console: Console, about: Mapping[str, Any] | None = None
) -> tuple[list[Judged], dict[str, str]]:
    """Judge every method, the random baseline last.

    Parameters
    ----------
    judge : Judge
    job : CompareSettings
    folder : Path
        Methods keep in it what they find.
    console : Console
    about : mapping, optional
        Added to the provenance of every circuit.

    Returns
    -------
    list of Judged
        A row a method.
    dict of str to str
        Why other methods have none.
    """
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
                draws: dict[str, Method] = {
                    f"{name}{f'_{k}' * (k > 0)}": Random(seed=job.seed + k) for k in range(job.random)
                }
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
    """Return a method's circuit with its scores and costs, found now or by an earlier try.

    Returns
    -------
    Circuit
        Its `metrics` hold the costs: `seconds` by the clock and `processor_seconds` of all threads, both over all
        tries; `peak_mb`, the memory that the method takes besides what is there, in the last try.

    Raises
    ------
    RunError
        A file of the earlier try is damaged.
    _Failed
        The method has no scores.
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
    """Keeps beside a method's state how long it has taken, by the clock and of the processor."""

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
