"""Path patching (Wang et al. 2022, "Interpretability in the Wild", appendix B; Goldowsky-Dill et al. 2023).

The senders give the other run's output, but only the receivers are told: everything else stays frozen at its value in
the base run, unless it is allowed to respond (`through`). What lies behind the receivers is computed as usual.

`noise`: the base is the clean run, the senders' values are corrupted: is the path necessary? `denoise`: the base is the
corrupted run, the values are clean: is it enough? A direct path from one sender to one receiver, noised, is one edge
removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch

from acdc.engine.memory import budget_bytes
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.patching.base import (
    DIRECTIONS,
    PatchOptions,
    Progress,
    base_and_source,
    batch_bytes,
    blocks,
    by_pair,
    check_ablation,
    check_scale,
    ends,
    runs_of,
)
from acdc.patching.path_choice import SWEEPS, Group, Path, paths_of, ports_of, root_ports, through_nodes
from acdc.patching.path_result import PatchedPaths, PathMap
from acdc.patching.path_run import PathRun
from acdc.patching.positions import Place, places
from acdc.settings import option

DOING = ("patching", "paths")  # what the progress bar says, and what it counts


@dataclass(frozen=True)
class Settings(PatchOptions):
    """Path patching: some senders give the other run's output, but only some receivers are told; the rest is frozen."""

    name: str = "path"
    senders: list[str] | str | None = option(None, "nodes such as [a0.h3,m1,input], heads, mlps; null is all")
    receivers: list[str] | str | None = option(
        "logits",
        "ports such as [a3.h0<q>,m2], heads (their q, k and v together), mlps, logits; null is all ports",
    )
    sweep: str = option(
        "both",
        "one at a time: both, senders (each to all receivers together), receivers (all senders together to"
        " each) or none",
        SWEEPS,
    )
    through: list[str] | str = option(
        "none",
        "nodes in between that may respond: none, mlps (as Wang et al. 2022), heads, or names such as [a1.h0,m2]",
    )
    direction: str = option(
        "noise",
        "noise: corrupted value into the clean run; denoise: clean value into the corrupted run; both",
        (*DIRECTIONS, "both"),
    )
    positions: list[int | str] | int | str | None = option(
        None,
        'where the senders are changed: indices, labels of the task and spans, such as [S2,-1,"2:5"]; null is'
        " everywhere",
    )
    from_: str | None = option(
        None,
        "a node such as logits, a3.h0 or m2: who feeds it, who feeds those, and so on backward, instead of a sweep",
    )
    depth: int = option(3, "with from: how many levels", least=1)
    width: int = option(4, "with from: how many senders of a level are followed at most, the strongest", least=1)
    limit: float = option(0.02, "with from: the least |effect| of a sender that is followed", least=0)
    memory_gb: float | None = option(
        None,
        "what temporary tensors may take; null is a share of what is free",
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in fields(self):
            changed = getattr(self, field.name) != field.default
            if changed and self.from_ is None and field.name in ("depth", "width", "limit"):
                raise ConfigError(
                    f"patch.{field.name} has no effect without patch.from=NODE: give it or leave this out"
                )
            if changed and self.from_ is not None and field.name in ("receivers", "sweep"):
                raise ConfigError(f"patch.{field.name} has no effect with patch.from, which chooses the receivers")

    @property
    def directions(self) -> tuple[str, ...]:
        return DIRECTIONS if self.direction == "both" else (self.direction,)


def check(experiment: Experiment, settings: Settings) -> list[Path]:
    """The paths that would be patched, or those of the first level; what cannot be done is refused.

    Raises
    ------
    ConfigError
        A node, port or position that model or pairs do not have, a path that does not exist, an ablation other than
        `corrupted`.
    TaskError
        The metric is the same on clean and corrupted prompts.
    """
    check_ablation(experiment)
    graph = experiment.graph
    through_nodes(graph, settings.through)
    _place(experiment, settings)
    receivers, sweep = settings.receivers, settings.sweep
    if settings.from_ is not None:
        receivers, sweep = list(root_ports(graph, settings.from_)), "both"
    paths = paths_of(graph, settings.senders, receivers, sweep)
    check_scale(experiment)
    return paths


def patch(experiment: Experiment, settings: Settings, progress: Progress | None = None) -> PatchedPaths:
    """Patch every chosen path; with `settings.from_` level by level backward.

    Parameters
    ----------
    progress : callable or None
        Called with the number of paths that are done, and with the number of all that are known so far.

    Raises
    ------
    ConfigError, TaskError
        See `check`.
    """
    paths = check(experiment, settings)
    sweep = _Sweep(experiment, settings, progress, len(settings.directions) * len(paths))
    maps: list[PathMap] = []
    for direction in settings.directions:
        maps += [sweep(direction, paths)] if settings.from_ is None else _levels(sweep, direction, paths)
    given = settings.through if isinstance(settings.through, str) else "+".join(settings.through)
    return PatchedPaths(
        maps=tuple(maps),
        metric=experiment.metric_name,
        through=given or "none",
        place=_place(experiment, settings),
        root=settings.from_ or "",
        limit=settings.limit,
        graph=experiment.graph,
    )


def _place(experiment: Experiment, settings: Settings) -> Place:
    (place,) = places(experiment, settings.positions, apart=False)
    return place


def _levels(sweep: _Sweep, direction: str, paths: Sequence[Path]) -> Iterator[PathMap]:
    """Who feeds the node, who feeds the strongest of those, and so on; every node is asked once."""
    settings, graph = sweep.settings, sweep.experiment.graph
    senders = list(dict.fromkeys(path.senders for path in paths))  # whatever comes before a sender is among these
    asked = {graph.node_of(paths[0].receivers.name)}
    for level in range(1, settings.depth + 1):
        found = sweep(direction, paths)
        strong = (name for name, size in found.strength().items() if size >= settings.limit)
        followed = [name for name in strong if name not in asked and ports_of(graph, name)][: settings.width]
        yield replace(found, level=level, followed=tuple(followed) if level < settings.depth else ())
        asked.update(followed)
        receivers = [Group(port, (port,)) for name in followed for port in ports_of(graph, name)]
        paths = [path for r in receivers for s in senders if (path := Path(s, r)).exists(graph)]
        if level == settings.depth or not paths:
            return
        sweep.total += len(paths)


class _Sweep:
    """Paths patched in one direction, in blocks of rows that fit in memory."""

    def __init__(self, experiment: Experiment, settings: Settings, progress: Progress | None, total: int) -> None:
        self.experiment, self.settings, self.progress = experiment, settings, progress
        self.through = through_nodes(experiment.graph, settings.through)
        self.memory = budget_bytes(experiment.model.device, settings.memory_gb, "patch")
        self.blocks = blocks(experiment, self.memory)
        self.clean, self.corrupted = (by_pair(experiment, values) for values in ends(experiment))
        self.done, self.total = 0.0, total

    def __call__(self, direction: str, paths: Sequence[Path]) -> PathMap:
        place, memory = _place(self.experiment, self.settings), batch_bytes(self.memory)
        values = []
        for block in self.blocks:
            runs = runs_of(block)
            base, source = (runs[name] for name in base_and_source(direction))
            run = PathRun(base, source, self.through, place.mask(block), memory)
            values.append(run.values(paths, self._tell))
        patched = by_pair(self.experiment, torch.cat(values, -1))
        return PathMap(direction, tuple(paths), patched, self.clean, self.corrupted)

    def _tell(self, n_paths: int) -> None:
        self.done += n_paths / len(self.blocks)
        if self.progress is not None:
            self.progress(round(self.done), self.total)
