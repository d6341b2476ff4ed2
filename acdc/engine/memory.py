"""How much memory work takes, and may take."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acdc.errors import ConfigError
from acdc.experiment import Experiment

_SHARE = 0.25  # of what is free


def check_memory(memory_gb: float | None, group: str = "method") -> None:
    """ConfigError for a budget of nothing."""
    if memory_gb is not None and not memory_gb > 0:
        raise ConfigError(f"{group}.memory_gb={memory_gb} is not allowed: give more than 0, or null")


def budget_bytes(device: torch.device, memory_gb: float | None = None, group: str = "method") -> int:
    """What temporary tensors may take on a device: as told (in `group`), or a quarter of what is free now."""
    check_memory(memory_gb, group)
    if memory_gb is not None:
        return int(memory_gb * 2**30)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(_SHARE * free)


class _Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on: `now`, and `most` at once."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.now = self.most = 0
        self.known: set[int] = set()  # the addresses of what was counted and lives

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                address, size = storage.data_ptr(), storage.nbytes()
                if size and address not in given | self.known:
                    self.known.add(address)
                    self.now += size
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._freed, address, size)
        return result

    def _freed(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.now -= size


def measured_bytes(work: Callable[[], object]) -> int:
    """The most that tensors made by some work take at once, in bytes, what it returns included.

    Parameters
    ----------
    work : Callable[[], object]
        Is run once. What operations need inside them is not seen.
    """
    allocations = _Allocations()
    with allocations:
        result = work()
    del result
    return allocations.most


def units_that_fit(work: Callable[[], object], memory: int) -> int:
    """How many units of work fit in memory together, at least one.

    Parameters
    ----------
    work : Callable[[], object]
        One unit, such as one row or one variant. It is run once, to measure it.
    memory : int
        What all of them may take, in bytes.
    """
    return max(1, memory // max(1, measured_bytes(work)))


def widest_row(experiment: Experiment) -> Experiment:
    """The one row of an experiment that is read at most positions."""
    row = int(experiment.readouts.row.bincount().argmax())
    return experiment.rows(row, row + 1)


def row_blocks(experiment: Experiment, rows: int) -> Iterator[Experiment]:
    """The experiment in blocks of `rows` rows, one after another. Weights stay, so that losses add up."""
    n_rows = len(experiment.batch.clean)
    if rows >= n_rows:
        yield experiment
        return
    for start in range(0, n_rows, rows):
        yield experiment.rows(start, min(start + rows, n_rows))


class PeakMemory:
    """Around some work: `mb`, the most memory that was held during it, less what was held when it began.

    On the CPU the process's resident memory, looked at a hundred times a second; memory that was freed before, and that
    the allocator still holds, is handed back first where it can be (glibc), so that it is not used unseen. On a GPU
    what torch has allocated there.
    """

    mb = 0.0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
            return self
        gc.collect()
        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
        self.process, self.stop = psutil.Process(), threading.Event()
        self.before = self.most = self.process.memory_info().rss
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(0.01):
            self.most = max(self.most, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.most = torch.cuda.max_memory_allocated(self.device)
        else:
            self.stop.set()
            self.watcher.join()
            self.most = max(self.most, self.process.memory_info().rss)
        self.mb = (self.most - self.before) / 2**20
