"""The losses when senders of the logits change, with what is kept of the logits from receiver to receiver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from acdc.engine.readout import Readout
from acdc.engine.state import ALL, CircuitState

_UPDATES = 16  # of the base logits before they are made whole again
_MAGNIFIED = 8  # times by which the last norm may magnify the rounding of the base logits


class LogitLosses:
    """Losses from changes of what senders write to the logits.

    Where the logits change only through a few heads, a loss costs d_head for each word of the vocabulary, not d_model:
    the logits of the current stream, the base, are kept, and what a head adds to them goes through a map of its own.

    Parameters
    ----------
    room: bytes that may be spent on maps from heads to logits.
    like: the readout of another block of pairs.

    Attributes
    ----------
    stream: the stream that the logits read now, `readout d_model`; None until it is asked for.
    base: its logits in tiles, `readout column`; None where they have to be made.
    scale: the smallest that the last norm had since the base was made whole, `readout 1`.
    age: how often the base has been brought up to date since.
    """

    def __init__(self, state: CircuitState, room: int, like: Readout | None = None) -> None:
        self.state, self.room = state, room
        self.readout = Readout(state.experiment, like)
        self.maps: dict[tuple[str, ...], list[Tensor]] = {}  # what heads' z do to the logits
        self.stream: Tensor | None = None
        self.base: list[Tensor] | None = None
        self.scale = torch.zeros(())
        self.age = 0

    def forget(self) -> None:
        """Edges of the logits themselves are gone."""
        self.stream = self.base = None

    def before(self, heads: Sequence[str]) -> list[Tensor]:
        """The z of heads whose change the base can follow, to be given to `follow`; empty if it cannot."""
        return [self._z(head) for head in heads] if self.base is not None and self.is_thin(heads) else []

    def follow(self, senders: Sequence[str], before: Sequence[Tensor]) -> None:
        """Some senders of the logits have got other values; `before`: the heads' earlier ones."""
        self.stream = None
        if before and self.age < _UPDATES:
            moved = torch.cat([self._z(head) for head in senders], -1) - torch.cat(list(before), -1)
            for tile, of_heads in zip(self.base or [], self._map(tuple(senders)), strict=True):
                tile.addmm_(moved, of_heads[: moved.shape[-1]])
            self.age += 1
        else:
            self.base = None

    def unchanged(self) -> Float64[Tensor, "1"]:
        """The loss now, a tensor of one."""
        return self.readout.losses(self._stream()[:, None])

    def of(
        self,
        x: Float[Tensor, "readout variant d_model"],
        changes: Mapping[str, Float[Tensor, "row variant pos d"]],
        senders: Sequence[str],
    ) -> Float64[Tensor, " variant"]:
        """The losses, `variant`.

        Parameters
        ----------
        x: what the logits receive, `readout variant d_model`.
        changes: what these senders write less what they write when ablated, `row variant pos d`; z for heads.
        """
        readout = self.readout
        if not self.is_thin(senders) or readout.columns is not None or not readout.tiled or x.dtype == torch.float16:
            return self.readout.losses(x)  # in float16 the base, which no norm has made small, may overflow
        scale = self.readout.scale(self._stream())
        if self.base is None or bool((scale > _MAGNIFIED * self.scale).any()):
            self.base, self.scale, self.age = self.readout.base(self._stream()), scale, 0
        self.scale = torch.minimum(self.scale, scale)
        if bool((self.readout.scale(x) > _MAGNIFIED * self.scale[:, None]).any()):
            return self.readout.losses(x)  # the norm would magnify the base's rounding
        state, read, moved = self.state, self.state.read, []
        position = state.experiment.readouts.position
        for sender in senders:
            where = position if state.levels[sender] == ALL else read.slot
            node = state.graph[sender]
            ablated = state.experiment.ablated.heads[node.layer, node.unit][read.row, position]
            before = self._z(sender) - ablated
            moved.append(changes[sender][read.row, :, where] - before[:, None])
        return self.readout.losses(x, self.base, torch.cat(moved, -1), self._map(tuple(senders)))

    def is_thin(self, senders: Sequence[str]) -> bool:
        """Whether a change through these senders has a low rank."""
        state = self.state
        heads = all(state.graph[sender].kind == "head" for sender in senders)
        return heads and 0 < 2 * len(senders) * state.model.d_head <= state.model.config.d_model

    def _stream(self) -> Tensor:
        if self.stream is None:
            self.stream = self.state.at_readouts(self.state.input("logits"))
        return self.stream

    def _z(self, head: str) -> Tensor:
        """A head's stored z at the readouts, `readout d_head`."""
        node, readouts = self.state.graph[head], self.state.experiment.readouts
        return self.state.z[node.layer, node.unit][readouts.row, readouts.position]

    def _map(self, heads: tuple[str, ...]) -> list[Tensor]:
        """What these heads' z do to the logits; the latest are kept while there is room, for heads take turns."""
        if heads not in self.maps:
            made = self.readout.through(self.state.W_O(heads))
            size = sum(tile.numel() * tile.element_size() for tile in made)
            while self.maps and (len(self.maps) + 1) * size > self.room:
                del self.maps[next(iter(self.maps))]
            self.maps[heads] = made
        return self.maps[heads]
