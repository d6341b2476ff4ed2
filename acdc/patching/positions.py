"""Positions to patch: by index, by the task's labels, by span, or all; the same in every pair or found by label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.tasks.base import TokenizedPair, Tokenizer

Chosen = list[int | str] | int | str | None
# Prompts differ in length and in where their subject stands, so causal tracing tells tokens apart by their role
# (Meng et al. 2022, figure 2).
ROLES = {
    "earlier": "earlier tokens",
    "first_subject": "first subject token",
    "middle_subject": "middle subject tokens",
    "last_subject": "last subject token",
    "first_subsequent": "first subsequent token",
    "further": "further tokens",
    "last": "last token",
}
TRACED_BY = ("role", "position")


@dataclass(frozen=True)
class Place:
    """Tokens that are patched together.

    Attributes
    ----------
    name : str
        An index, a label, or a span `start:end`; empty for whole prompts.
    label : str
        What the reader sees on an axis, an index with its token or label.
    tokens : tuple of frozenset of int
        The positions in each pair.
    """

    name: str
    label: str
    tokens: tuple[frozenset[int], ...]

    def mask(self, experiment: Experiment) -> Tensor:
        """`row pos`, True where the place is."""
        batch = experiment.batch
        positions = range(batch.clean.shape[1])
        rows = [[position in self.tokens[pair] for position in positions] for pair in batch.source]
        return torch.tensor(rows, device=batch.clean.device)


def places(experiment: Experiment, chosen: Chosen, apart: bool) -> tuple[Place, ...]:
    """The places to patch.

    Parameters
    ----------
    chosen : Chosen
        Indices (from the end if negative), labels and spans `start:end`; None is all positions.
    apart : bool
        Whether each position is a place of its own; otherwise all of them together are one place.

    Raises
    ------
    ConfigError
        A position that some pair does not have, an index or span where pairs differ in length.
    """
    pairs = experiment.pairs
    if chosen == []:
        raise ConfigError(f"patch.positions=[] is no position: {_allowed(pairs, 'positions')}")
    given = chosen if isinstance(chosen, list) else [] if chosen is None else [chosen]
    if not given and not apart:
        return (Place("", "all positions", tuple(frozenset(range(len(pair.clean))) for pair in pairs)),)
    if not given:
        given = list(_every_position(pairs))
    names = Tokenizer(experiment.model.tokenizer, experiment.model.vocabulary_size)
    found = [_place(item, pairs, names, "positions") for item in given]
    if twice := [place.name for i, place in enumerate(found) if place.name in [p.name for p in found[:i]]]:
        raise ConfigError(f"patch.positions has {twice[0]} twice: give each position once")
    if apart:
        return tuple(found)
    together = tuple(frozenset[int]().union(*(place.tokens[i] for place in found)) for i in range(len(pairs)))
    return (Place(",".join(p.name for p in found), ", ".join(p.label for p in found), together),)


def subject(experiment: Experiment, chosen: int | str | None) -> Place:
    """The tokens of each pair's subject, for causal tracing.

    Parameters
    ----------
    chosen : int or str or None
        An index, a label or a span `start:end`; None is what the pairs call their subject.

    Raises
    ------
    ConfigError
        Pairs without a subject; a label that some pair does not have, an index or span that does not fit.
    """
    pairs = experiment.pairs
    if chosen is not None:
        names = Tokenizer(experiment.model.tokenizer, experiment.model.vocabulary_size)
        return _place(chosen, pairs, names, "subject")
    if without := [pair.where for pair in pairs if pair.subject is None]:
        raise ConfigError(
            f"patch=tracing adds noise to the subject, and {without[0]} of task={experiment.task.name} names none, so"
            f' set patch.subject: {_allowed(pairs, "subject")}; in a pairs file it is "subject": [START, END]'
        )
    return Place("", "subject", tuple(frozenset(range(*pair.subject)) for pair in pairs if pair.subject is not None))


def _every_position(pairs: Sequence[TokenizedPair]) -> Sequence[int | str]:
    """Every index where pairs are equally long, else every label that they share."""
    if len({len(pair.clean) for pair in pairs}) == 1:
        return range(len(pairs[0].clean))
    if labels := _shared_labels(pairs):
        return labels
    lengths = [len(pair.clean) for pair in pairs]
    raise ConfigError(
        f"patch.by=position needs positions that correspond, but the pairs have {min(lengths)} to {max(lengths)} tokens"
        " and share no labels: give labels, pairs of one length, or patch.by=head"
    )


def _shared_labels(pairs: Sequence[TokenizedPair]) -> list[str]:
    return [name for name in pairs[0].labels if all(name in pair.labels for pair in pairs)]


def _place(item: int | str, pairs: Sequence[TokenizedPair], names: Tokenizer, key: str) -> Place:
    """A place as `patch.KEY` gives it."""
    if isinstance(item, str) and any(item in pair.labels for pair in pairs):
        if without := [pair.where for pair in pairs if item not in pair.labels]:
            raise ConfigError(f"patch.{key}={item}: {without[0]} has no such label; {_allowed(pairs, key)}")
        return Place(item, item, tuple(frozenset(range(*pair.labels[item])) for pair in pairs))
    lengths = [len(pair.clean) for pair in pairs]
    try:
        ends = [int(part) for part in str(item).split(":")]
    except ValueError:
        raise ConfigError(f"patch.{key}={item} is not a position: {_allowed(pairs, key)}") from None
    if len(set(lengths)) > 1:
        raise ConfigError(
            f"patch.{key}={item}: the pairs have {min(lengths)} to {max(lengths)} tokens, so an index is not the"
            f" same place in all of them: {_allowed(pairs, key)}"
        )
    length = lengths[0]
    start, stop = (ends[0], ends[0] + 1) if len(ends) == 1 else ends if len(ends) == 2 else (0, 0)
    if len(ends) == 1 and start < 0:
        start, stop = start + length, stop + length
    if not 0 <= start < stop <= length:
        raise ConfigError(f"patch.{key}={item} lies outside the prompts of {length} tokens: {_allowed(pairs, key)}")
    if len(ends) == 1:
        return Place(str(start), _axis_label(start, pairs, names), (frozenset([start]),) * len(pairs))
    return Place(f"{start}:{stop}", f"{start}:{stop}", (frozenset(range(start, stop)),) * len(pairs))


def _allowed(pairs: Sequence[TokenizedPair], key: str) -> str:
    null = ", or null for all" if key == "positions" else ""
    labels = _shared_labels(pairs)
    known = f"the labels {', '.join(labels)}" if labels else "labels (these pairs share none)"
    if len({len(pair.clean) for pair in pairs}) > 1:
        return f"give {known}{null}"
    last = len(pairs[0].clean) - 1
    return f"give indices from 0 to {last} (or -1, ...), spans such as 0:{last}, {known}{null}"


def _axis_label(index: int, pairs: Sequence[TokenizedPair], names: Tokenizer) -> str:
    """The token where it is the same in every clean prompt, else the label that all pairs give it, else one token."""
    tokens = {pair.clean[index] for pair in pairs}
    labels = [n for n in _shared_labels(pairs) if all(pair.labels[n] == (index, index + 1) for pair in pairs)]
    text = names.decode([pairs[0].clean[index]]).replace("\n", "⏎").strip() or "␣"
    if len(tokens) > 1:
        text = labels[0] if labels else f"{text}…"
    return f"{index} {text}"


def traced_places(experiment: Experiment, subject: Place, by: str) -> tuple[Place, ...]:
    """The places whose effects are told apart.

    Parameters
    ----------
    by : str
        `role`; or `position`, every token by its index.

    Raises
    ------
    ConfigError
        `position` with pairs of different lengths.
    """
    if by == "role":
        return _roles(experiment, subject)
    lengths = [len(pair.clean) for pair in experiment.pairs]
    if len(set(lengths)) > 1:
        raise ConfigError(
            f"patch.by=position needs pairs of one length, and these have {min(lengths)} to {max(lengths)} tokens:"
            " choose patch.by=role"
        )
    return places(experiment, None, apart=True)


def _roles(experiment: Experiment, subject: Place) -> tuple[Place, ...]:
    """The roles that some pair has a token for. A token may have two: a subject of one token is its first and last.

    A role that is another one in every pair is left out; earlier tokens too where the model is causal, for what is
    before the noise is clean already.
    """
    found: list[Place] = []
    by_pair = [
        _roles_of(tokens, len(pair.clean)) for tokens, pair in zip(subject.tokens, experiment.pairs, strict=True)
    ]
    for name in reversed(ROLES):
        tokens = tuple(roles[name] for roles in by_pair)
        wanted = any(tokens) and not (name == "earlier" and experiment.model.causal)
        if wanted and tokens not in [place.tokens for place in found]:
            found.insert(0, Place(name, ROLES[name], tokens))
    return tuple(found)


def _roles_of(subject: frozenset[int], length: int) -> dict[str, frozenset[int]]:
    """The tokens of each role in one prompt."""
    start, end = min(subject), max(subject) + 1
    spans = ((0, start), (start, start + 1), (start + 1, end - 1), (end - 1, end))
    behind = ((end, min(end + 1, length)), (end + 1, length - 1), (length - 1, length))
    return {name: frozenset(range(*span)) for name, span in zip(ROLES, (*spans, *behind), strict=True)}
