"""An experiment on some of its pairs, and on prompts of different lengths."""

from __future__ import annotations

import pytest
import torch
from experiments import assert_same_decisions, decide, experiment, random_mask, random_pairs, small
from test_ablation_labels import PAIRS

from acdc.ablation import ABLATIONS
from acdc.engine.full import FullEngine
from acdc.errors import ConfigError


@pytest.mark.parametrize("ablation", ["corrupted", "mean", "noise"])
def test_some_pairs_are_an_experiment_of_their_own(ablation: str) -> None:
    pairs = random_pairs(0, lengths=(5,) * 5, partners=2)
    settings = ABLATIONS.chosen(ablation, {"draws": 2} if ablation == "noise" else {})
    ours = experiment(small("gpt2"), pairs, "logit_diff", settings).with_pairs([3, 0])
    theirs = experiment(small("gpt2"), [pairs[3], pairs[0]], "logit_diff", settings)
    assert ours.task.pairs == theirs.task.pairs
    assert ours.batch.source == theirs.batch.source
    torch.testing.assert_close(ours.ablated.mlps, theirs.ablated.mlps)
    _, mask = random_mask(ours.graph, 1)
    assert FullEngine(ours).losses([mask]) == pytest.approx(FullEngine(theirs).losses([mask]), abs=1e-6)


@pytest.mark.parametrize("ablation", ["mean", "noise"])
def test_both_engines_agree_where_positions_correspond_by_label(ablation: str) -> None:
    one = experiment(small("gpt2"), PAIRS, "logit_diff", ablation)
    _, full = decide(one, 0.05, engine="full")
    _, incremental = decide(one, 0.05, engine="incremental")
    assert_same_decisions(incremental, full)
    assert 0 < sum(d.kept for d in full) < len(full)


def test_positions_that_do_not_correspond_are_refused_when_an_experiment_is_built() -> None:
    with pytest.raises(ConfigError, match="no labels"):
        experiment(small("gpt2"), random_pairs(0, lengths=(4, 6)), ablation="mean")
    with pytest.raises(ConfigError, match="no counterpart"):
        experiment(small("gpt2"), PAIRS, ablation="mean").with_pairs([0, 1])
