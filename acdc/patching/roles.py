"""Where causal tracing restores: tokens by the part they play in a prompt, or one by one.

Prompts differ in length and in where their subject stands, so tokens are told apart by their role (Meng et al. 2022,
figure 2): the first, the middle and the last ones of the subject, the first behind it, further ones, the last.
"""

from __future__ import annotations

from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.patching.positions import Place, places

ROLES = {
    "earlier": "earlier tokens",
    "first_subject": "first subject token",
    "middle_subject": "middle subject tokens",
    "last_subject": "last subject token",
    "first_subsequent": "first subsequent token",
    "further": "further tokens",
    "last": "last token",
}
WAYS = ("role", "position")


def traced_places(experiment: Experiment, subject: Place, by: str) -> tuple[Place, ...]:
    """The places whose effects are told apart.

    Parameters
    ----------
    by: `role`; or `position`, every token by its index.

    Raises
    ------
    ConfigError: `position` with pairs of different lengths.
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
