"""What the report says of sites ablated together, on games whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from acdc.patching.ablation_result import Additivity
from acdc.patching.backup import Backup
from acdc.report.patch.ablation import additivity_words, backup_words

NAMES = ("A", "B", "C")
Loss = Callable[[set[str]], float]  # of those that are left


def words(loss: Loss, names: tuple[str, ...]) -> list[str]:
    def effect(*gone: str) -> torch.Tensor:
        return torch.tensor([loss(set(NAMES) - set(gone)) - loss(set(NAMES))])

    joint = torch.stack([torch.stack([effect(a, b) for b in names]) for a in names])
    one = Additivity(tuple(names), torch.stack([effect(name) for name in names]), joint, effect(*names))  # type: ignore[arg-type]
    result = SimpleNamespace(additivity=one, names=SimpleNamespace(name=str))
    return additivity_words(result)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda left: 0.0 if left & {"A", "B"} else 1.0, "positive interaction: they back each other up"),
        (lambda left: 0.0 if left >= {"A", "B"} else 1.0, "negative interaction: they share their effect"),
        (lambda left: 1.0 if left & {"A", "B"} else 0.0, "negative interaction: they do harm in each other's place"),
        (lambda left: 1.0 if left >= {"A", "B"} else 0.0, "positive interaction: they share the harm"),
        (lambda left: 2.0 - ("A" in left) + ("B" in left), "about additive"),
        (lambda left: 1 - 0.5 * len({"B"} - left) - 0.5 if "A" in left else 1.0, "some hurt by working against"),
        (lambda left: 0.0 if "B" not in left else 0.5 if "A" in left else 1.0, "those that help make up for"),
    ],
)
def test_the_sign_of_an_interaction_means_what_the_effects_say(loss: Loss, said: str) -> None:
    (line,) = words(loss, ("A", "B"))
    assert line.startswith("additivity of A B: joint effect")
    assert said in line


def test_two_that_interact_are_named() -> None:
    """A helps; B undoes half of it; C alone adds nothing to either."""
    *_, positive = words(lambda left: 1.0 if "A" not in left else 0.5 * ("B" in left), NAMES)
    assert positive == "the most positive interaction of two sites is +0.5: B hurts and works against A"
    *_, negative = words(lambda left: 0.0 if "B" not in left else 0.5 if "A" in left else 1.0, NAMES)
    assert negative == "the most negative interaction of two sites is -0.5: A makes up for B"


@pytest.mark.parametrize(
    ("lost", "risen", "said"),
    [
        (2.0, 1.0, "it loses 2 of direct effect; later heads and MLPs together restore 50% of that"),
        (2.0, -1.0, "it loses 2 of direct effect; later heads and MLPs together lose 50% of that"),
        (
            -2.0,
            -1.0,
            "its direct effect, which hurts by 2, is gone; later heads and MLPs together take back 50% of that",
        ),
        (-2.0, 1.0, "its direct effect, which hurts by 2, is gone; later heads and MLPs together add 50% of that"),
    ],
)
def test_backup_says_what_later_parts_do_of_what_was_lost(lost: float, risen: float, said: str) -> None:
    before, after = torch.tensor([[lost], [0.0]]), torch.tensor([[0.0], [risen]])
    site: Any = "a0.h0"
    one = Backup(site, ("a0.h0", "m1"), before, after, torch.tensor([-lost]), later=(1,), later_heads=())
    text = backup_words(SimpleNamespace(names=SimpleNamespace(name=str)), one)  # type: ignore[arg-type]
    assert text.startswith(f"backup of a0.h0: {said}")
    assert ("those that work against it" in text) == (lost * risen > 0)
