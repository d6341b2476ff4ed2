"""Many removals evaluated at once, as the decisions about them will probably fall."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol, runtime_checkable

from acdc.graph import Edge, Graph


@runtime_checkable
class Removals(Protocol):
    """What evaluates removals at one receiver."""

    @property
    def most_variants(self) -> int:
        """How many can be evaluated at once."""

    def losses(self, edges: list[Edge], gone: list[bool], wanted: list[bool] | None = None) -> list[float]:
        """The loss without each edge, where of those before it in the list the ones that `gone` says are out too; only
        for the edges that `wanted` says, None for all.
        """


class Lookahead:
    """Tests a receiver's edges in order, in batches.

    The j-th candidate of a batch assumes guesses about the j − 1 before it, and counts only if all of them were right:
    so the decisions are those of testing one at a time. A candidate behind a wrong guess is evaluated again; the effect
    it had is what it is guessed by then. Before that it is guessed by the latest decision about its sender at a
    receiver of the same kind.

    Parameters
    ----------
    engine: evaluates.
    graph: the edges are of.
    threshold: τ, for the guesses.
    batch_size: candidates in a batch; None lets the number grow while guesses are right and shrink where they are
        wrong.
    """

    def __init__(self, engine: Removals, graph: Graph, threshold: float, batch_size: int | None = None) -> None:
        self.engine, self.graph, self.threshold = engine, graph, threshold
        self.fixed = batch_size
        # By kind of receiver: MLPs keep a larger share of their edges than heads do.
        self.sizes: dict[object, int] = {}
        self.latest: dict[object, dict[str, bool]] = {}

    def test(
        self,
        edges: list[Edge],
        current: float,
        decide: Callable[[Edge, float | None], bool],
        ruled_out: Collection[Edge] = (),
    ) -> list[Edge]:
        """Decide a receiver's edges in order; returns those that go.

        Parameters
        ----------
        current: the loss with all of them. decide: told an edge and the loss without it, says whether it is kept.
        ruled_out: edges that go whatever the loss. Of those that follow each other only the last is evaluated, for the
            loss that the next test starts from; the loss of the others is None.
        """
        row = self.graph[edges[0].receiver]
        kind = row.kind, row.letter, row.projected
        latest, size = self.latest.setdefault(kind, {}), self.sizes.get(kind, 8)
        guesses: dict[Edge, bool] = {}
        removed: list[Edge] = []
        start = 0
        while start < len(edges):
            wanted = min(self.fixed or size, self.engine.most_variants)
            batch, evaluated = _batch(edges, start, wanted, ruled_out)
            keeps = [edge not in ruled_out and guesses.get(edge, latest.get(edge.sender, False)) for edge in batch]
            found = iter(self.engine.losses(batch, [not keep for keep in keeps], evaluated))
            losses = [next(found) if one else None for one in evaluated]
            before = current
            for edge, keep, loss in zip(batch, keeps, losses, strict=True):
                if loss is not None:
                    guesses[edge] = loss - before >= self.threshold
                    before = before if keep else loss
            right = True
            for edge, keep, loss in zip(batch, keeps, losses, strict=True):
                kept = decide(edge, loss)
                start += 1
                if edge not in ruled_out:
                    latest[edge.sender] = kept
                if not kept:
                    removed.append(edge)
                    current = current if loss is None else loss
                if kept != keep:
                    right = False
                    break
            if right:
                size = max(size, 2 * sum(evaluated))
            elif sum(evaluated) == wanted:  # the rest of a receiver's edges says nothing about sizes
                size = max(4, wanted // 2)
        self.sizes[kind] = size
        return removed


def _batch(edges: list[Edge], start: int, wanted: int, ruled_out: Collection[Edge]) -> tuple[list[Edge], list[bool]]:
    """The next edges, of which `wanted` are evaluated (fewer at the end), and which these are."""
    evaluated: list[bool] = []
    for i in range(start, len(edges)):
        inside = edges[i] in ruled_out and i + 1 < len(edges) and edges[i + 1] in ruled_out
        evaluated.append(not inside)
        wanted -= not inside
        if not wanted:
            break
    return edges[start : start + len(evaluated)], evaluated
