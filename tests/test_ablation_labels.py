"""Means and spreads over prompts of different lengths, whose labels say which positions correspond."""

from __future__ import annotations

import pytest
import torch
from experiments import experiment, random_pairs, small

from acdc.ablation import Ablation, Mean, Noise, Values, corresponding_positions
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.model.forward import run
from acdc.tasks.base import Pair

# Two prompts of 6 tokens and two of 5: "name" is two tokens or one, and "end" is the last.
PAIRS = [
    Pair([1, 2, 3, 4, 5, 6], [1, 9, 8, 4, 5, 7], [1], [2], labels={"name": [1, 3], "verb": 3, "end": -1}),
    Pair([1, 5, 4, 3, 2], [1, 6, 4, 3, 9], [1], [2], labels={"name": 1, "verb": 2, "end": -1}),
    Pair([1, 7, 8, 4, 9, 6], [2, 9, 5, 4, 9, 3], [1], [2], labels={"name": [1, 3], "verb": 3, "end": -1}),
    Pair([0, 3, 4, 8, 8], [1, 2, 4, 3, 1], [1], [2], labels={"name": 1, "verb": 2, "end": -1}),
]
# (pair, position) that correspond; what follows the verb is known by its distance from it.
GROUPS = [
    [(0, 0), (1, 0), (2, 0), (3, 0)],
    [(0, 1), (1, 1), (2, 1), (3, 1)],  # the name's first token
    [(0, 2), (2, 2)],  # its second
    [(0, 3), (1, 2), (2, 3), (3, 2)],  # the verb
    [(0, 4), (1, 3), (2, 4), (3, 3)],  # one behind it
    [(0, 5), (1, 4), (2, 5), (3, 4)],  # the end
]


def corrupted_run(one: Experiment) -> Values:
    return run(one.model, one.batch.corrupted, one.batch.lengths)[0]


def ablated(one: Experiment, settings: Ablation) -> Values:
    pairs = [one.pairs[i] for i in one.batch.source]
    return settings.values(one.clean, corrupted_run(one), one.batch.lengths, pairs)


def test_which_positions_correspond() -> None:
    one = experiment(small("gpt2"), PAIRS)
    places = corresponding_positions(one.batch.lengths, one.pairs, "ablation=mean", "ablation=zero")
    assert places.shape == (4, 6)
    assert places[1, 5] == places[3, 5] == -1
    for group in GROUPS:
        assert len({int(places[at]) for at in group}) == 1
    assert len({int(places[group[0]]) for group in GROUPS}) == len(GROUPS)


@pytest.mark.parametrize("kind", ["gpt2", "attention_only", "bidirectional"])
def test_the_mean_is_over_corresponding_positions(kind: str) -> None:
    one = experiment(small(kind), PAIRS)
    corrupted, mean = corrupted_run(one), ablated(one, Mean())
    for name in ("inputs", "heads", "mlps"):
        values, means = getattr(corrupted, name), getattr(mean, name)
        for group in GROUPS:
            expected = sum(values[..., pair, position, :] for pair, position in group) / len(group)
            for pair, position in group:
                torch.testing.assert_close(means[..., pair, position, :], expected)
        assert bool(means.isfinite().all())


def test_noise_has_the_spread_of_corresponding_positions() -> None:
    """The same seed with twice the scale gives twice the noise, and without spread there is none."""
    one = experiment(small("gpt2"), PAIRS)
    draws = [ablated(one, Noise(scale=scale)) for scale in (1.0, 2.0)]
    for group in GROUPS:
        rows = torch.stack([one.clean.mlps[:, pair, position] for pair, position in group])
        spread = rows.double().var(0, correction=0).sqrt()
        for pair, position in group:
            once, twice = (d.mlps[:, pair, position] - one.clean.mlps[:, pair, position] for d in draws)
            torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-5)
            standard = once.double() / spread
            assert float(standard.abs().max()) < 5  # 16 numbers of a standard normal distribution
            assert float(standard.abs().max()) > 0.1


def test_each_pair_has_the_same_weight() -> None:
    """A pair's partners share its weight, in the mean and in the spread."""
    pairs = [Pair([1, 2, 3], [[4, 5, 6], [7, 8, 9], [0, 0, 0]]), Pair([3, 2, 1], [2, 4, 6])]
    one = experiment(small("gpt2"), pairs)
    mean = ablated(one, Mean()).mlps
    rows = corrupted_run(one).mlps
    torch.testing.assert_close(mean[:, 0], (rows[:, :3].mean(1) + rows[:, 3]) / 2)
    # Two values with the same weight lie one population deviation from their mean.
    clean, noise = one.clean.mlps, ablated(one, Noise()).mlps - one.clean.mlps
    generator = torch.Generator().manual_seed(0)
    standard = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in vars(one.clean).values()][2]
    spread = (clean[:, 0] - clean[:, 3]).abs() / 2
    torch.testing.assert_close(noise, (standard * spread[:, None]).float(), rtol=1e-3, atol=1e-5)


def refused(pairs: list[Pair]) -> str:
    one = experiment(small("gpt2"), pairs)
    with pytest.raises(ConfigError) as caught:
        ablated(one, Mean())
    text = str(caught.value)
    assert "ablation=mean" in text
    assert "ablation=corrupted" in text
    assert "\n" not in text
    return text


def test_prompts_without_labels_are_refused() -> None:
    assert "4 to 6 tokens and no labels" in refused(random_pairs(0, lengths=(4, 6)))
    labelled = [*PAIRS, Pair([1, 2], [3, 4], [1], [2], where="pairs.jsonl line 5")]
    assert "pairs.jsonl line 5 has none" in refused(labelled)


def test_a_position_that_no_other_pair_has_is_refused() -> None:
    longer = Pair([1, 7, 4, 8, 8, 8], [1, 2, 4, 3, 1, 1], [1], [2], labels={"name": 1, "verb": 2, "end": -1})
    text = refused([*PAIRS, longer])
    assert "position 4 of pair 4 (2 behind the start of 'verb')" in text
    # A partner of the same pair is no other pair.
    assert "pair 1" in refused([PAIRS[0], Pair([1, 2], [[3, 4], [5, 6]], [1], [2], labels={"other": 1}), PAIRS[2]])


def test_labels_do_not_matter_where_lengths_are_equal() -> None:
    plain = random_pairs(0, lengths=(4, 4))
    odd = [Pair(p.clean, p.corrupted, labels={"a": i}) for i, p in enumerate(plain)]
    means = [ablated(experiment(small("gpt2"), pairs), Mean()).mlps for pairs in (plain, odd)]
    assert torch.equal(*means)
